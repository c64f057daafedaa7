// The codecs without entropy coding: `plain` stores ids and weights of any sparse mode, `full` every log-probability.
#pragma once

#include "data/target_codec.h"

namespace distill::data {

class PlainCodec final : public TargetCodec {
 public:
  static constexpr std::string_view kName = "plain";
  explicit PlainCodec(int64_t vocab_size) : vocab_size_(vocab_size) {}
  nlohmann::json description() const override;
  void encode(const TraceDocument& document, const SparseTargets& targets, std::vector<std::byte>& out) const override;
  void decode(TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const override;
  Sizes sizes(const Trace& trace, std::span<const std::byte> payload) const override;

 private:
  int64_t vocab_size_;
};

class FullCodec final : public TargetCodec {
 public:
  static constexpr std::string_view kName = "full";
  explicit FullCodec(int64_t vocab_size) : vocab_size_(vocab_size) {}
  nlohmann::json description() const override;
  void encode(const TraceDocument& document, const SparseTargets& targets, std::vector<std::byte>& out) const override;
  void decode(TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const override;
  Sizes sizes(const Trace& trace, std::span<const std::byte> payload) const override;

 private:
  int64_t vocab_size_;
};

// Throws Error naming the position whose weights are not finite, negative, or don't sum to 1 with what is uncovered.
void check_masses(const SparseTargets& targets);

}  // namespace distill::data
