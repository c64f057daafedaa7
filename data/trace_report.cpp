#include "data/trace_report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "data/trace_reader.h"
#include "data/trace_statistics.h"

namespace distill::data {
namespace {

struct Set {
  std::string name;
  TraceProvenance provenance;
  nlohmann::json statistics;
};

std::vector<std::vector<std::string>> rows_of(const std::vector<Set>& sets, auto&& row) {
  std::vector<std::vector<std::string>> rows;
  for (const Set& set : sets) rows.push_back(row(set));
  return rows;
}

std::string number(const nlohmann::json& value, int digits) {
  return fmt::format("{:.{}f}", value.get<double>(), digits);
}

void add_contents(core::HtmlReport& report, const std::vector<Set>& sets) {
  report.heading("What they hold");
  report.table({"set", "targets", "documents", "tokens", "prompt tokens", "ids per token", "correct", "stopped"},
               rows_of(sets, [](const Set& set) -> std::vector<std::string> {
                 const auto& s = set.statistics;
                 const auto documents = s["documents"].get<double>();
                 const auto share = [&](const nlohmann::json& count) {
                   return fmt::format("{:.1f} %", 100 * count.get<double>() / documents);
                 };
                 return {set.name,
                         s["targets"],
                         s["documents"].dump(),
                         s["tokens"].dump(),
                         s["prompt_tokens"].dump(),
                         number(s["ids_per_token"], 1),
                         share(s["verdicts"]["correct"]),
                         share(s["finish_reasons"]["stop"])};
               }));
}

void add_bytes(core::HtmlReport& report, const std::vector<Set>& sets) {
  constexpr std::array kParts{"ids", "weights", "tokens", "hidden", "overhead"};
  report.heading("What they cost");
  std::vector<std::string> names;
  for (const Set& set : sets) names.push_back(set.name);
  std::vector<core::PlotSeries> series;
  for (const char* part : kParts) {
    series.push_back({.name = part});
    for (const Set& set : sets) series.back().y.push_back(set.statistics["bytes_per_token"][part].get<double>());
  }
  report.stacked_bars({.title = "Bytes per token", .y_label = "bytes"}, names, series);
  report.table({"set", "bytes per token", "ids", "weights", "tokens", "hidden states", "overhead"},
               rows_of(sets, [&](const Set& set) -> std::vector<std::string> {
                 const auto& bytes = set.statistics["bytes_per_token"];
                 std::vector<std::string> row{set.name, number(bytes["total"], 2)};
                 for (const char* part : kParts) row.push_back(number(bytes[part], 2));
                 return row;
               }));
}

void add_fidelity(core::HtmlReport& report, const std::vector<Set>& sets) {
  report.heading("What they lose");
  report.paragraph(
      "Measured while the whole distributions were at hand, at every fourth token, with the weights as they are "
      "stored. "
      "Angle and norm ratio compare the gradient of a head's matrix over about 512 of these tokens with the gradient "
      "from whole distributions.");
  std::vector<core::PlotSeries> curves{{.name = "", .x = {0, 1}, .y = {0, 1}}};
  std::vector<std::vector<std::string>> rows;
  for (const Set& set : sets) {
    const auto& fidelity = set.statistics["fidelity"];
    if (fidelity.is_null()) {
      rows.push_back({set.name, "not measured", "", "", "", "", ""});
      continue;
    }
    rows.push_back({set.name, number(fidelity["gradient_angle_deg"], 2) + "°",
                    number(fidelity["gradient_norm_ratio"], 3), number(fidelity["kl"], 4),
                    number(fidelity["tail_mass"], 4), number(fidelity["ece"], 4), fidelity["positions"].dump()});
    curves.push_back({.name = set.name});
    for (const auto& bin : fidelity["calibration"]) {
      if (bin[0] == 0) continue;
      curves.back().x.push_back(bin[1].get<double>());
      curves.back().y.push_back(bin[2].get<double>());
    }
  }
  report.table(
      {"set", "gradient angle", "norm ratio", "KL(stored || full)", "tail mass", "calibration error", "measured"},
      rows);
  if (curves.size() > 1) {
    report.lines({.title = "Calibration of the most probable token",
                  .x_label = "weight that is stored",
                  .y_label = "probability"},
                 curves);
  }
}

// A histogram of the sets' shares.
void add_histogram(core::HtmlReport& report, const std::vector<Set>& sets, const char* key,
                   const core::PlotOptions& options) {
  std::vector<core::PlotSeries> series;
  for (const Set& set : sets) {
    core::PlotSeries& one = series.emplace_back();
    one.name = set.name;
    double sum = 0;
    for (const auto& bin : set.statistics[key]) sum += bin[1].get<double>();
    for (const auto& bin : set.statistics[key]) {
      one.x.push_back(bin[0].get<double>());
      one.y.push_back(bin[1].get<double>() / std::max(1.0, sum));
    }
  }
  report.lines(options, series);
}

}  // namespace

core::HtmlReport report_traces(std::span<const std::filesystem::path> paths) {
  std::vector<Set> sets;
  for (const auto& path : paths) {
    const TraceReader reader = TraceReader::open(path);
    const auto name = path.filename().empty() ? path.parent_path().filename() : path.filename();
    sets.push_back({name.string(), reader.provenance(), measure_traces(reader)});
  }
  core::HtmlReport report("Traces");
  add_contents(report, sets);
  add_bytes(report, sets);
  add_fidelity(report, sets);
  report.heading("How they are distributed");
  add_histogram(
      report, sets, "lengths",
      {.title = "Lengths of completions", .x_label = "tokens, at least", .y_label = "share", .logarithmic_x = true});
  add_histogram(report, sets, "id_counts", {.title = "Ids per token", .x_label = "ids", .y_label = "share"});
  for (const Set& set : sets) {
    report.heading("Where " + set.name + " comes from");
    report.preformatted(set.provenance.to_json().dump(2));
  }
  return report;
}

}  // namespace distill::data
