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
void emit(const TraceDocument& document, const SparseTargets& targets, const TraceProvenance& provenance,
          const SetCodec::Tables& tables, Sink&& sink) {
  const size_t positions = targets.positions();
  core::check(positions == static_cast<size_t>(document.completion_length()), "{} targets for {} completion tokens",
              positions, document.completion_length());
  const auto number = [&](unsigned lane, unsigned context, uint32_t value) {
    const Magnitude magnitude = Magnitude::of(value);
    sink.symbol(lane, context, magnitude.symbol);
    const unsigned low = std::min(magnitude.bits, rans::kMaxRawBits);
    if (low > 0) sink.raw(lane, magnitude.raw, low, context);
    if (magnitude.bits > low) sink.raw(lane, magnitude.raw >> low, magnitude.bits - low, context);
  };

  std::array<SetPosition, rans::kLanes> group;
  std::array<std::vector<std::pair<uint32_t, uint32_t>>, rans::kLanes> tails;  // rank and count, ascending
  for (size_t begin = 0; begin < positions; begin += rans::kLanes) {
    const unsigned lanes = lanes_of(positions - begin);
    size_t heads = 0, most_tail = 0;
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const size_t position = begin + lane;
      // A stream apart from the draws of the target itself, which use small positions.
      core::Philox random = target_draws(provenance.sampling.seed, document.key, position | uint64_t{1} << 31);
      core::with_context(fmt::format("position {}", position),
                         [&] { reduce(targets[position], provenance.targets, tables.grid, random, group[lane]); });
      tails[lane].clear();
      for (size_t i = 0; i < group[lane].tail.size(); ++i) {
        tails[lane].emplace_back(tables.rank(group[lane].tail[i], drawn_token(document, position)),
                                 group[lane].counts[i]);
      }
      std::ranges::sort(tails[lane]);
      heads = std::max(heads, group[lane].head.size());
      most_tail = std::max(most_tail, group[lane].tail.size());
    }
    for (unsigned lane = 0; lane < lanes; ++lane)
      number(lane, kHeadCount, static_cast<uint32_t>(group[lane].head.size()));
    for (unsigned lane = 0; lane < lanes; ++lane)
      number(lane, kTailCount, static_cast<uint32_t>(group[lane].tail.size()));
    for (size_t head = 0; head < heads; ++head) {
      for (unsigned lane = 0; lane < lanes; ++lane) {
        const SetPosition& position = group[lane];
        if (head >= position.head.size()) continue;
        number(lane, head_rank_context(head), tables.rank(position.head[head], drawn_token(document, begin + lane)));
      }
      for (unsigned lane = 0; lane < lanes; ++lane) {
        const SetPosition& position = group[lane];
        if (head >= position.head.size()) continue;
        const unsigned context = level_context(head, position.head.size()),
                       extra = tables.weight_bits - kLevelSymbolBits;
        sink.symbol(lane, context, position.levels[head] >> extra);
        if (extra > 0) sink.raw(lane, position.levels[head], extra, context);
      }
    }
    std::array<uint32_t, rans::kLanes> reached{};
    for (size_t i = 0; i < most_tail; ++i) {
      for (unsigned lane = 0; lane < lanes; ++lane) {
        if (i >= tails[lane].size()) continue;
        const auto [rank, count] = tails[lane][i];
        number(lane, gap_context(tails[lane].size() - i, reached[lane]), rank - reached[lane]);
        reached[lane] = rank + 1;
        if (provenance.targets.draws > 0) number(lane, kMultiplicity, count - 1);
      }
    }
  }
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

// The mirror image of emit().
class SetDecoder {
 public:
  SetDecoder(const TraceDocument& document, std::span<const std::byte> payload, const TraceProvenance& provenance,
             const SetCodec::Tables& tables)
      : document_(document),
        spec_(provenance.targets),
        tables_(tables),
        positions_(static_cast<size_t>(document.completion_length())),
        stream_(payload, lanes_of(positions_)),
        seen_(tables.id_of.size()) {}

  void run(SparseTargets& out) {
    out.clear();
    for (size_t begin = 0; begin < positions_; begin += rans::kLanes) {
      const unsigned lanes = lanes_of(positions_ - begin);
      read_counts(lanes);
      read_heads(begin, lanes);
      read_tails(begin, lanes);
      for (unsigned lane = 0; lane < lanes; ++lane) {
        check_distinct(begin + lane, group_[lane]);
        expand(group_[lane], spec_, tables_.grid, out);
      }
    }
    stream_.finish();
  }

