#include "data/set_codec.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <utility>

#include "core/config.h"
#include "core/error.h"
#include "data/adaptive_coder.h"
#include "data/little_endian.h"
#include "data/magnitude.h"
#include "data/set_decoder.h"
#include "data/set_position.h"
#include "data/target_encoder.h"
#include "data/trace_record.h"
#include "data/weight_grid.h"

namespace distill::data {
namespace {

using namespace set_context;

size_t common_prefix(std::span<const int32_t> a, std::span<const int32_t> b) {
  return static_cast<size_t>(std::ranges::mismatch(a, b).in1 - a.begin());
}

// Hands everything there is to code about a document to `sink`, in the order in which it is decoded:
// sink.symbol(lane, context, symbol), sink.raw(lane, value, bits, context).
template <typename Sink>
class Emitter {
 public:
  // `opening` as in SetTables, `ranks` as IdOrder::ranks() gives them.
  Emitter(const TraceDocument& document, const SparseTargets& targets, const TraceProvenance& provenance,
          std::span<const int32_t> opening, std::span<const uint32_t> ranks, const WeightGrid& grid, Sink& sink)
      : document_(document),
        targets_(targets),
        provenance_(provenance),
        opening_(opening),
        ranks_(ranks),
        grid_(grid),
        sink_(sink) {}

  void run(bool tokens) {
    if (tokens) emit_tokens();
    const size_t positions = targets_.positions();
    core::check(positions == static_cast<size_t>(document_.completion_length()), "{} targets for {} completion tokens",
                positions, document_.completion_length());
    const uint64_t stream = target_stream(document_.key);
    for (size_t begin = 0; begin < positions; begin += rans::kLanes) {
      lanes_ = lanes_of(positions - begin);
      for (unsigned lane = 0; lane < lanes_; ++lane) load(lane, begin + lane, stream);
      emit_counts();
      emit_heads();
      emit_tails();
    }
  }

 private:
  struct Lane {
    SetPosition set;
    int32_t drawn = 0;
    std::vector<uint64_t> tail;  // ascending: rank in the upper half, count in the lower
    uint32_t reached = 0;
  };

  void load(unsigned lane, size_t position, uint64_t stream) {
    Lane& at = group_[lane];
    core::Philox random = rounding_draws(provenance_.sampling.seed, stream, position);
    try {
      reduce(targets_[position], provenance_.targets, grid_, random, at.set);
    } catch (...) {
      core::rethrow_with_context(fmt::format("position {}", position));
    }
    at.drawn = document_.completion()[position];
    at.reached = 0;
    at.tail.clear();
    for (size_t i = 0; i < at.set.tail.size(); ++i) {
      at.tail.push_back(uint64_t{rank(at.set.tail[i], at.drawn)} << 32 | at.set.counts[i]);
    }
    std::ranges::sort(at.tail);
  }

  uint32_t rank(int32_t id) const {
    const uint32_t rank = ranks_[static_cast<size_t>(id)];
    core::check(rank != IdOrder::kNone, "id {} is not in the tables", id);
    return rank;
  }
  // The token that was drawn is the likeliest to be in its own target: it has rank 0, all others one more than theirs.
  uint32_t rank(int32_t id, int32_t drawn) const { return id == drawn ? 0 : rank(id) + 1; }

  void emit_tokens() {
    const size_t shared = common_prefix(opening_, document_.prompt());
    number(0, kShared, static_cast<uint32_t>(shared));
    uint32_t before = 0;
    for (size_t i = shared; i < document_.tokens.size(); ++i) {
      const uint32_t next = rank(document_.tokens[i]);
      number(i % rans::kLanes, token(before), next);
      before = next;
    }
  }

  void number(unsigned lane, unsigned context, uint32_t value) {
    const Magnitude magnitude = Magnitude::of(value);
    sink_.symbol(lane, context, magnitude.symbol);
    const unsigned low = std::min(magnitude.bits, rans::kMaxRawBits);
    if (low > 0) sink_.raw(lane, magnitude.raw, low, context);
    if (magnitude.bits > low) sink_.raw(lane, magnitude.raw >> low, magnitude.bits - low, context);
  }

  void emit_counts() {
    for (unsigned lane = 0; lane < lanes_; ++lane)
      number(lane, kHeadCount, static_cast<uint32_t>(group_[lane].set.head.size()));
    for (unsigned lane = 0; lane < lanes_; ++lane)
      number(lane, kTailCount, static_cast<uint32_t>(group_[lane].set.tail.size()));
  }

