// The learning rate over a run.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace distill {

enum class ScheduleShape : uint8_t {
  kCosine,  // half a cosine from the peak to the floor (Loshchilov & Hutter 2017, SGDR, eq. 5)
  kWsd,     // warm-up, stable, decay: the peak until the last `decay_share` of the steps, then the floor is approached
            // by 1 - sqrt(progress) (Hu et al. 2024, MiniCPM, §4; Hägele et al. 2024, §4). A share of less than half
            // a step is none.
  kLinear,  // a straight line from the peak to the floor
  kConstant,  // the peak
};

// "cosine", "wsd", "linear", "constant".
std::string_view to_string(ScheduleShape shape);
std::span<const std::string_view> schedule_names();
// Throws UsageError that lists the names.
ScheduleShape parse_schedule(std::string_view name);

struct Schedule {
  ScheduleShape shape = ScheduleShape::kCosine;
  double peak = 1e-3;
  double floor = 0.1;         // the last step's rate as a share of the peak
  double decay_share = 0.2;   // WSD only
  int64_t warmup_steps = 20;  // the rate rises to the peak in equal steps, reaching it at step `warmup_steps`
  int64_t steps = 1000;

  // The rate of step 1 <= step <= steps.
  double rate(int64_t step) const;
};

}  // namespace distill
