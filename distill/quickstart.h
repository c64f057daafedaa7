// The main job in one go: a teacher answers prompts, a small student learns from the answers and from what the teacher
// thought of the alternatives, a second one from the answers alone, both are compared on answers they have not seen,
// and the first is exported.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "distill/quickstart_report.h"

namespace distill {

struct QuickstartOptions {
  std::filesystem::path teacher;  // a dense model: Hugging Face directory, GGUF file or checkpoint
  std::filesystem::path prompts;  // JSON lines, as data/prompts.h reads them
  std::filesystem::path student;  // its config.json; empty: quickstart_student() of the teacher's
  std::filesystem::path out;  // gets traces/, student.json, the runs distilled/ and hard-labels/, the exported models
                              // student-distilled/ and student-hard-labels/, and report.json
  uint64_t seed = 0;
  bool full = false;  // hours instead of minutes: more answers per prompt, longer ones, more steps
  int64_t steps = 0;  // of training, for each student; 0 leaves it to `full`
  std::string version;
};

// The config of a student for a teacher like SmolLM2-135M: the teacher's own with three layers of narrow MLPs. Its
// hidden dimensions stay as they are, so that the embedding, most of so small a model, can be taken over whole.
nlohmann::json quickstart_student(nlohmann::json teacher_config);

// Run again with the same options it goes on where it was stopped. Throws core::Interrupted if a signal ends it; Error
// if a part fails, among others where `out` holds traces or runs of another teacher or other settings.
QuickstartReport run_quickstart(const QuickstartOptions& options);

}  // namespace distill
