// Speed of a model alone, without an engine around it: prefill and decode through the block cache with the logits of
// the last position, at several batch sizes. Prints one JSON object per batch size and, last, one with the memory
// bandwidth that all threads reach together. Peak memory is the process's until then, memory before loading what its
// libraries take.
//   model_bench MODEL [bf16 | fp32] [threads = 0, all] [prompt tokens = 64] [new tokens = 64] [batch sizes = 1 16] ...
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "bench/measurement.h"
#include "data/model_files.h"
#include "distill/load_model.h"
#include "kernels/multiversion.h"
#include "kernels/threads.h"

namespace distill::bench {
namespace {

constexpr int64_t kBlockSize = 32;
constexpr int64_t kPiece = 512;  // of a prompt, as the generation engine reads it

// Seconds of a clock on the wall or, with DISTILL_BENCH_CLOCK=cpu, of the process's processor time.
double now() {
  static const bool cpu =
      std::getenv("DISTILL_BENCH_CLOCK") != nullptr && std::string_view(std::getenv("DISTILL_BENCH_CLOCK")) == "cpu";
  return cpu ? processor_seconds() : wall_seconds();
}

DISTILL_MULTIVERSION int64_t sum(const int64_t* values, int64_t count) {
  int64_t total = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < count; ++i) total += values[i];
  return total;
}

// Bytes per second at which all threads together read memory, each its own part in order; the best of a few passes.
double read_bandwidth() {
  const at::Tensor data = at::ones({int64_t{64} << 20}, at::kLong);  // 512 MB
  double best = 0;
  for (int i = 0; i < 8; ++i) {
    std::atomic<int64_t> total{0};
    const double start = now();
    at::parallel_for(0, data.numel(), 1, [&](int64_t begin, int64_t end) {
      total += sum(data.const_data_ptr<int64_t>() + begin, end - begin);
    });
    best = std::max(best, static_cast<double>(data.nbytes()) / (now() - start));
    if (total != data.numel()) std::abort();
  }
  return best;
}

// `batch` sequences that grow in step, each in its own row of blocks.
class Sequences {
 public:
  Sequences(nn::CausalLM& model, int64_t batch, int64_t max_tokens)
      : model_(model),
        batch_(batch),
        blocks_((max_tokens + kBlockSize - 1) / kBlockSize),
        cache_(model.make_cache(batch * blocks_, kBlockSize)),
        table_(at::arange(batch * blocks_, at::kInt).view({batch, blocks_})) {}

  void read_prompt(int64_t tokens) {
    for (int64_t begin = 0; begin < tokens; begin += kPiece) step(std::min(kPiece, tokens - begin));
  }

  // Feeds `count` tokens to each sequence, others to each, and computes the logits of the last ones.
  void step(int64_t count) {
    const at::Tensor positions = at::arange(length_, length_ + count, at::kLong).repeat({batch_});
    const at::Tensor sequence = at::arange(batch_, at::kLong).repeat_interleave(count);
    const at::Tensor first_slots = sequence * (blocks_ * kBlockSize);
    length_ += count;
    const nn::PackedBatch batch{.tokens = ((positions + sequence * 100003) * 7919 + 13) % model_.shape().vocab_size,
                                .positions = positions,
                                .sequence_offsets = at::arange(0, batch_ * count + 1, count, at::kInt)};
    const at::Tensor hidden = model_.forward(batch, *cache_,
                                             {.slots = first_slots + positions,
                                              .block_table = table_,
                                              .context_lengths = at::full({batch_}, length_, at::kInt)});
    model_.logits(hidden.view({batch_, count, -1}).select(1, count - 1).contiguous());
  }

  int64_t cache_bytes() const { return cache_->num_blocks() * cache_->block_size() * cache_->bytes_per_token(); }

 private:
  nn::CausalLM& model_;
  int64_t batch_;
  int64_t blocks_;
  std::unique_ptr<nn::KvCache> cache_;
  at::Tensor table_;
  int64_t length_ = 0;
};

int run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: model_bench MODEL [bf16|fp32] [threads] [prompt tokens] [new tokens] [batch sizes ...]\n");
    return 2;
  }
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool fp32 = arguments.size() > 1 && arguments[1] == "fp32";
  const auto number = [&](size_t index, int64_t fallback) {
    return index < arguments.size() ? std::stoll(arguments[index]) : fallback;
  };
  const int64_t threads = number(2, 0);
  const int64_t prompt = number(3, 64);
  const int64_t generated = number(4, 64);
  std::vector<int64_t> batches{1, 16};
  if (arguments.size() > 5) batches.clear();
  for (size_t i = 5; i < arguments.size(); ++i) batches.push_back(std::stoll(arguments[i]));

  kernels::set_num_threads(static_cast<int>(threads));
  const int64_t before_loading = peak_resident_bytes();
  const double start = now();
  const auto model = load_model(data::ModelFiles::open(arguments[0]), {.compute = fp32 ? at::kFloat : at::kBFloat16});
  const double load_seconds = now() - start;
  for (const int64_t batch : batches) {
    Sequences(*model, batch, prompt + 1).read_prompt(prompt);  // warms up
    Sequences sequences(*model, batch, prompt + generated);
    const double prefill_start = now();
    sequences.read_prompt(prompt);
    const double prefill = now() - prefill_start;
    const double decode_start = now();
    for (int64_t i = 0; i < generated; ++i) sequences.step(1);
    const double decode = now() - decode_start;
    const nlohmann::json line{{"batch", batch},
                              {"threads", at::get_num_threads()},
                              {"load_seconds", load_seconds},
                              {"prefill_tokens_per_second", static_cast<double>(batch * prompt) / prefill},
                              {"decode_tokens_per_second", static_cast<double>(batch * generated) / decode},
                              {"decode_step_ms", 1e3 * decode / static_cast<double>(generated)},
                              {"cache_bytes", sequences.cache_bytes()},
                              {"memory_before_loading_bytes", before_loading},
                              {"peak_memory_bytes", peak_resident_bytes()}};
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
  }
  std::printf("%s\n", nlohmann::json{{"read_bandwidth_GBps", read_bandwidth() / 1e9}}.dump().c_str());
  return 0;
}

}  // namespace
}  // namespace distill::bench

int main(int argc, char** argv) {
  distill::kernels::restart_with_short_spins(argv);
  try {
    return distill::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "model_bench: %s\n", error.what());
    return 1;
  }
}
