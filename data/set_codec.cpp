#include "data/set_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "core/config.h"
#include "core/error.h"
#include "data/adaptive_coder.h"
#include "data/little_endian.h"
#include "data/magnitude.h"
#include "data/set_position.h"
#include "data/target_encoder.h"
#include "data/weight_grid.h"

namespace distill::data {
namespace {

// What is coded under which table.
enum Context : unsigned {
  kHeadCount,
  kTailCount,
  kMultiplicity,
  kHeadRank,               // 8: number of the head
  kLevel = kHeadRank + 8,  // 4 x 5: number of the head, heads that follow
  kGap = kLevel + 20,      // 8 x 10: tail tokens that remain, rank reached
  kContexts = kGap + 80,
};

unsigned head_rank_context(size_t head) {
  return kHeadRank + static_cast<unsigned>(std::min<size_t>(head, 7));
}

unsigned level_context(size_t head, size_t heads) {
  return kLevel + static_cast<unsigned>(std::min<size_t>(head, 3) * 5 + std::min<size_t>(heads - head - 1, 4));
}

unsigned gap_context(size_t remaining, uint32_t reached) {
  // 1, 2, 3, 4, 5-6, 7-10, 11-18, more.
  unsigned left = 7;
  if (remaining <= 4) {
    left = static_cast<unsigned>(remaining) - 1;
  } else if (remaining <= 18) {
    left = static_cast<unsigned>(std::bit_width(remaining - 3)) + 2;
  }
  const unsigned place = reached == 0 ? 0 : 1 + std::min(static_cast<unsigned>(std::bit_width(reached)) / 2, 8u);
  return kGap + left * 10 + place;
}

constexpr unsigned kLevelSymbolBits = 6;  // further bits of a level are raw

// Weight of the class that a symbol's count falls into: classes are half octaves.
uint64_t class_weight(uint8_t value) {
  return value == 0 ? 0 : static_cast<uint64_t>(std::sqrt(static_cast<double>(uint64_t{1} << (value + 3))));
}

std::vector<uint8_t> table_classes(std::span<const uint64_t> counts) {
  const uint64_t total = std::accumulate(counts.begin(), counts.end(), uint64_t{0});
  std::vector<uint8_t> classes(counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] == 0) continue;
    // Relative to 2^15, so that every class is below 32.
    const double scaled = std::max(1.0, static_cast<double>(counts[i]) / static_cast<double>(total) * 32768);
    classes[i] = static_cast<uint8_t>(1 + std::floor(2 * std::log2(scaled)));
  }
  return classes;
}

RansTable table_of(std::span<const uint8_t> classes) {
  std::vector<uint64_t> weights(classes.size());
  std::ranges::transform(classes, weights.begin(), class_weight);
  // A table that nothing was coded under; a damaged stream may still come here.
  if (std::ranges::all_of(classes, [](uint8_t value) { return value == 0; })) weights[0] = 1;
  return RansTable(normalise_frequencies(weights));
}

}  // namespace

// Everything that a shard's documents share.
struct SetCodec::Tables {
  std::vector<uint8_t> id_classes;      // [vocabulary], bit width of the number of times an id is stored
  std::vector<int32_t> id_of;           // [vocabulary], ids by falling class, the lower id first
  std::vector<uint32_t> rank_of;        // [vocabulary], the inverse
  std::vector<uint8_t> symbol_classes;  // [contexts, symbols]
  std::vector<RansTable> symbols;       // [contexts]
  WeightGrid grid{kLevelSymbolBits};
  unsigned weight_bits = kLevelSymbolBits;

  void rank(std::vector<uint8_t> classes) {
    id_classes = std::move(classes);
    id_of.resize(id_classes.size());
    std::iota(id_of.begin(), id_of.end(), 0);
    std::ranges::stable_sort(id_of, std::ranges::greater{}, [&](int32_t id) { return id_classes[id]; });
    rank_of.resize(id_of.size());
    for (size_t rank = 0; rank < id_of.size(); ++rank) rank_of[id_of[rank]] = static_cast<uint32_t>(rank);
  }
  void set_symbols(std::vector<uint8_t> classes) {
    symbol_classes = std::move(classes);
    symbols.clear();
    for (unsigned context = 0; context < kContexts; ++context) {
      symbols.push_back(
          table_of(std::span(symbol_classes).subspan(context * Magnitude::kSymbols, Magnitude::kSymbols)));
    }
  }
  void set_weight_bits(unsigned bits) {
    weight_bits = bits;
    grid = WeightGrid(bits);
  }

