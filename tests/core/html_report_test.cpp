#include "core/html_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace distill::core {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

size_t count(const std::string& text, const std::string& part) {
  size_t found = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++found;
  return found;
}

TEST(HtmlReport, EscapesEveryText) {
  HtmlReport report("a<b");
  report.heading("<script>");
  report.paragraph("\"x\" & 'y'");
  report.preformatted("</pre>");
  report.table({"<th>"}, {{"<td>"}});
  report.lines({.title = "<t>", .x_label = "<x>"}, {{.name = "<n>", .x = {0, 1}, .y = {0, 1}}});
  report.stacked_bars({.title = "bars"}, {"<c>"}, {{.name = "s", .x = {}, .y = {1}}});
  const std::string html = report.html();
  for (const char* raw : {"<script>", "<b<", "<th>\"", "<t>", "<x>", "<n>", "<c>", "</pre></pre>"}) {
    EXPECT_THAT(html, Not(HasSubstr(raw))) << raw;
  }
  EXPECT_THAT(html,
              AllOf(HasSubstr("a&lt;b"), HasSubstr("&quot;x&quot; &amp; &#39;y&#39;"), HasSubstr("&lt;/pre&gt;")));
  // Nothing is fetched from anywhere.
  EXPECT_THAT(html, AllOf(Not(HasSubstr("http")), Not(HasSubstr("src=")), Not(HasSubstr("@import"))));
}

TEST(HtmlReport, AlignsNumbersToTheRight) {
  HtmlReport report("t");
  report.table({"name", "value"}, {{"loss", "2.5e-3"}});
  EXPECT_THAT(report.html(), HasSubstr(R"(<td>loss</td><td class="number">2.5e-3</td>)"));
}

TEST(PlotLines, DrawsALinePerSeriesWithTicksAtRoundNumbers) {
  const std::string svg =
      plot_lines({.title = "loss", .x_label = "step", .y_label = "nats"},
                 {{.name = "a", .x = {0, 50, 100}, .y = {3, 2, 1}}, {.name = "b", .x = {0, 100}, .y = {3, 0}}});
  EXPECT_EQ(count(svg, "<path"), 2);
  for (const char* part : {">loss<", ">step<", ">nats<", ">a<", ">b<", ">0<", ">100<", ">3<"}) {
    EXPECT_THAT(svg, HasSubstr(part));
  }
  // The first point is at the left, the value 3 at the top.
  EXPECT_THAT(svg, HasSubstr("M64.0 30.0L"));
}

TEST(PlotLines, LeavesGapsWhereThereIsNothingToShow) {
  const double nan = std::nan("");
  const std::string svg =
      plot_lines({.logarithmic_y = true}, {{.name = "", .x = {1, 2, 3, 4}, .y = {10, nan, 0, 1000}}});
  EXPECT_EQ(count(svg, "M"), 2);
  EXPECT_THAT(svg, AllOf(HasSubstr(">10<"), HasSubstr(">1000<"), Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
  for (const auto& series : {PlotSeries{}, PlotSeries{"x", {1}, {nan}}, PlotSeries{"x", {1}, {5}}}) {
    EXPECT_THAT(plot_lines({}, {series}), AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
  }
}

TEST(PlotLines, KeepsTheExtremesOfLongSeries) {
  PlotSeries series{.name = "", .x = {}, .y = {}};
  for (int i = 0; i < 100000; ++i) {
    series.x.push_back(i);
    series.y.push_back(i == 54321 ? 1000 : 1);
  }
  const std::string svg = plot_lines({}, {series});
  EXPECT_LT(svg.size(), 60000);
  EXPECT_THAT(svg, HasSubstr(" 30.0L"));
}

TEST(PlotStackedBars, StacksTheSeriesInEveryCategory) {
  const std::string svg =
      plot_stacked_bars({.title = "bytes"}, {"first", "second"},
                        {{.name = "ids", .x = {}, .y = {10, 5}}, {.name = "weights", .x = {}, .y = {10, 5}}});
  EXPECT_EQ(count(svg, "<rect"), 4);
  // 20 is the highest tick, so the first bar reaches the top and the second half as high.
  EXPECT_THAT(svg, AllOf(HasSubstr(R"(y="30.0")"), HasSubstr(">first<"), HasSubstr(">second<"), HasSubstr(">20<")));
}

}  // namespace
}  // namespace distill::core
