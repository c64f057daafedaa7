// Keeps steps out of the weights whose loss or gradient is not a number, or whose gradient is far longer than usual.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace distill {

struct SpikeGuardOptions {
  double factor = 20.0;  // how many times the usual length is too long; 0 minds numbers alone
  int64_t patience = 3;  // steps skipped in a row after which the run goes back to its last checkpoint
};

class SpikeGuard {
 public:
  explicit SpikeGuard(const SpikeGuardOptions& options) : options_(options) {}

  // Why a step is to be skipped, as in "the gradient's length is inf", or empty. Each step is judged once.
  std::string judge(double loss, double gradient_norm);
  // Whether the last step was skipped.
  bool skipping() const { return state_.in_a_row > 0; }
  // Whether so many steps in a row were skipped that the weights themselves must be at fault.
  bool exhausted() const { return state_.in_a_row >= options_.patience; }

  // Part of a checkpoint.
  nlohmann::json to_json() const;
  // Throws UsageError naming `location` if that is not what to_json() gave; null begins anew.
  void restore(const nlohmann::json& json, const std::string& location);

 private:
  struct State {
    double usual_norm = 0;  // a running mean of the lengths of gradients that were not skipped
    int64_t norms = 0;      // that went into it
    int64_t in_a_row = 0;   // steps skipped up to now
  };
  SpikeGuardOptions options_;
  State state_;
};

}  // namespace distill
