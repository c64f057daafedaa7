#include "distill/spike_guard.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/config.h"

namespace distill {
namespace {

constexpr int64_t kWarmUp = 20;  // lengths to have seen before any counts as unusual
constexpr int64_t kMemory = 50;  // over about so many steps the mean is taken

}  // namespace

std::string SpikeGuard::judge(double loss, double gradient_norm) {
  std::string reason;
  bool usable = false;
  finite_ = std::isfinite(loss) && std::isfinite(gradient_norm);
  if (!std::isfinite(loss)) {
    reason = fmt::format("the loss is {}", loss);
  } else if (!std::isfinite(gradient_norm)) {
    reason = fmt::format("the gradient's length is {}", gradient_norm);
  } else if (options_.factor > 0 && state_.norms >= kWarmUp && gradient_norm > options_.factor * state_.usual_norm) {
    usable = clipped_;
    reason = fmt::format("the gradient's length is {:.3g}, {:.0f} times the usual one", gradient_norm,
                         gradient_norm / state_.usual_norm);
  }
  if (!reason.empty()) {
    skips_ = !usable || state_.in_a_row == 0;
    ++state_.in_a_row;
    return reason;
  }
  skips_ = false;
  state_.in_a_row = 0;
  state_.norms = std::min(state_.norms + 1, kMemory);
  state_.usual_norm += (gradient_norm - state_.usual_norm) / static_cast<double>(state_.norms);
  return {};
}

nlohmann::json SpikeGuard::to_json() const {
  return {{"usual_norm", state_.usual_norm}, {"norms", state_.norms}, {"in_a_row", state_.in_a_row}};
}

void SpikeGuard::restore(const nlohmann::json& json, const std::string& location) {
  state_ = {};
  if (json.is_null()) return;
  core::ConfigReader reader(json, location);
  state_.usual_norm = reader.require<double>("usual_norm");
  state_.norms = reader.require<int64_t>("norms");
  state_.in_a_row = reader.require<int64_t>("in_a_row");
  reader.finish();
}

}  // namespace distill
