#include "core/svg_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

#include "core/html_report.h"

namespace distill::core {
namespace {

constexpr double kWidth = 720, kHeight = 300, kLeft = 64, kRight = 12, kTop = 30, kBottom = 44;
// Told apart by people with any colour vision (Okabe and Ito).
constexpr std::array kColours{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d1f", "#999999"};

const char* colour(size_t index) {
  return kColours.at(index % kColours.size());
}

// A range of values laid along a range of pixels.
class Axis {
 public:
  Axis(bool logarithmic, double from_pixel, double to_pixel)
      : logarithmic_(logarithmic), from_pixel_(from_pixel), to_pixel_(to_pixel) {}

  bool shows(double value) const { return std::isfinite(value) && (!logarithmic_ || value > 0); }
  void include(double value) {
    if (!shows(value)) return;
    low_ = std::min(low_, scaled(value));
    high_ = std::max(high_, scaled(value));
  }
  // Rounds the range out to whole steps and chooses the ticks.
  void settle(int steps) {
    if (low_ > high_) low_ = 0, high_ = 1;
    if (high_ - low_ < 1e-9 * std::max(1.0, std::abs(high_))) {
      const double margin = std::max(1e-3, std::abs(high_) * 0.1);
      low_ -= margin, high_ += margin;
    }
    double step = std::pow(10, std::floor(std::log10((high_ - low_) / steps)));
    for (const double factor : {2.0, 2.5, 2.0}) {
      if ((high_ - low_) / step > steps) step *= factor;
    }
    if (logarithmic_) step = std::max(1.0, std::round(step));
    low_ = std::floor(low_ / step + 1e-9) * step;
    high_ = std::ceil(high_ / step - 1e-9) * step;
    for (double tick = low_; tick <= high_ + step / 2; tick += step) {
      ticks_.push_back(std::abs(tick) < step / 1e6 ? 0 : tick);
    }
  }
  double pixel(double value) const { return place(scaled(value)); }
  // Each tick's pixel and label.
  std::vector<std::pair<double, std::string>> ticks() const {
    std::vector<std::pair<double, std::string>> result;
    for (const double tick : ticks_) {
      result.emplace_back(place(tick), fmt::format("{:.4g}", logarithmic_ ? std::pow(10, tick) : tick));
    }
    return result;
  }

 private:
  double scaled(double value) const { return logarithmic_ ? std::log10(value) : value; }
  double place(double at) const { return from_pixel_ + (at - low_) / (high_ - low_) * (to_pixel_ - from_pixel_); }

  bool logarithmic_;
  double from_pixel_, to_pixel_;
  double low_ = std::numeric_limits<double>::infinity(), high_ = -low_;
  std::vector<double> ticks_;
};

std::string text(double x, double y, const char* anchor, const std::string& content, const std::string& more = "") {
  return fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>)", x, y, anchor, more,
                     escape_html(content));
}

// Title, frame, labels, legend, and the grid of the vertical axis.
std::string frame(const PlotOptions& options, const Axis& y, const std::vector<PlotSeries>& series) {
  std::string svg = fmt::format(R"(<svg class="plot" viewBox="0 0 {} {}" role="img" aria-label="{}">)", kWidth, kHeight,
                                escape_html(options.title));
  svg += text(kLeft, 16, "start", options.title, R"( class="title")");
  for (const auto& [at, label] : y.ticks()) {
    svg +=
        fmt::format(R"(<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>)", kLeft, kWidth - kRight, at, at);
    svg += text(kLeft - 6, at + 4, "end", label);
  }
  svg += text((kLeft + kWidth - kRight) / 2, kHeight - 8, "middle", options.x_label);
  svg += text(14, (kTop + kHeight - kBottom) / 2, "middle", options.y_label,
              fmt::format(R"~( transform="rotate(-90 14 {:.0f})")~", (kTop + kHeight - kBottom) / 2));
  double at = kWidth - kRight;
  for (size_t i = series.size(); i-- > 0;) {
    if (series[i].name.empty()) continue;
    svg += text(at, 16, "end", series[i].name, fmt::format(R"( style="fill:{}")", colour(i)));
    at -= 7.0 * static_cast<double>(series[i].name.size()) + 14;
  }
  return svg;
}

// Places of the points of one series; one that cannot be shown is a break, marked by NaN. Of many points that share a
// pixel only the lowest and the highest are kept.
std::vector<std::pair<double, double>> thin(const PlotSeries& series, const Axis& x, const Axis& y) {
  const size_t points = std::min(series.x.size(), series.y.size());
  constexpr size_t kMostPoints = 2000;
  const size_t bucket = std::max<size_t>(1, 2 * points / kMostPoints);
  const double gap = std::numeric_limits<double>::quiet_NaN();
  std::vector<std::pair<double, double>> places;
  for (size_t begin = 0; begin < points; begin += bucket) {
    const size_t end = std::min(points, begin + bucket);
    std::vector<size_t> shown;
    for (size_t i = begin; i < end; ++i) {
      if (x.shows(series.x[i]) && y.shows(series.y[i])) shown.push_back(i);
    }
    if (shown.empty()) {
      places.emplace_back(gap, gap);
      continue;
    }
    const auto [low, high] = std::ranges::minmax_element(shown, {}, [&](size_t i) { return series.y[i]; });
    places.emplace_back(x.pixel(series.x[std::min(*low, *high)]), y.pixel(series.y[std::min(*low, *high)]));
    if (*low != *high)
      places.emplace_back(x.pixel(series.x[std::max(*low, *high)]), y.pixel(series.y[std::max(*low, *high)]));
  }
  return places;
}

}  // namespace

