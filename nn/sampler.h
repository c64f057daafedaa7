// Draws the next token from a row of logits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "core/philox.h"

namespace distill::nn {

// Applied in the order of transformers' logits processors: temperature, top-k, top-p (of what top-k left), min-p.
struct SamplingOptions {
  double temperature = 1.0;  // 0 takes the most probable token
  int64_t top_k = 0;         // the k most probable tokens; 0 is no limit
  double top_p = 1.0;        // the fewest tokens, most probable first, whose probabilities reach it
  double min_p = 0.0;        // tokens at least this probable, relative to the most probable one

  // Throws UsageError naming the option that makes no sense.
  void validate() const;
};

struct Draw {
  int32_t token = 0;
  // Natural logarithm of the token's probability in the distribution drawn from, so after temperature and filters: 0
  // where the temperature is 0.
  double log_probability = 0;
};

// Reads the vocabulary from end to end twice, and with filters once more where it holds probable tokens; only tokens
// near a filter's border are sorted. Ties go to the lower id. Holds scratch space: one per thread.
class Sampler {
 public:
  // `options` are valid. Takes one number from `random`, none at temperature 0. Throws Error if a logit is NaN or
  // +infinity, or none is finite.
  Draw draw(std::span<const float> logits, const SamplingOptions& options, core::Philox random);

 private:
  struct Candidate {
    float logit;
    float weight;
    int32_t id;
  };
  static bool more_probable(const Candidate& a, const Candidate& b);
  struct Row {
    std::span<const float> logits;
    float maximum;
    size_t most_probable;  // index of the maximum
    float scale;           // 1 / temperature
    double total;          // sum of weights_
  };

  Draw draw_unfiltered(const Row& row, double uniform) const;
  // A logit that no token kept by the filters lies below.
  float lower_bound(const Row& row, const SamplingOptions& options);
  // Fills candidates_ with the tokens that the filters keep.
  void filter(const Row& row, const SamplingOptions& options);
  // Moves the most probable candidates to the front and returns how many of them it takes to reach `mass`.
  size_t count_most_probable(double mass);
  Draw draw_candidate(const Row& row, double uniform) const;

  std::vector<float> weights_;        // [vocab] exp((logit - maximum) / temperature)
  std::vector<float> chunk_sums_;     // of weights_
  std::vector<float> chunk_maxima_;   // of the logits
  std::vector<float> sorted_maxima_;  // scratch
  std::vector<Candidate> candidates_;
};

}  // namespace distill::nn
