#include "distill/training_report.h"

#include <fmt/format.h>

#include <map>
#include <utility>

#include "core/html_report.h"
#include "core/progress.h"
#include "core/text_file.h"
#include "distill/answer_sampler.h"

namespace distill {
namespace {

constexpr int64_t kAnswerTokens = 96;

// The values of a run's metrics by kind and name, over steps.
class Curves {
 public:
  explicit Curves(const std::filesystem::path& metrics) {
    core::for_each_json_line(metrics, [&](size_t, nlohmann::json&& line) {
      const std::string kind = line.value("kind", "");
      for (const auto& [name, value] : line.items()) {
        if (!value.is_number() || name == "step") continue;
        core::PlotSeries& series = series_[fmt::format("{} {}", kind, name)];
        series.x.push_back(line["step"].get<double>());
        series.y.push_back(value.get<double>());
      }
    });
  }
  // That of "train loss" and so on, under that name or another one; empty if the run has none.
  core::PlotSeries get(const std::string& key, const std::string& name = {}) const {
    const auto found = series_.find(key);
    core::PlotSeries series = found == series_.end() ? core::PlotSeries() : found->second;
    series.name = name.empty() ? key : name;
    return series;
  }

 private:
  std::map<std::string, core::PlotSeries> series_;
};

void add_curves(core::HtmlReport& report, const Curves& curves) {
  const auto both = [&](const std::string& name) {
    return std::vector{curves.get("train " + name, "training"), curves.get("validation " + name, "held out")};
  };
  const auto plot = [&](const char* title, const char* unit, const std::vector<core::PlotSeries>& series,
                        bool logarithmic = false) {
    report.lines({.title = title, .x_label = "step", .y_label = unit, .logarithmic_y = logarithmic}, series);
  };
  plot("Loss", "per token", both("loss"));
  plot("KL from the teacher", "nats per token", both("divergence"));
  plot("Agreement with the teacher's first choice", "share", both("agreement"));
  plot("Learning rate", "", {curves.get("train learning_rate")});
  plot("Length of the gradient", "", {curves.get("train gradient_norm")}, /*logarithmic=*/true);
  plot("Speed", "tokens per second", {curves.get("train tokens_per_second")});
}

void add_calibration(core::HtmlReport& report, const Calibration& calibration) {
  core::PlotSeries measured{.name = "student"};
  for (size_t b = 0; b < Calibration::kBins; ++b) {
    if (calibration.count[b] == 0) continue;
    measured.x.push_back(calibration.confidence[b] / calibration.count[b]);
    measured.y.push_back(calibration.hits[b] / calibration.count[b]);
  }
  report.heading("Calibration");
  report.paragraph(
      fmt::format("How often the student's first choice is the token that was written, by how sure it is. Expected "
                  "calibration error: {:.4f}.",
                  calibration.error()));
  report.lines({.title = "Calibration on held-out tokens", .x_label = "confidence", .y_label = "accuracy"},
               {measured, {.name = "perfect", .x = {0, 1}, .y = {0, 1}}});
}

void add_summary(core::HtmlReport& report, const TrainingSummary& summary) {
  std::vector<std::vector<std::string>> rows{
      {"steps", fmt::format("{}{}", summary.steps, summary.stopped_early ? " (validation no longer improved)" : "")},
      {"tokens", core::format_count(static_cast<double>(summary.tokens))},
      {"tokens per second", fmt::format("{:.0f}", summary.tokens_per_second)},
      {"waiting for data", fmt::format("{:.2f} % of the time", 100 * summary.loader_wait_share)},
      {"room in batches used", fmt::format("{:.2f} %", 100 * summary.packing_share)},
      {"steps skipped, rollbacks", fmt::format("{}, {}", summary.skipped, summary.rollbacks)}};
  if (summary.validation) {
    const Evaluation& held_out = *summary.validation;
    rows.push_back({"held-out loss", fmt::format("{:.4f}", held_out.loss())});
    rows.push_back({"held-out KL, nats per token", fmt::format("{:.4f}", held_out.divergence())});
    rows.push_back({"held-out perplexity", fmt::format("{:.3f}", held_out.perplexity())});
    rows.push_back({"held-out agreement", fmt::format("{:.2f} %", 100 * held_out.agreement())});
  }
  report.table({"", "this run"}, rows);
}

}  // namespace

std::vector<AnswerSample> sample_answers(const TrainingJob& job, const std::vector<size_t>& documents) {
  std::vector<AnswerSample> samples;
  std::vector<data::TraceDocument> traces;
  traces.reserve(documents.size());
  for (const size_t document : documents) traces.push_back(job.traces->read_document(document));
  const auto answers =
      write_answers(job.student, traces,
                    {.sampling = {.temperature = 0}, .max_new_tokens = kAnswerTokens, .stop_tokens = job.stop_tokens});
  const auto text = [&](std::span<const int32_t> tokens) { return job.tokenizer->decode(tokens); };
  for (size_t i = 0; i < traces.size(); ++i) {
    samples.push_back({text(traces[i].prompt()), text(traces[i].completion()), text(answers[i])});
  }
  return samples;
}

std::filesystem::path write_training_report(const TrainingJob& job, const TrainingSummary& summary,
                                            const std::vector<AnswerSample>& samples) {
  core::HtmlReport report("Training run " + job.run.filename().string());
  add_summary(report, summary);
  add_curves(report, Curves(job.run / "metrics.jsonl"));
  if (summary.validation) add_calibration(report, summary.validation->sums.calibration);
  if (!samples.empty()) report.heading("Answers to held-out prompts");
  for (const AnswerSample& sample : samples) {
    report.paragraph("Prompt, the answer in the traces, the student's answer:");
    report.preformatted(sample.prompt);
    report.preformatted(sample.traces);
    report.preformatted(sample.student);
  }
  report.heading("Settings");
  report.preformatted(job.recipe.to_json().dump(2));
  if (!job.teachers.empty()) {
    report.heading("Teachers that scored the tokens");
    report.preformatted(describe_teachers(job.teachers).dump(2));
  }
  report.heading("Student");
  report.preformatted(job.package.config.dump(2));
  report.heading("Traces");
  report.preformatted(job.traces->provenance().to_json().dump(2));
  const std::filesystem::path path = job.run / "report.html";
  report.write(path);
  return path;
}

}  // namespace distill