  // The token that was drawn is the likeliest to be in its own target: it has rank 0, all others one more than theirs.
  uint32_t rank(int32_t id, int32_t drawn) const { return id == drawn ? 0 : rank_of[id] + 1; }
};

namespace {

unsigned lanes_of(size_t positions) {
  return static_cast<unsigned>(std::min<size_t>(positions, rans::kLanes));
}

int32_t drawn_token(const TraceDocument& document, size_t position) {
  return document.tokens[static_cast<size_t>(document.prompt_length) + position];
}

// Hands everything there is to code about a document to `sink`, in the order in which it is decoded:
// sink.symbol(lane, context, symbol), sink.raw(lane, value, bits, context).
template <typename Sink>
class Emitter {
 public:
  Emitter(const TraceDocument& document, const SparseTargets& targets, const TraceProvenance& provenance,
          const SetCodec::Tables& tables, Sink& sink)
      : document_(document), targets_(targets), provenance_(provenance), tables_(tables), sink_(sink) {}

  void run() {
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
      reduce(targets_[position], provenance_.targets, tables_.grid, random, at.set);
    } catch (...) {
      core::rethrow_with_context(fmt::format("position {}", position));
    }
    at.drawn = drawn_token(document_, position);
    at.reached = 0;
    at.tail.clear();
    for (size_t i = 0; i < at.set.tail.size(); ++i) {
      at.tail.push_back(uint64_t{tables_.rank(at.set.tail[i], at.drawn)} << 32 | at.set.counts[i]);
    }
    std::ranges::sort(at.tail);
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
    const unsigned extra = tables_.weight_bits - kLevelSymbolBits;
    bool more = true;
    for (size_t head = 0; more; ++head) {
      more = false;
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        const Lane& at = group_[lane];
        if (head >= at.set.head.size()) continue;
        number(lane, head_rank_context(head), tables_.rank(at.set.head[head], at.drawn));
      }
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        const SetPosition& set = group_[lane].set;
        if (head >= set.head.size()) continue;
        const unsigned context = level_context(head, set.head.size());
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
        number(lane, gap_context(at.tail.size() - i, at.reached), rank - at.reached);
        at.reached = rank + 1;
        if (provenance_.targets.draws > 0) number(lane, kMultiplicity, count - 1);
        more = true;
      }
    }
  }

  const TraceDocument& document_;
  const SparseTargets& targets_;
  const TraceProvenance& provenance_;
  const SetCodec::Tables& tables_;
  Sink& sink_;
  unsigned lanes_ = 0;
  std::array<Lane, rans::kLanes> group_;
};

template <typename Sink>
void emit(const TraceDocument& document, const SparseTargets& targets, const TraceProvenance& provenance,
          const SetCodec::Tables& tables, Sink& sink) {
  Emitter<Sink>(document, targets, provenance, tables, sink).run();
}

struct EncodingSink {
  const SetCodec::Tables& tables;
  RansEncoder encoder;
  void symbol(unsigned lane, unsigned context, uint32_t symbol) { encoder.put(lane, tables.symbols[context], symbol); }
  void raw(unsigned lane, uint32_t value, unsigned bits, unsigned) { encoder.put_raw(lane, value, bits); }
};

struct CountingSink {
  std::vector<uint64_t>& counts;  // [contexts, symbols]
  void symbol(unsigned, unsigned context, uint32_t symbol) { ++counts[context * Magnitude::kSymbols + symbol]; }
  void raw(unsigned, uint32_t, unsigned, unsigned) {}
};

