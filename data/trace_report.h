// What sets of traces hold, cost and lose, side by side, as a page for a browser.
#pragma once

#include <filesystem>
#include <span>

#include "core/html_report.h"

namespace distill::data {

// Tables and plots of each set, a directory of shards or a shard: documents, bytes per token by what they are spent on,
// fidelity as it was measured at capture, calibration, lengths and ids per token. Reads everything. Throws Error if a
// set cannot be read.
core::HtmlReport report_traces(std::span<const std::filesystem::path> sets);

}  // namespace distill::data
