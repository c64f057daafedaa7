// The fused head and loss against the same formula with all logits at once, as eager PyTorch computes it: time of
// forward and backward, and memory beyond the results. Both in this program, taking turns.
//   head_loss_bench [--quick] [--cpu-clock]    --cpu-clock: processor time on one thread, for machines that others use
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/measurement.h"
#include "kernels/head_loss/head_loss.h"
#include "kernels/head_loss/reference.h"
#include "kernels/threads.h"

namespace {

namespace bench = distill::bench;
using distill::kernels::Divergence;
using distill::kernels::HeadLossTargets;

constexpr const char* kKinds[] = {"forward KL", "reverse KL", "Jensen-Shannon"};

bool cpu_clock = false;

double now() {
  return cpu_clock ? bench::processor_seconds() : bench::wall_seconds();
}

struct Measurement {
  double seconds = 1e9;
  int64_t extra_bytes = 0;
};

template <typename Body>
void measure(Measurement& best, int64_t result_bytes, Body&& body) {
  bench::reset_peak_resident_bytes();
  const int64_t before = bench::resident_bytes();
  const double start = now();
  body();
  best.seconds = std::min(best.seconds, now() - start);
  best.extra_bytes = std::max(best.extra_bytes, bench::peak_resident_bytes() - before - result_bytes);
}

struct Shape {
  int64_t vocab, size, tokens;
};

HeadLossTargets stored_targets(const Shape& shape) {
  constexpr int64_t kIds = 64;
  const at::Tensor q = at::softmax(at::randn({shape.tokens, kIds}), -1) * 0.9;
  const int64_t stride = shape.vocab / kIds;
  return {.rows = at::arange(shape.tokens),
          .labels = at::randint(shape.vocab, {shape.tokens}, at::kLong),
          .offsets = at::arange(shape.tokens + 1) * kIds,
          .ids = (at::arange(kIds) * stride + at::randint(stride, {shape.tokens, kIds}, at::kLong)).flatten(),
          .weights = q.flatten(),
          .uncovered = at::full({shape.tokens}, 0.1f)};
}

// A teacher as wide as the student.
HeadLossTargets online_targets(const Shape& shape, at::ScalarType dtype) {
  return {.rows = at::arange(shape.tokens),
          .labels = at::randint(shape.vocab, {shape.tokens}, at::kLong),
          .teacher_hidden = at::randn({shape.tokens, shape.size}).to(dtype),
          .teacher_weight = (at::randn({shape.vocab, shape.size}) * 0.05).to(dtype)};
}

// Against stored targets, or, of a divergence that is named, against a teacher's logits.
void compare(const Shape& shape, at::ScalarType dtype, int repetitions, std::optional<Divergence> online = {}) {
  at::manual_seed(0);
  const at::Tensor hidden = at::randn({shape.tokens, shape.size}).to(dtype).requires_grad_();
  const at::Tensor weight = (at::randn({shape.vocab, shape.size}) * 0.05).requires_grad_();
  const HeadLossTargets targets = online ? online_targets(shape, dtype) : stored_targets(shape);
  const distill::kernels::HeadLossOptions options{.kind = online.value_or(Divergence::kForwardKl),
                                                  .divergence = online ? 1.0 : 0.9,
                                                  .cross_entropy = online ? 0.0 : 0.1};
  const auto eager_loss =
      online ? distill::kernels::reference::head_loss_eager_dense : distill::kernels::reference::head_loss_eager;
  const int64_t result_bytes = static_cast<int64_t>(hidden.nbytes() + weight.nbytes());

  Measurement fused;
  Measurement eager;
  double difference = 0;
  for (int i = 0; i < repetitions + 1; ++i) {  // the first round warms up
    if (i == 1) fused.seconds = eager.seconds = 1e9;
    at::Tensor losses[2];
    const auto clear = [&] {
      hidden.mutable_grad() = at::Tensor();
      weight.mutable_grad() = at::Tensor();
    };
    measure(fused, result_bytes, [&] {
      losses[0] = distill::kernels::head_loss(hidden, weight, targets, options, 1.0 / shape.tokens).loss;
      losses[0].backward();
    });
    clear();
    measure(eager, result_bytes, [&] {
      losses[1] = eager_loss(hidden, weight, targets, options, 1.0 / shape.tokens);
      losses[1].backward();
    });
    clear();
    difference = (losses[0] - losses[1]).abs().item<double>() / losses[1].item<double>();
    losses[0] = losses[1] = at::Tensor();
  }
  const double full_bytes = 4.0 * shape.vocab * shape.tokens;
  const char* name = dtype == at::kBFloat16 ? "bf16" : "fp32";
  const std::string kind = online ? kKinds[static_cast<size_t>(*online)] : "stored";
  fmt::print("{:>7} {:>5} {:>6} {} {:<14} {:8.3f} s {:8.3f} s {:6.2f} x   {:8.1f} MB {:8.1f} MB  {:5.1f} %   {:.1e}\n",
             shape.vocab, shape.size, shape.tokens, name, kind, fused.seconds, eager.seconds,
             eager.seconds / fused.seconds, fused.extra_bytes / 1e6, eager.extra_bytes / 1e6,
             100 * fused.extra_bytes / full_bytes, difference);
  fmt::print("{}\n", nlohmann::json({{"bench", "head_loss"},
                                     {"vocab", shape.vocab},
                                     {"hidden", shape.size},
                                     {"tokens", shape.tokens},
                                     {"dtype", name},
                                     {"targets", kind},
                                     {"threads", at::get_num_threads()},
                                     {"clock", cpu_clock ? "cpu" : "wall"},
                                     {"fused_seconds", fused.seconds},
                                     {"eager_seconds", eager.seconds},
                                     {"fused_extra_bytes", fused.extra_bytes},
                                     {"eager_extra_bytes", eager.extra_bytes},
                                     {"share_of_full_logits", fused.extra_bytes / full_bytes}})
                         .dump());
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto has = [&](const char* flag) { return std::ranges::find(arguments, flag) != arguments.end(); };
  cpu_clock = has("--cpu-clock");
  distill::kernels::set_num_threads(cpu_clock ? 1 : 0);
  fmt::print(
      "  vocab  size tokens dtype targets         fused      eager      faster     fused extra  eager extra  of logits "
      " loss "
      "differs\n");
  compare({49152, 384, 4096}, at::kBFloat16, 3);
  compare({49152, 384, 2048}, at::kFloat, 2);
  if (has("--quick")) return 0;
  compare({151936, 1024, 2048}, at::kBFloat16, 2);
  for (const auto kind : {Divergence::kForwardKl, Divergence::kReverseKl, Divergence::kJensenShannon}) {
    compare({151936, 1024, 2048}, at::kBFloat16, 1, kind);
  }
}