// Information content in bits of what names tokens and of what says how much they weigh.
struct MeasuringSink {
  const SetCodec::Tables& tables;
  double ids = 0, weights = 0;
  double& part(unsigned context) {
    return context == kMultiplicity || (context >= kLevel && context < kGap) ? weights : ids;
  }
  void symbol(unsigned, unsigned context, uint32_t symbol) {
    const unsigned frequency = std::max<unsigned>(1, tables.symbols[context].interval(symbol).frequency);
    part(context) += rans::kScaleBits - std::log2(frequency);
  }
  void raw(unsigned, uint32_t, unsigned bits, unsigned context) { part(context) += bits; }
};

// The mirror image of Emitter, straight into SparseTargets.
class SetDecoder {
 public:
  SetDecoder(const TraceDocument& document, std::span<const std::byte> payload, const TraceProvenance& provenance,
             const SetCodec::Tables& tables, SparseTargets& out)
      : document_(document),
        spec_(provenance.targets),
        tables_(tables),
        positions_(static_cast<size_t>(document.completion_length())),
        stream_(payload, lanes_of(positions_)),
        out_(out) {}

  void run() {
    out_.clear();
    for (size_t begin = 0; begin < positions_; begin += rans::kLanes) {
      lanes_ = lanes_of(positions_ - begin);
      read_counts(begin);
      read_heads();
      read_tails();
      for (unsigned lane = 0; lane < lanes_; ++lane) complete(begin + lane, group_[lane]);
      core::check(!stream_.overrun(), "the coded stream is shorter than its contents");
    }
    stream_.finish();
  }

 private:
  struct Lane {
    uint32_t heads, tail;
    size_t begin;         // of the position in the output
    int32_t drawn;        // the document's own token
    uint32_t drawn_rank;  // its rank among the others, which stands for nothing
    uint32_t reached;     // by the tail's ranks
    double rest;          // what the heads so far left
    uint64_t counts;      // sum of the tail's
  };

  uint32_t number(unsigned lane, unsigned context) {
    const uint32_t symbol = stream_.get(lane, tables_.symbols[context]);
    const unsigned bits = Magnitude::bits_of(symbol);
    if (bits <= rans::kMaxRawBits) [[likely]]
      return Magnitude::value(symbol, stream_.get_raw(lane, bits));
    const uint32_t low = stream_.get_raw(lane, rans::kMaxRawBits);
    return Magnitude::value(symbol, low | stream_.get_raw(lane, bits - rans::kMaxRawBits) << rans::kMaxRawBits);
  }

  int32_t id_at(const Lane& lane, uint32_t rank) const {
    core::check(rank <= tables_.id_of.size() && rank != lane.drawn_rank, "rank {} in a vocabulary of {}", rank,
                tables_.id_of.size());
    return rank == 0 ? lane.drawn : tables_.id_of[rank - 1];
  }

  void read_counts(size_t begin) {
    heads_ = tails_ = 0;
    size_t end = out_.ids.size();
    const uint32_t most = max_ids(spec_);
    for (unsigned lane = 0; lane < lanes_; ++lane) group_[lane].heads = number(lane, kHeadCount);
    for (unsigned lane = 0; lane < lanes_; ++lane) group_[lane].tail = number(lane, kTailCount);
    for (unsigned lane = 0; lane < lanes_; ++lane) {
      Lane& at = group_[lane];
      core::check(at.heads <= most && at.tail <= most - at.heads, "{} + {} ids in a position of {} targets", at.heads,
                  at.tail, spec_.to_string());
      at.begin = end;
      at.drawn = drawn_token(document_, begin + lane);
      at.drawn_rank = tables_.rank_of[at.drawn] + 1;
      at.reached = 0;
      at.rest = 1;
      at.counts = at.tail;
      end += at.heads + at.tail;
      heads_ = std::max(heads_, at.heads);
      tails_ = std::max(tails_, at.tail);
    }
    // A stream may say much in few bytes; no document that this program writes says more.
    constexpr size_t kMostIds = size_t{1} << 28;
    core::check(end <= kMostIds, "more than {} ids in a document", kMostIds);
    out_.ids.resize(end);
    out_.weights.resize(end);
  }

