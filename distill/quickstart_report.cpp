#include "distill/quickstart_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <iterator>

#include "core/progress.h"

namespace distill {
namespace {

constexpr size_t kLabelWidth = 30;
constexpr size_t kColumnWidth = 14;
constexpr size_t kAnswerLength = 240;  // bytes of an answer that are shown

using Cell = std::function<std::string(const QuickstartModel&)>;

std::string row(const std::string& label, const std::vector<QuickstartModel>& models, const Cell& cell) {
  std::string line = fmt::format("{:<{}}", label, kLabelWidth);
  for (const auto& model : models) line += fmt::format("{:>{}}", cell(model), kColumnWidth);
  return line + "\n";
}

// A cell that only students have.
Cell of_student(const std::function<std::string(const Evaluation&)>& text) {
  return [text](const QuickstartModel& model) { return model.held_out ? text(*model.held_out) : std::string("-"); };
}

std::string speed(double tokens_per_second) {
  return tokens_per_second > 0 ? core::format_count(tokens_per_second) : "-";
}

// On one line, cut at a character's border.
std::string shorten(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  if (text.size() <= kAnswerLength) return text;
  size_t end = kAnswerLength;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U) --end;
  return text.substr(0, end) + " ...";
}

}  // namespace

std::string QuickstartReport::to_text() const {
  std::string text =
      fmt::format("\n{} traces, {} tokens of answers; {} traces held out. Each student: {} steps, {} tokens.\n\n",
                  traces.total_traces, core::format_count(static_cast<double>(traces.total_completion_tokens)),
                  held_out_traces, steps, core::format_count(static_cast<double>(tokens_per_student)));
  text += row("", models, [](const auto& model) { return model.name; });
  text += row("parameters", models,
              [](const auto& model) { return core::format_count(static_cast<double>(model.parameters)); });
  text += row("weights on disk", models,
              [](const auto& model) { return core::format_bytes(static_cast<double>(model.bytes)); });
  text += row("held out: loss (nats/token)", models,
              [](const auto& model) { return fmt::format("{:.3f}", model.cross_entropy); });
  text += row("held out: KL from the teacher", models,
              of_student([](const Evaluation& evaluation) { return fmt::format("{:.3f}", evaluation.divergence()); }));
  text += row("held out: same top token", models, of_student([](const Evaluation& evaluation) {
                return fmt::format("{:.1f} %", 100 * evaluation.agreement());
              }));
  text += row("training, tokens/s", models, [](const auto& model) { return speed(model.training_tokens_per_second); });
  text +=
      row("answering, tokens/s", models, [](const auto& model) { return speed(model.generation_tokens_per_second); });
  for (size_t i = 0; i < questions.size(); ++i) {
    text += fmt::format("\n> {}\n", shorten(questions[i]));
    for (const auto& model : models) text += fmt::format("  {:<12} {}\n", model.name, shorten(model.answers[i]));
  }
  return text + fmt::format("\nThe distilled student, for transformers and everything that reads its format: {}\n",
                            student.string());
}

nlohmann::ordered_json QuickstartReport::to_json() const {
  nlohmann::ordered_json json{{"seconds", seconds},
                              {"traces", traces.to_json()},
                              {"held_out_traces", held_out_traces},
                              {"steps", steps},
                              {"tokens_per_student", tokens_per_student},
                              {"student", student.string()},
                              {"models", nlohmann::ordered_json::array()},
                              {"questions", questions}};
  for (const auto& model : models) {
    nlohmann::ordered_json entry{{"name", model.name},
                                 {"parameters", model.parameters},
                                 {"bytes", model.bytes},
                                 {"cross_entropy", model.cross_entropy}};
    if (model.held_out) {
      entry["held_out"] = model.held_out->to_json();
      entry["training_tokens_per_second"] = model.training_tokens_per_second;
    }
    entry["generation_tokens_per_second"] = model.generation_tokens_per_second;
    entry["answers"] = model.answers;
    json["models"].push_back(std::move(entry));
  }
  return json;
}

}  // namespace distill
