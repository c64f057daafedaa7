#include "bench/peer_targets.h"

#include <ATen/ATen.h>
#include <zstd.h>

#include <bit>

#include "core/error.h"

namespace distill::bench {
namespace {

constexpr int64_t kKept = 128;

data::SparseTargets sparse(const at::Tensor& ids, const at::Tensor& log_probabilities) {
  const at::Tensor weights = log_probabilities.to(at::kFloat).exp().contiguous();
  const at::Tensor numbers = ids.to(at::kInt).contiguous();
  data::SparseTargets result;
  result.ids.assign(numbers.const_data_ptr<int32_t>(), numbers.const_data_ptr<int32_t>() + numbers.numel());
  result.weights.assign(weights.const_data_ptr<float>(), weights.const_data_ptr<float>() + weights.numel());
  for (int64_t row = 0; row < ids.size(0); ++row) {
    result.offsets.push_back((row + 1) * kKept);
    result.uncovered.push_back(std::max(0.0f, 1 - weights[row].sum().item<float>()));
  }
  return result;
}

// Each number in the lowest `bits` bits, one after the other.
std::vector<uint8_t> pack(const at::Tensor& ids, unsigned bits) {
  const at::Tensor numbers = ids.to(at::kInt).contiguous();
  const int32_t* values = numbers.const_data_ptr<int32_t>();
  std::vector<uint8_t> out((static_cast<size_t>(numbers.numel()) * bits + 7) / 8);
  size_t at = 0;
  for (int64_t i = 0; i < numbers.numel(); ++i) {
    for (unsigned bit = 0; bit < bits; ++bit, ++at) {
      out[at / 8] = static_cast<uint8_t>(out[at / 8] | (values[i] >> bit & 1) << at % 8);
    }
  }
  return out;
}

size_t compressed(const void* data, size_t bytes) {
  std::vector<char> out(ZSTD_compressBound(bytes));
  const size_t size = ZSTD_compress(out.data(), out.size(), data, bytes, 3);
  core::check(!ZSTD_isError(size), "zstd: {}", ZSTD_getErrorName(size));
  return size;
}

// The first 16 log-probabilities in bf16, the others as a0 + a1 t + … + a4 t⁴ + a5 √t fitted by least squares.
at::Tensor polynomial(const at::Tensor& log_probabilities) {
  constexpr int64_t kExact = 16;
  const at::Tensor head = log_probabilities.narrow(1, 0, kExact).to(at::kBFloat16).to(at::kFloat);
  const at::Tensor tail = log_probabilities.narrow(1, kExact, kKept - kExact).to(at::kDouble);
  const at::Tensor t = at::arange(kKept - kExact, at::kDouble);
  const at::Tensor basis = at::stack({at::ones_like(t), t, t.pow(2), t.pow(3), t.pow(4), t.sqrt()}, 1);
  const at::Tensor terms = at::linalg_pinv(basis).matmul(tail.t()).to(at::kFloat);  // [6, tokens]
  return at::cat({head, basis.matmul(terms.to(at::kDouble)).t().to(at::kFloat)}, 1);
}

}  // namespace

std::vector<PeerTargets> peer_targets(const at::Tensor& probabilities) {
  const auto [kept, ids] = probabilities.topk(kKept, 1);
  const at::Tensor exact = kept.log();
  const auto tokens = static_cast<double>(probabilities.size(0));
  const auto bits = static_cast<unsigned>(std::bit_width(static_cast<uint64_t>(probabilities.size(1) - 1)));
  const at::Tensor half = exact.to(at::kHalf).contiguous();
  const std::vector<uint8_t> packed = pack(ids, bits);
  const size_t zstd = compressed(half.const_data_ptr(), half.nbytes()) + compressed(packed.data(), packed.size());
  return {{"DistillKit k=128", 16 * 2 + 6 * 4 + kKept * bits / 8.0, sparse(ids, polynomial(exact))},
          {"Megatron top-128 fp16+zstd", static_cast<double>(zstd) / tokens, sparse(ids, half)},
          {"MaxText top-128 raw", kKept * 8.0, sparse(ids, exact)}};
}

}  // namespace distill::bench