  void read_heads() {
    const unsigned extra = tables_.weight_bits - kLevelSymbolBits;
    for (uint32_t head = 0; head < heads_; ++head) {
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        const Lane& at = group_[lane];
        if (head < at.heads) out_.ids[at.begin + head] = id_at(at, number(lane, head_rank_context(head)));
      }
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        Lane& at = group_[lane];
        if (head >= at.heads) continue;
        uint32_t level = stream_.get(lane, tables_.symbols[level_context(head, at.heads)]) << extra;
        if (extra > 0) level |= stream_.get_raw(lane, extra);
        core::check(level < tables_.grid.levels(), "level {} of a grid of {}", level, tables_.grid.levels());
        const double weight = at.rest * tables_.grid.share(level);
        out_.weights[at.begin + head] = static_cast<float>(weight);
        at.rest -= weight;
      }
    }
  }

  void read_tails() {
    const bool drawn = spec_.draws > 0;
    for (uint32_t i = 0; i < tails_; ++i) {
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        Lane& at = group_[lane];
        if (i >= at.tail) continue;
        // Both below 2^31: no overflow; id_at() bounds what is reached.
        const uint32_t rank = at.reached + number(lane, gap_context(at.tail - i, at.reached));
        out_.ids[at.begin + at.heads + i] = id_at(at, rank);
        at.reached = rank + 1;
        if (!drawn) continue;
        const uint32_t more = number(lane, kMultiplicity);
        out_.weights[at.begin + at.heads + i] = 1 + static_cast<float>(more);  // below 2^24 where it makes sense
        at.counts += more;
      }
    }
  }

  // The tail's weights and the end of the position. Ranks of the tail ascend, so only heads may come twice.
  void complete(size_t position, const Lane& at) {
    const std::span all = std::span(out_.ids).subspan(at.begin, at.heads + at.tail);
    check_distinct(position, all, at.heads);
    const std::span weights = std::span(out_.weights).subspan(at.begin + at.heads, at.tail);
    const double unit = at.rest / static_cast<double>(at.counts);
    for (float& weight : weights)
      weight = static_cast<float>(unit * (spec_.draws > 0 ? static_cast<double>(weight) : 1));
    // Only a list of the most probable ids may leave something uncovered.
    core::check(at.tail > 0 || !spec_.random() || at.rest == 0, "position {}: weights that do not sum to 1", position);
    out_.uncovered.push_back(at.tail > 0 ? 0.0f : static_cast<float>(std::max(0.0, at.rest)));
    out_.offsets.push_back(static_cast<int64_t>(at.begin + all.size()));
  }

  void check_distinct(size_t position, std::span<const int32_t> ids, size_t heads) {
    bool distinct = true;
    if (heads <= 32) {
      for (const int32_t id : ids.first(heads)) distinct &= std::ranges::count(ids, id) == 1;
    } else {
      sorted_.assign(ids.begin(), ids.end());
      std::ranges::sort(sorted_);
      distinct = std::ranges::adjacent_find(sorted_) == sorted_.end();
    }
    core::check(distinct, "position {}: an id appears twice", position);
  }

  const TraceDocument& document_;
  const TargetSpec& spec_;
  const SetCodec::Tables& tables_;
  size_t positions_;
  RansDecoder stream_;
  SparseTargets& out_;
  unsigned lanes_ = 0;
  std::array<Lane, rans::kLanes> group_{};
  uint32_t heads_ = 0, tails_ = 0;  // most of the group
  std::vector<int32_t> sorted_;
};

}  // namespace

SetCodec::SetCodec(const TraceProvenance& provenance, std::unique_ptr<const Tables> tables)
    : provenance_(provenance), tables_(std::move(tables)) {}

SetCodec::~SetCodec() = default;

