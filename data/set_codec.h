// The entropy-coded form of all sparse target modes, and of the tokens: `sets`. What a position holds is reduced to its
// essence (which ids, exact weights on a grid, the rest shared out evenly or by counts) and coded with rANS under
// tables that the whole shard shares. Layout in docs/trace-format.md, "sets".
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "data/set_tables.h"
#include "data/target_codec.h"
#include "data/weight_grid.h"

namespace distill::data {

// Weights become one of a few values: those of exactly kept tokens as shares of what the tokens before them left, on a
// grid uniform in the arcsine of the root, rounded at random so that their expectation is kept. The error of a single
// share r is at most one step, pi sqrt(r (1 - r)) / (2^weight_bits - 1) to first order.
class SetCodec final : public TargetCodec {
 public:
  static constexpr std::string_view kName = "sets";
  static constexpr int64_t kVersion = 2;  // what is written; version 1, without tokens, can be read

  // From a shard, whose `model` outlives it and is read when tables are needed first (they lie in SetTableCache).
  SetCodec(const nlohmann::json& description, std::span<const std::byte> model, const TraceProvenance& provenance);
  ~SetCodec() override;

  nlohmann::json description() const override;
  std::vector<std::byte> model() const override { return {model_.begin(), model_.end()}; }
  bool holds_tokens() const override { return version_ > 1; }
  void encode(const TraceDocument& document, const SparseTargets& targets, std::vector<std::byte>& out) const override;
  void decode(TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const override;
  void decode_tokens(TraceDocument& document, std::span<const std::byte> payload) const override;
  Sizes sizes(const Trace& trace, std::span<const std::byte> payload) const override;

 private:
  friend class SetCodecTrainer;
  SetCodec(const TraceProvenance& provenance, std::vector<std::byte> model);
  std::shared_ptr<const SetTables> tables() const;

  TraceProvenance provenance_;
  int64_t version_ = kVersion;
  std::vector<std::byte> own_model_;  // of a codec that was just trained
  std::span<const std::byte> model_;
  const WeightGrid* grid_;
};

// Learns the tables of one shard. Two passes over its documents, in the same order: count_ids() for all, then
// count_symbols() for all, then finish().
class SetCodecTrainer {
 public:
  explicit SetCodecTrainer(const TraceProvenance& provenance);
  ~SetCodecTrainer();
  void count_ids(const TraceDocument& document, const SparseTargets& targets);
  void count_symbols(const TraceDocument& document, const SparseTargets& targets);
  std::unique_ptr<const TargetCodec> finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace distill::data