  void emit_heads() {
    const unsigned extra = grid_.bits() - kLevelSymbolBits;
    bool more = true;
    for (size_t head = 0; more; ++head) {
      more = false;
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        const Lane& at = group_[lane];
        if (head >= at.set.head.size()) continue;
        number(lane, head_rank(head), rank(at.set.head[head], at.drawn));
      }
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        const SetPosition& set = group_[lane].set;
        if (head >= set.head.size()) continue;
        const unsigned context = level(head, set.head.size());
        sink_.symbol(lane, context, set.levels[head] >> extra);
        if (extra > 0) sink_.raw(lane, set.levels[head], extra, context);
        more = true;
      }
    }
  }

  void emit_tails() {
    bool more = true;
    for (size_t i = 0; more; ++i) {
      more = false;
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        Lane& at = group_[lane];
        if (i >= at.tail.size()) continue;
        const auto rank = static_cast<uint32_t>(at.tail[i] >> 32), count = static_cast<uint32_t>(at.tail[i]);
        number(lane, gap(at.tail.size() - i, at.reached), rank - at.reached);
        at.reached = rank + 1;
        if (provenance_.targets.draws > 0) number(lane, kMultiplicity, count - 1);
        more = true;
      }
    }
  }

  const TraceDocument& document_;
  const SparseTargets& targets_;
  const TraceProvenance& provenance_;
  std::span<const int32_t> opening_;
  std::span<const uint32_t> ranks_;
  const WeightGrid& grid_;
  Sink& sink_;
  unsigned lanes_ = 0;
  std::array<Lane, rans::kLanes> group_;
};

using SymbolTables = std::span<const RansTable, kContexts>;

struct EncodingSink {
  SymbolTables tables;
  RansEncoder encoder{};
  void symbol(unsigned lane, unsigned context, uint32_t symbol) { encoder.put(lane, tables[context], symbol); }
  void raw(unsigned lane, uint32_t value, unsigned bits, unsigned) { encoder.put_raw(lane, value, bits); }
};

struct CountingSink {
  std::vector<uint64_t>& counts;  // [contexts, symbols]
  void symbol(unsigned, unsigned context, uint32_t symbol) { ++counts[context * Magnitude::kSymbols + symbol]; }
  void raw(unsigned, uint32_t, unsigned, unsigned) {}
};

// Information content in bits.
struct MeasuringSink {
  SymbolTables tables;
  TargetCodec::Sizes bits{};
  double& part(unsigned context) {
    if (context >= kShared) return bits.tokens;
    return context == kMultiplicity || (context >= kLevel && context < kGap) ? bits.weights : bits.ids;
  }
  void symbol(unsigned, unsigned context, uint32_t symbol) {
    const unsigned frequency = std::max<unsigned>(1, tables[context].interval(symbol).frequency);
    part(context) += rans::kScaleBits - std::log2(frequency);
  }
  void raw(unsigned, uint32_t, unsigned bits, unsigned context) { part(context) += bits; }
};

}  // namespace

SetCodec::SetCodec(const TraceProvenance& provenance, std::vector<std::byte> model)
    : provenance_(provenance),
      own_model_(std::move(model)),
      model_(own_model_),
      grid_(&WeightGrid::of(weight_bits(provenance.targets))) {}

SetCodec::SetCodec(const nlohmann::json& description, std::span<const std::byte> model,
                   const TraceProvenance& provenance)
    : provenance_(provenance), model_(model) {
  core::ConfigReader reader(description, "codec");
  reader.require<std::string>("name");
  version_ = reader.require<int64_t>("version");
  const auto bits = reader.require<int64_t>("weight_bits");
  if (bits < kLevelSymbolBits || bits > 16) reader.reject("weight_bits", "is out of range");
  reader.finish();
  core::check(provenance.targets.mode != TargetMode::kFull, "codec {} does not hold full targets", kName);
  grid_ = &WeightGrid::of(static_cast<unsigned>(bits));
}

SetCodec::~SetCodec() {
  SetTableCache::shared().forget(this);
}

std::shared_ptr<const SetTables> SetCodec::tables() const {
  return SetTableCache::shared().get(
      this, [this] { return SetTables::decode(model_, static_cast<size_t>(provenance_.vocab_size), holds_tokens()); });
}

nlohmann::json SetCodec::description() const {
  return {{"name", kName}, {"version", version_}, {"weight_bits", grid_->bits()}};
}

