#include "distill/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/names.h"

namespace distill {
namespace {

constexpr std::array<std::string_view, 4> kNames{"cosine", "wsd", "linear", "constant"};

// Where `step` lies between `begin` (0) and `end` (1), which is later.
double progress(int64_t step, int64_t begin, int64_t end) {
  return std::clamp(static_cast<double>(step - begin) / static_cast<double>(end - begin), 0.0, 1.0);
}

}  // namespace

std::string_view to_string(ScheduleShape shape) {
  return kNames[static_cast<size_t>(shape)];
}

std::span<const std::string_view> schedule_names() {
  return kNames;
}

ScheduleShape parse_schedule(std::string_view name) {
  return core::parse_name<ScheduleShape>(kNames, name, "schedule");
}

double Schedule::rate(int64_t step) const {
  const int64_t warmup = std::min(warmup_steps, steps);
  if (step <= warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
  switch (shape) {
    case ScheduleShape::kCosine:
      return peak * (floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * progress(step, warmup, steps))));
    case ScheduleShape::kLinear:
      return peak * (1 - (1 - floor) * progress(step, warmup, steps));
    case ScheduleShape::kWsd: {
      const auto decay = static_cast<int64_t>(std::llround(decay_share * static_cast<double>(steps)));
      if (decay == 0) break;
      return peak * (1 - (1 - floor) * std::sqrt(progress(step, std::max(warmup, steps - decay), steps)));
    }
    case ScheduleShape::kConstant:
      break;
  }
  return peak;
}

}  // namespace distill