SetCodec::SetCodec(const nlohmann::json& description, std::span<const std::byte> model,
                   const TraceProvenance& provenance)
    : provenance_(provenance) {
  core::ConfigReader reader(description, "codec");
  reader.require<std::string>("name");
  reader.require<int64_t>("version");
  const auto bits = reader.require<int64_t>("weight_bits");
  if (bits < kLevelSymbolBits || bits > 16) reader.reject("weight_bits", "is out of range");
  reader.finish();
  core::check(provenance.targets.mode != TargetMode::kFull, "codec {} does not hold full targets", kName);
  const auto vocab = static_cast<size_t>(provenance.vocab_size);
  std::vector<uint8_t> classes = core::with_context(
      "codec tables", [&] { return decode_adaptively(model, vocab + kContexts * Magnitude::kSymbols); });
  auto tables = std::make_unique<Tables>();
  tables->set_symbols({classes.begin() + static_cast<ptrdiff_t>(vocab), classes.end()});
  classes.resize(vocab);
  tables->rank(std::move(classes));
  tables->set_weight_bits(static_cast<unsigned>(bits));
  tables_ = std::move(tables);
}

nlohmann::json SetCodec::description() const {
  return {{"name", kName}, {"version", 1}, {"weight_bits", tables_->weight_bits}};
}

std::vector<std::byte> SetCodec::model() const {
  std::vector<uint8_t> classes = tables_->id_classes;
  classes.insert(classes.end(), tables_->symbol_classes.begin(), tables_->symbol_classes.end());
  std::vector<std::byte> out;
  encode_adaptively(classes, out);
  return out;
}

void SetCodec::encode(const TraceDocument& document, const SparseTargets& targets, std::vector<std::byte>& out) const {
  EncodingSink sink{*tables_, {}};
  emit(document, targets, provenance_, *tables_, sink);
  sink.encoder.finish(lanes_of(targets.positions()), out);
}

void SetCodec::decode(const TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const {
  SetDecoder(document, payload, provenance_, *tables_, out).run();
}

TargetCodec::Sizes SetCodec::sizes(const Trace& trace, std::span<const std::byte>) const {
  MeasuringSink sink{*tables_};
  emit(trace.document, trace.targets, provenance_, *tables_, sink);
  return {.ids = sink.ids / 8, .weights = sink.weights / 8};
}

struct SetCodecTrainer::State {
  TraceProvenance provenance;
  std::unique_ptr<SetCodec::Tables> tables;
  std::vector<uint64_t> id_counts, symbol_counts;
};

SetCodecTrainer::SetCodecTrainer(const TraceProvenance& provenance) : state_(std::make_unique<State>()) {
  state_->provenance = provenance;
  state_->tables = std::make_unique<SetCodec::Tables>();
  state_->tables->set_weight_bits(weight_bits(provenance.targets));
  state_->id_counts.resize(static_cast<size_t>(provenance.vocab_size));
  state_->symbol_counts.resize(kContexts * Magnitude::kSymbols);
}

SetCodecTrainer::~SetCodecTrainer() = default;

void SetCodecTrainer::count_ids(const TraceDocument&, const SparseTargets& targets) {
  for (const int32_t id : targets.ids) ++state_->id_counts[id];
}

void SetCodecTrainer::count_symbols(const TraceDocument& document, const SparseTargets& targets) {
  if (state_->tables->id_of.empty()) {
    std::vector<uint8_t> classes(state_->id_counts.size());
    for (size_t id = 0; id < classes.size(); ++id) {
      classes[id] = static_cast<uint8_t>(std::min<uint64_t>(31, std::bit_width(state_->id_counts[id])));
    }
    state_->tables->rank(std::move(classes));
  }
  CountingSink sink{state_->symbol_counts};
  emit(document, targets, state_->provenance, *state_->tables, sink);
}

std::unique_ptr<const TargetCodec> SetCodecTrainer::finish() {
  std::vector<uint8_t> classes;
  for (unsigned context = 0; context < kContexts; ++context) {
    const auto row =
        table_classes(std::span(state_->symbol_counts).subspan(context * Magnitude::kSymbols, Magnitude::kSymbols));
    classes.insert(classes.end(), row.begin(), row.end());
  }
  state_->tables->set_symbols(std::move(classes));
  return std::unique_ptr<const TargetCodec>(new SetCodec(state_->provenance, std::move(state_->tables)));
}

}  // namespace distill::data
