// report.html at the end of a run: curves, calibration, answers, settings and where everything came from.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "distill/trainer.h"

namespace distill {

// One held-out prompt.
struct AnswerSample {
  std::string prompt, traces, student;  // the traces' answer and the student's
};

// The student's answers to the prompts of these documents, at temperature 0, beside those of the traces.
std::vector<AnswerSample> sample_answers(const TrainingJob& job, const std::vector<size_t>& documents);

// Reads the run's metrics.jsonl and writes its report.html, whose path it returns. Throws Error naming the file.
std::filesystem::path write_training_report(const TrainingJob& job, const TrainingSummary& summary,
                                            const std::vector<AnswerSample>& samples);

}  // namespace distill
