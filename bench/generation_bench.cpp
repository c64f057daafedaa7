// Speed of generation: for each batch size, reads prompts of random tokens and generates with every answer at its full
// length. Prints one JSON object per batch size; generation_bench.py runs it beside its peers.
//   generation_bench MODEL [prompt tokens = 64] [new tokens = 64] [batch sizes = 1 16] ...
// OMP_NUM_THREADS limits its threads. DISTILL_BENCH_CLOCK=cpu measures processor time, for one thread on a machine that
// others use too. DISTILL_BENCH_DRAFTS=N lets the model's prediction module guess N tokens ahead; none by default.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/measurement.h"
#include "core/philox.h"
#include "data/model_files.h"
#include "distill/load_model.h"
#include "kernels/threads.h"
#include "nn/generation_engine.h"

namespace distill::bench {
namespace {

double seconds() {
  static const char* const clock = std::getenv("DISTILL_BENCH_CLOCK");
  return clock && std::string_view(clock) == "cpu" ? processor_seconds() : wall_seconds();
}

struct Workload {
  int64_t batch, prompt_tokens, new_tokens;
};

struct Timing {
  double prefill_seconds = 0;  // until the first token of every answer is drawn
  double decode_seconds = 0;   // for all tokens after the first
  double tokens_per_pass = 1;
};

int64_t draft_tokens() {
  const char* const drafts = std::getenv("DISTILL_BENCH_DRAFTS");
  return drafts ? std::atoi(drafts) : 0;
}

Timing measure(nn::CausalLM& model, const Workload& workload, uint64_t seed) {
  nn::GenerationEngine engine(model, nullptr,
                              {.max_sequences = workload.batch,
                               .cache_tokens = workload.batch * (workload.prompt_tokens + workload.new_tokens + 64),
                               .draft_tokens = draft_tokens()});
  int64_t next = 0;
  int64_t waiting_for_first = workload.batch;
  Timing timing;
  double start = seconds();
  engine.run(
      [&]() -> std::optional<nn::GenerationRequest> {
        if (next == workload.batch) return std::nullopt;
        nn::GenerationRequest request{.id = std::to_string(next++), .prompt = {}};
        request.options.max_new_tokens = workload.new_tokens;
        core::Philox random(seed, static_cast<uint64_t>(next), 0);
        for (int64_t i = 0; i < workload.prompt_tokens; ++i) {
          request.prompt.push_back(
              static_cast<int32_t>(random.next_below(static_cast<uint32_t>(model.shape().vocab_size))));
        }
        return request;
      },
      [](nn::Completion&&) {}, {.on_logits = [&](const at::Tensor&, std::span<const nn::LogitsRow> rows) {
        for (const auto& row : rows) waiting_for_first -= row.index == 0 ? 1 : 0;
        if (waiting_for_first > 0 || timing.prefill_seconds > 0) return;
        timing.prefill_seconds = seconds() - start;
        start = seconds();
      }});
  timing.decode_seconds = seconds() - start;
  timing.tokens_per_pass = nn::tokens_per_pass(engine.statistics().drafts);
  return timing;
}

void run(int argc, char** argv) {
  const auto argument = [&](int i, int64_t fallback) { return i < argc ? std::stoll(argv[i]) : fallback; };
  const int64_t prompt_tokens = argument(2, 64);
  const int64_t new_tokens = argument(3, 64);
  std::vector<int64_t> batches;
  for (int i = 4; i < argc; ++i) batches.push_back(std::stoll(argv[i]));
  if (batches.empty()) batches = {1, 16};

  const auto model = load_model(data::ModelFiles::open(argv[1]), {});
  for (const int64_t batch : batches) {
    const Workload workload{.batch = batch, .prompt_tokens = prompt_tokens, .new_tokens = new_tokens};
    measure(*model, {.batch = batch, .prompt_tokens = prompt_tokens, .new_tokens = 4}, 0);  // warm-up
    std::vector<Timing> timings;
    for (uint64_t repetition = 1; repetition <= 3; ++repetition) {
      timings.push_back(measure(*model, workload, repetition));
    }
    const auto best = [&](double Timing::*part) {
      return (*std::ranges::min_element(timings, {}, [&](const Timing& timing) { return timing.*part; })).*part;
    };
    const double prefill = best(&Timing::prefill_seconds);
    const double decode = best(&Timing::decode_seconds);
    std::printf("%s\n", nlohmann::json{{"batch", batch},
                                       {"prompt_tokens", prompt_tokens},
                                       {"new_tokens", new_tokens},
                                       {"prefill_tokens_per_second", batch * prompt_tokens / prefill},
                                       {"decode_tokens_per_second", batch * (new_tokens - 1) / decode},
                                       {"generated_tokens_per_second", batch * new_tokens / (prefill + decode)},
                                       {"tokens_per_pass", timings.front().tokens_per_pass},
                                       {"peak_memory_bytes", peak_resident_bytes()}}
                            .dump()
                            .c_str());
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace distill::bench

int main(int argc, char** argv) {
  distill::kernels::restart_with_short_spins(argv);
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s MODEL [prompt tokens] [new tokens] [batch sizes] ...\n", argv[0]);
    return 2;
  }
  try {
    const char* const threads = std::getenv("OMP_NUM_THREADS");
    distill::kernels::set_num_threads(threads ? std::atoi(threads) : 0);
    distill::bench::run(argc, argv);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