std::string plot_lines(const PlotOptions& options, const std::vector<PlotSeries>& series) {
  Axis x(options.logarithmic_x, kLeft, kWidth - kRight), y(options.logarithmic_y, kHeight - kBottom, kTop);
  for (const PlotSeries& one : series) {
    for (size_t i = 0; i < std::min(one.x.size(), one.y.size()); ++i) {
      if (!x.shows(one.x[i]) || !y.shows(one.y[i])) continue;
      x.include(one.x[i]);
      y.include(one.y[i]);
    }
  }
  x.settle(8);
  y.settle(6);
  std::string svg = frame(options, y, series);
  for (const auto& [at, label] : x.ticks()) svg += text(at, kHeight - kBottom + 16, "middle", label);
  for (size_t i = 0; i < series.size(); ++i) {
    std::string path;
    bool drawing = false;
    for (const auto& [px, py] : thin(series[i], x, y)) {
      if (std::isnan(px)) {
        drawing = false;
      } else if (options.points) {
        svg += fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="3" style="fill:{}"/>)", px, py, colour(i));
      } else {
        fmt::format_to(std::back_inserter(path), "{}{:.1f} {:.1f}", drawing ? 'L' : 'M', px, py);
        drawing = true;
      }
    }
    if (!path.empty()) svg += fmt::format(R"(<path d="{}" style="stroke:{}"/>)", path, colour(i));
  }
  return svg + "</svg>\n";
}

std::string plot_stacked_bars(const PlotOptions& options, const std::vector<std::string>& categories,
                              const std::vector<PlotSeries>& series) {
  const auto value = [&](const PlotSeries& one, size_t category) {
    return category < one.y.size() && std::isfinite(one.y[category]) ? std::max(0.0, one.y[category]) : 0.0;
  };
  Axis y(false, kHeight - kBottom, kTop);
  y.include(0);
  for (size_t category = 0; category < categories.size(); ++category) {
    double sum = 0;
    for (const PlotSeries& one : series) sum += value(one, category);
    y.include(sum);
  }
  y.settle(6);
  std::string svg = frame(options, y, series);
  const double slot = (kWidth - kRight - kLeft) / static_cast<double>(std::max<size_t>(1, categories.size()));
  for (size_t category = 0; category < categories.size(); ++category) {
    const double left = kLeft + slot * (static_cast<double>(category) + 0.15);
    double sum = 0;
    for (size_t i = 0; i < series.size(); ++i) {
      const double from = y.pixel(sum), to = y.pixel(sum += value(series[i], category));
      svg += fmt::format(R"(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="fill:{}"/>)", left, to,
                         0.7 * slot, from - to, colour(i));
    }
    svg += text(left + 0.35 * slot, kHeight - kBottom + 16, "middle", categories[category]);
  }
  return svg + "</svg>\n";
}

}  // namespace distill::core
