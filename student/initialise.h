// A student that starts as a piece of its teacher: some of its layers, and of each layer the heads, neurons and hidden
// dimensions that carry most weight. Starting so, instead of from random numbers, is what makes short distillations
// work (Sanh et al. 2019, DistilBERT; Muralidharan et al. 2024, Minitron).
//
//   layers      evenly spaced, the first and the last among them (Shleifer & Rush 2020)
//   hidden      one choice for the whole model, since the residual stream runs through it: the dimensions whose columns
//               and rows in all matrices of the chosen layers have the largest squared norms, each matrix counting
//               alike
//   neurons     per layer, by the product of the norms of their gate, up and down weights
//   heads       per layer, by the norms of their query-key and output-value products; whole groups of query heads that
//               share a key-value head where that is possible, else key-value heads are averaged (Ainslie et al. 2023,
//               GQA, §2.1)
//   head size   pairs of dimensions spread evenly, so that the rotary frequencies that stay span the same range;
//   queries
//               are scaled so that attention scores keep their size
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "data/model_files.h"
#include "data/weight_source.h"
#include "nn/causal_lm.h"
#include "student/dense_config.h"

namespace distill::student {

// Overwrites the parameters of `student`, a trainable model that was made from `config`. Throws Error naming the key of
// `config` that does not allow it: a size above the teacher's, another vocabulary, normalised queries and keys in one
// of the two only.
void initialise_from_teacher(nn::CausalLM& student, const DenseConfig& config, const DenseConfig& teacher_config,
                             const data::WeightSource& teacher);
void initialise_from_teacher(nn::CausalLM& student, const nlohmann::json& config, const data::ModelFiles& teacher);

// Which of the teacher's layers become the student's.
std::vector<int64_t> spaced_layers(int64_t teacher_layers, int64_t student_layers);

}  // namespace distill::student
