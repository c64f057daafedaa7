// Processor time of one draw on one thread for each kind of filter, at the vocabulary sizes of common models, beside
// sorting the whole row (what transformers does for top-p).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>
#include <vector>

#include "bench/measurement.h"
#include "core/philox.h"
#include "nn/sampler.h"

namespace {

using distill::bench::processor_seconds;
using distill::core::Philox;
using distill::nn::Sampler;
using distill::nn::SamplingOptions;

template <typename Body>
double microseconds(int repetitions, Body&& body) {
  const double start = processor_seconds();
  for (int i = 0; i < repetitions; ++i) body(i);
  return 1e6 * (processor_seconds() - start) / repetitions;
}

}  // namespace

int main() {
  const std::pair<const char*, SamplingOptions> cases[] = {
      {"greedy", {.temperature = 0}},  {"temperature", {}},
      {"top-k 50", {.top_k = 50}},     {"top-p 0.95", {.top_p = 0.95}},
      {"min-p 0.05", {.min_p = 0.05}}, {"top-k 50, top-p 0.95", {.top_k = 50, .top_p = 0.95}},
  };
  for (const size_t vocab : {size_t{49152}, size_t{151936}}) {
    std::vector<float> logits(vocab);
    Philox random(1, 0, 0);
    // Probabilities that fall like rank^-1.5, about four bits of entropy, in random order.
    for (size_t rank = 0; rank < vocab; ++rank) logits[rank] = -1.5f * std::log(static_cast<float>(rank + 1));
    for (size_t i = vocab - 1; i > 0; --i)
      std::swap(logits[i], logits[random.next_below(static_cast<uint32_t>(i + 1))]);
    std::vector<int32_t> order(vocab);
    const double sorting = microseconds(10, [&](int) {
      std::iota(order.begin(), order.end(), 0);
      std::ranges::sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    });
    std::printf("vocabulary %zu, sorting it takes %.0f us\n", vocab, sorting);
    Sampler sampler;
    for (const auto& [name, options] : cases) {
      const double time =
          microseconds(200, [&](int i) { sampler.draw(logits, options, Philox(1, 1, static_cast<uint64_t>(i))); });
      std::printf("  %-22s %8.1f us  %6.0fx faster than sorting\n", name, time, sorting / time);
    }
  }
}
