// From what the user names to a student ready to be trained: its model, and the tokenizer and texts that go with it.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <vector>

#include "data/tokenizer.h"
#include "data/trace_reader.h"
#include "distill/model_package.h"
#include "distill/objective.h"
#include "nn/causal_lm.h"
#include "nn/model_options.h"

namespace distill {

struct StudentSource {
  // A config.json-like file, for a new model; or a model (directory, GGUF file, run) whose weights it begins with.
  std::filesystem::path student;
  // Where the tokenizer comes from if the student has none. Empty: the path that the traces name as their teacher.
  std::filesystem::path teacher{};
  // For a new model: whose tokenizer and chat template it gets. Empty: the teacher's.
  std::filesystem::path tokenizer{};
  bool initialise_from_teacher = false;  // for a new model: begin as a piece of the teacher instead of at random
  uint64_t seed = 0;                     // of random weights
};

struct Student {
  std::unique_ptr<nn::CausalLM> model;
  ModelPackage package;
  std::shared_ptr<const data::Tokenizer> tokenizer;
  std::vector<int32_t> stop_tokens;   // that end an answer
  std::filesystem::path text_source;  // the model that tokenizer and chat template come from
};

// Throws Error naming the file, key or fingerprints if a part is missing or damaged, if the tokenizer is not the one
// the traces were made with (unless `other_tokenizer` says what to do then), or the vocabulary of the traces or of the
// student's tokenizer is larger than the student's.
Student make_student(const StudentSource& source, const data::TraceReader& traces, at::ScalarType compute,
                     bool recompute_activations = false, OtherTokenizer other_tokenizer = OtherTokenizer::kRefuse);

// The traces as this student is to read them: as they are, or where its tokenizer is another one, in its tokens
// (retokenised_traces.h). Throws as RetokenisedTraces does, and if the teacher's files are not to be found.
std::shared_ptr<const data::TraceSource> traces_for(const Student& student, const StudentSource& source,
                                                    std::shared_ptr<const data::TraceReader> traces,
                                                    OtherTokenizer other_tokenizer);

}  // namespace distill
