#include "core/html_report.h"

#include <fmt/format.h>

#include "core/atomic_file.h"

namespace distill::core {
namespace {

constexpr std::string_view kStyle = R"(
:root { color-scheme: light dark; --line: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; white-space: pre-wrap; background: #8881; padding: .6rem; }
.plot { width: 100%; margin: .6rem 0; } .plot text { fill: currentColor; font: 12px system-ui, sans-serif; }
.plot .title { font-weight: 600; } .plot .grid { stroke: var(--line); } .plot path { fill: none; stroke-width: 1.6; }
)";

bool looks_like_a_number(std::string_view cell) {
  return !cell.empty() && cell.find_first_of("0123456789") != std::string_view::npos &&
         cell.find_first_not_of("0123456789.,+-eEx%×° ()kMG/") == std::string_view::npos;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

void HtmlReport::heading(std::string_view text) {
  body_ += fmt::format("<h2>{}</h2>\n", escape_html(text));
}

void HtmlReport::paragraph(std::string_view text) {
  body_ += fmt::format("<p>{}</p>\n", escape_html(text));
}

void HtmlReport::preformatted(std::string_view text) {
  body_ += fmt::format("<pre>{}</pre>\n", escape_html(text));
}

void HtmlReport::table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
  body_ += "<table>\n";
  if (!header.empty()) {
    body_ += "<tr>";
    for (const std::string& cell : header) body_ += fmt::format("<th>{}</th>", escape_html(cell));
    body_ += "</tr>\n";
  }
  for (const auto& row : rows) {
    body_ += "<tr>";
    for (const std::string& cell : row) {
      body_ += fmt::format("<td{}>{}</td>", looks_like_a_number(cell) ? R"( class="number")" : "", escape_html(cell));
    }
    body_ += "</tr>\n";
  }
  body_ += "</table>\n";
}

void HtmlReport::lines(const PlotOptions& options, const std::vector<PlotSeries>& series) {
  body_ += plot_lines(options, series);
}

void HtmlReport::stacked_bars(const PlotOptions& options, const std::vector<std::string>& categories,
                              const std::vector<PlotSeries>& series) {
  body_ += plot_stacked_bars(options, categories, series);
}

std::string HtmlReport::html() const {
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n<meta name=\"viewport\" "
      "content=\"width=device-width\">\n<title>{0}</title>\n<style>{1}</style></head>\n<body>\n<h1>{0}</h1>\n{2}</"
      "body>\n"
      "</html>\n",
      escape_html(title_), kStyle, body_);
}

void HtmlReport::write(const std::filesystem::path& path) const {
  write_file_atomically(path, html());
}

}  // namespace distill::core
