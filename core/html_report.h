// A report as one HTML file that needs nothing else: no script, no font, no network.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/svg_plot.h"

namespace distill::core {

// With & < > " ' as entities.
std::string escape_html(std::string_view text);

// Collects what is added in order. All text is escaped.
class HtmlReport {
 public:
  explicit HtmlReport(std::string title) : title_(std::move(title)) {}

  void heading(std::string_view text);
  void paragraph(std::string_view text);
  // Text as it is, in a fixed-width font: commands, settings, generated answers.
  void preformatted(std::string_view text);
  // Cells that look like numbers are aligned to the right.
  void table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);
  void lines(const PlotOptions& options, const std::vector<PlotSeries>& series);
  void stacked_bars(const PlotOptions& options, const std::vector<std::string>& categories,
                    const std::vector<PlotSeries>& series);

  // The whole document in UTF-8.
  std::string html() const;
  // The file appears complete. Throws Error naming it.
  void write(const std::filesystem::path& path) const;

 private:
  std::string title_, body_;
};

}  // namespace distill::core