 private:
  uint32_t number(unsigned lane, unsigned context) {
    const uint32_t symbol = stream_.get(lane, tables_.symbols[context]);
    const unsigned bits = Magnitude::bits_of(symbol);
    if (bits == 0) return symbol;
    const unsigned low = std::min(bits, rans::kMaxRawBits);
    uint32_t raw = stream_.get_raw(lane, low);
    if (bits > low) raw |= stream_.get_raw(lane, bits - low) << low;
    return Magnitude::value(symbol, raw);
  }

  int32_t id_at(size_t position, uint32_t rank) const {
    if (rank == 0) return drawn_token(document_, position);
    core::check(rank <= tables_.id_of.size(), "position {}: rank {} in a vocabulary of {}", position, rank,
                tables_.id_of.size());
    return tables_.id_of[rank - 1];
  }

  void read_counts(unsigned lanes) {
    heads_ = tails_ = 0;
    for (unsigned lane = 0; lane < lanes; ++lane) {
      group_[lane].clear();
      const uint32_t heads = number(lane, kHeadCount);
      core::check(heads <= max_ids(spec_), "{} ids in a position of {} targets", heads, spec_.to_string());
      group_[lane].head.resize(heads);
      group_[lane].levels.resize(heads);
      heads_ = std::max<size_t>(heads_, heads);
    }
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const uint32_t tail = number(lane, kTailCount);
      core::check(tail <= max_ids(spec_) - group_[lane].head.size(), "{} more ids in a position of {} targets", tail,
                  spec_.to_string());
      group_[lane].tail.resize(tail);
      group_[lane].counts.assign(tail, 1);
      tails_ = std::max<size_t>(tails_, tail);
    }
  }

  void read_heads(size_t begin, unsigned lanes) {
    const unsigned extra = tables_.weight_bits - kLevelSymbolBits;
    for (size_t head = 0; head < heads_; ++head) {
      for (unsigned lane = 0; lane < lanes; ++lane) {
        SetPosition& position = group_[lane];
        if (head < position.head.size())
          position.head[head] = id_at(begin + lane, number(lane, head_rank_context(head)));
      }
      for (unsigned lane = 0; lane < lanes; ++lane) {
        SetPosition& position = group_[lane];
        if (head >= position.head.size()) continue;
        uint32_t level = stream_.get(lane, tables_.symbols[level_context(head, position.head.size())]) << extra;
        if (extra > 0) level |= stream_.get_raw(lane, extra);
        position.levels[head] = level;
      }
    }
  }

  void read_tails(size_t begin, unsigned lanes) {
    std::array<uint32_t, rans::kLanes> reached{};
    for (size_t i = 0; i < tails_; ++i) {
      for (unsigned lane = 0; lane < lanes; ++lane) {
        SetPosition& position = group_[lane];
        if (i >= position.tail.size()) continue;
        // Both below 2^31: no overflow; id_at() bounds what is reached.
        const uint32_t rank = reached[lane] + number(lane, gap_context(position.tail.size() - i, reached[lane]));
        position.tail[i] = id_at(begin + lane, rank);
        reached[lane] = rank + 1;
        if (spec_.draws > 0) position.counts[i] = 1 + number(lane, kMultiplicity);
      }
    }
  }

  void check_distinct(size_t position, const SetPosition& set) {
    const auto mark = static_cast<uint32_t>(position + 1);
    for (const auto* ids : {&set.head, &set.tail}) {
      for (const int32_t id : *ids) {
        core::check(seen_[id] != mark, "position {}: id {} appears twice", position, id);
        seen_[id] = mark;
      }
    }
  }

  const TraceDocument& document_;
  const TargetSpec& spec_;
  const SetCodec::Tables& tables_;
  size_t positions_;
  RansDecoder stream_;
  std::vector<uint32_t> seen_;  // [vocabulary], the last position, from 1, that had the id
  std::array<SetPosition, rans::kLanes> group_;
  size_t heads_ = 0, tails_ = 0;  // most of the group
};

unsigned default_weight_bits(const TargetSpec& spec) {
  // Shares of a long list are small and their errors add up; a few heads before a random tail need no more than the
  // tail's own noise.
  return spec.mode == TargetMode::kTopk ? 9 : 6;
}

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
  SetDecoder(document, payload, provenance_, *tables_).run(out);
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
  state_->tables->set_weight_bits(default_weight_bits(provenance.targets));
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
  emit(document, targets, state_->provenance, *state_->tables, CountingSink{state_->symbol_counts});
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