void SetCodec::encode(const TraceDocument& document, const SparseTargets& targets, std::vector<std::byte>& out) const {
  core::check(holds_tokens(), "version {} of codec {} is only read", version_, kName);
  const auto tables = this->tables();
  EncodingSink sink{tables->symbols};
  Emitter(document, targets, provenance_, tables->opening, tables->ranks(), *grid_, sink).run(true);
  sink.encoder.finish(lanes_of(document.tokens.size()), out);
}

void SetCodec::decode_tokens(TraceDocument& document, std::span<const std::byte> payload) const {
  if (holds_tokens()) decode_set_tokens(document, payload, *tables());
}

void SetCodec::decode(TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const {
  const auto tables = this->tables();
  decode_sets(document, payload, provenance_.targets, *tables, *grid_, out, DecodePath::kFastest);
}

TargetCodec::Sizes SetCodec::sizes(const Trace& trace, std::span<const std::byte>) const {
  const auto tables = this->tables();
  MeasuringSink sink{tables->symbols};
  Emitter(trace.document, trace.targets, provenance_, tables->opening, tables->ranks(), *grid_, sink)
      .run(holds_tokens());
  return {.ids = sink.bits.ids / 8, .weights = sink.bits.weights / 8, .tokens = sink.bits.tokens / 8};
}

struct SetCodecTrainer::State {
  TraceProvenance provenance;
  std::string first_prompt_id;
  std::vector<int32_t> opening;         // the first prompt, cut to what another shares with it once ids are counted
  size_t shared = 0;                    // the most that one did so far
  std::vector<uint64_t> id_counts;      // [vocabulary]
  std::vector<uint8_t> classes;         // of the ids, once they are counted
  std::vector<uint32_t> ranks;          // likewise
  std::vector<uint64_t> symbol_counts;  // [contexts, symbols]
};

SetCodecTrainer::SetCodecTrainer(const TraceProvenance& provenance) : state_(std::make_unique<State>()) {
  state_->provenance = provenance;
  state_->id_counts.resize(static_cast<size_t>(provenance.vocab_size));
  state_->symbol_counts.resize(kContexts * Magnitude::kSymbols);
}

SetCodecTrainer::~SetCodecTrainer() = default;

void SetCodecTrainer::count_ids(const TraceDocument& document, const SparseTargets& targets) {
  State& state = *state_;
  const auto count = [&](int32_t id) { ++state.id_counts[static_cast<size_t>(id)]; };
  std::ranges::for_each(targets.ids, count);
  if (state.opening.empty()) {
    state.first_prompt_id = document.key.prompt_id;
    state.opening.assign(document.prompt().begin(), document.prompt().end());
  }
  const size_t shared = common_prefix(state.opening, document.prompt());
  // Other answers to the first prompt share all of it, and say nothing of the other prompts.
  if (document.key.prompt_id != state.first_prompt_id) state.shared = std::max(state.shared, shared);
  std::ranges::for_each(std::span(document.tokens).subspan(shared), count);
}

void SetCodecTrainer::count_symbols(const TraceDocument& document, const SparseTargets& targets) {
  State& state = *state_;
  if (state.classes.empty()) {
    for (const int32_t id : std::span(state.opening).subspan(state.shared)) ++state.id_counts[static_cast<size_t>(id)];
    state.opening.resize(state.shared);
    for (const uint64_t count : state.id_counts) {
      state.classes.push_back(static_cast<uint8_t>(std::min<uint64_t>(31, std::bit_width(count))));
    }
    state.ranks = IdOrder(state.classes).ranks();
  }
  CountingSink sink{state.symbol_counts};
  const WeightGrid& grid = WeightGrid::of(weight_bits(state.provenance.targets));
  Emitter(document, targets, state.provenance, state.opening, state.ranks, grid, sink).run(true);
}

std::unique_ptr<const TargetCodec> SetCodecTrainer::finish() {
  for (unsigned context = 0; context < kContexts; ++context) {
    const auto row =
        symbol_classes(std::span(state_->symbol_counts).subspan(context * Magnitude::kSymbols, Magnitude::kSymbols));
    state_->classes.insert(state_->classes.end(), row.begin(), row.end());
  }
  std::vector<std::byte> model;
  append_value(model, static_cast<uint32_t>(state_->opening.size()));
  append_tokens(model, state_->opening, token_bytes(state_->provenance.vocab_size));
  encode_adaptively(state_->classes, model);
  return std::unique_ptr<const TargetCodec>(new SetCodec(state_->provenance, std::move(model)));
}

}  // namespace distill::data
