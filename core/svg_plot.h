// Small plots as SVG text, for reports that are read in a browser.
#pragma once

#include <string>
#include <vector>

namespace distill::core {

struct PlotSeries {
  std::string name{};
  std::vector<double> x{};  // as many as y; ascending for lines
  std::vector<double> y{};
};

struct PlotOptions {
  std::string title{};
  std::string x_label{};
  std::string y_label{};
  bool logarithmic_x = false;
  bool logarithmic_y = false;
  bool points = false;  // marks instead of lines
};

// Values that are not finite, or not positive on a logarithmic axis, leave a gap. Long series are thinned out to a few
// points per pixel, their extremes kept. Without any value the axes stay empty.
std::string plot_lines(const PlotOptions& options, const std::vector<PlotSeries>& series);

// One bar for each of `categories`; the series (y alone counts: a value per category, not negative) lie on top of each
// other in it.
std::string plot_stacked_bars(const PlotOptions& options, const std::vector<std::string>& categories,
                              const std::vector<PlotSeries>& series);

}  // namespace distill::core
