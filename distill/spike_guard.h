// Keeps steps out of the weights whose loss or gradient is not a number, or whose gradient is far longer than usual.
// A single long gradient may be its batch's fault. A second one in a row is the weights', which would stay where they
// are if it were skipped too: where steps are clipped, it is taken at that length and mostly leads back.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace distill {

struct SpikeGuardOptions {
  double factor = 20.0;   // how many times the usual length is too long; 0 minds numbers alone
  int64_t patience = 10;  // such steps in a row after which the run goes back to its last checkpoint
};

class SpikeGuard {
 public:
  // `clipped`: gradients that are taken are shortened to a length of their own.
  SpikeGuard(const SpikeGuardOptions& options, bool clipped) : options_(options), clipped_(clipped) {}

  // What is wrong with a step, as in "the gradient's length is inf", or empty. Each step is judged once.
  std::string judge(double loss, double gradient_norm);
  // Whether something was wrong with the last step.
  bool alarmed() const { return state_.in_a_row > 0; }
  // Whether that is more than one long gradient, which may be its batch's fault.
  bool weights_in_doubt() const { return alarmed() && (!finite_ || state_.in_a_row > 1); }
  // Whether the last step must not reach the weights.
  bool skips() const { return skips_; }
  // Whether so many steps in a row went wrong that the weights themselves must be at fault.
  bool exhausted() const { return state_.in_a_row >= options_.patience; }

  // Part of a checkpoint.
  nlohmann::json to_json() const;
  // Throws UsageError naming `location` if that is not what to_json() gave; null begins anew.
  void restore(const nlohmann::json& json, const std::string& location);

 private:
  struct State {
    double usual_norm = 0;  // a running mean of the lengths of gradients nothing was wrong with
    int64_t norms = 0;      // that went into it
    int64_t in_a_row = 0;   // steps with something wrong up to now
  };
  SpikeGuardOptions options_;
  bool clipped_;
  State state_;
  bool skips_ = false;
  bool finite_ = true;  // loss and gradient of the last step
};

}  // namespace distill
