#include "data/set_decoder.h"

#include <array>
#include <utility>
#include <vector>

#include "core/error.h"
#include "data/magnitude.h"
#include "data/set_position.h"
#include "data/wide_rans.h"

namespace distill::data {
namespace {

using namespace set_context;

template <typename T>
using Lanes = std::array<T, rans::kLanes>;

uint32_t read_number(RansDecoder& stream, unsigned lane, const RansTable& table) {
  const uint32_t symbol = stream.get(lane, table);
  const unsigned bits = Magnitude::bits_of(symbol);
  if (bits <= rans::kMaxRawBits) [[likely]]
    return Magnitude::value(symbol, stream.get_raw(lane, bits));
  const uint32_t low = stream.get_raw(lane, rans::kMaxRawBits);
  return Magnitude::value(symbol, low | stream.get_raw(lane, bits - rans::kMaxRawBits) << rans::kMaxRawBits);
}

void read_tokens(RansDecoder& from, const SetTables& tables, TraceDocument& document) {
  RansDecoder stream = std::move(from);
  const size_t shared = read_number(stream, 0, tables.symbols[kShared]);
  core::check(shared <= tables.opening.size() && shared <= static_cast<size_t>(document.prompt_length),
              "a prompt of {} tokens has {} of the {} that prompts begin with", document.prompt_length, shared,
              tables.opening.size());
  std::copy_n(tables.opening.begin(), shared, document.tokens.begin());
  uint32_t rank = 0;
  for (size_t i = shared; i < document.tokens.size(); ++i) {
    rank = read_number(stream, i % rans::kLanes, tables.symbols[token(rank)]);
    core::check(rank < tables.order.size(), "token {}: rank {} of {}", i, rank, tables.order.size());
    document.tokens[i] = tables.order.id(rank);
  }
  core::check(!stream.overrun(), "the coded stream is shorter than its contents");
  from = std::move(stream);
}

// The mirror image of SetCodec's Emitter: groups of positions, whose ids and levels come one per lane at a time, and
// then the positions of the group.
class SetDecoder {
 public:
  SetDecoder(TraceDocument& document, std::span<const std::byte> payload, const TargetSpec& spec,
             const SetTables& tables, const WeightGrid& grid, SparseTargets& out)
      : document_(document),
        spec_(spec),
        tables_(tables),
        grid_(grid),
        extra_(grid.bits() - kLevelSymbolBits),
        positions_(static_cast<size_t>(document.completion_length())),
        stream_(payload, lanes_of(tables.tokens ? document.tokens.size() : positions_)),
        out_(out) {}

  void run(bool wide) {
    if (tables_.tokens) read_tokens(stream_, tables_, document_);
    out_.clear();
    out_.offsets.reserve(positions_ + 1);
    out_.uncovered.reserve(positions_);
    for (size_t begin = 0; begin < positions_; begin += rans::kLanes) {
      lanes_ = lanes_of(positions_ - begin);
      read_counts(begin);
      wide ? read_heads_wide() : read_heads();
      spec_.draws == 0 && wide ? read_tails_wide() : read_tails();
      for (unsigned lane = 0; lane < lanes_; ++lane) complete(begin + lane, lane);
      core::check(!stream_.overrun(), "the coded stream is shorter than its contents");
    }
    stream_.finish();
  }

 private:
  int32_t id_at(unsigned lane, uint32_t rank) const {
    if (rank == 0) return drawn_[lane];
    core::check(rank <= tables_.order.size(), "rank {} of {}", rank, tables_.order.size());
    const int32_t id = tables_.order.id(rank - 1);
    core::check(id != drawn_[lane], "rank {} stands for the token that has rank 0", rank);
    return id;
  }

  void read_counts(size_t begin) {
    heads_.fill(0);
    tails_.fill(0);
    reached_.fill(0);
    const auto most = static_cast<int32_t>(max_ids(spec_));
    for (unsigned lane = 0; lane < lanes_; ++lane)
      heads_[lane] = static_cast<int32_t>(read_number(stream_, lane, tables_.symbols[kHeadCount]));
    for (unsigned lane = 0; lane < lanes_; ++lane)
      tails_[lane] = static_cast<int32_t>(read_number(stream_, lane, tables_.symbols[kTailCount]));
    most_heads_ = most_tails_ = 0;
    size_t ids = out_.ids.size();
    for (unsigned lane = 0; lane < lanes_; ++lane) {
      core::check(heads_[lane] <= most && tails_[lane] <= most - heads_[lane],
                  "{} + {} ids in a position of {} targets", heads_[lane], tails_[lane], spec_.to_string());
      drawn_[lane] = document_.completion()[begin + lane];
      most_heads_ = std::max(most_heads_, heads_[lane]);
      most_tails_ = std::max(most_tails_, tails_[lane]);
      ids += static_cast<size_t>(heads_[lane] + tails_[lane]);
    }
    // A stream may say much in few bytes; no document that this program writes says more.
    constexpr size_t kMostIds = size_t{1} << 28;
    core::check(ids <= kMostIds, "more than {} ids in a document", kMostIds);
    grow(head_ids_, most_heads_);
    grow(levels_, most_heads_);
    grow(tail_ids_, most_tails_);
    if (spec_.draws > 0) grow(counts_, most_tails_);
  }

  template <typename T>
  static void grow(std::vector<Lanes<T>>& steps, int32_t size) {
    if (steps.size() < static_cast<size_t>(size)) steps.resize(static_cast<size_t>(size));
  }

  void read_heads() {
    RansDecoder stream = std::move(stream_);
    for (int32_t head = 0; head < most_heads_; ++head) {
      read_head_ids(stream, head);
      for (unsigned lane = 0; lane < lanes_; ++lane) {
        if (head >= heads_[lane]) continue;
        const unsigned context = level(static_cast<size_t>(head), static_cast<size_t>(heads_[lane]));
        const uint32_t symbol = stream.get(lane, tables_.symbols[context]);
        levels_[static_cast<size_t>(head)][lane] = symbol << extra_ | stream.get_raw(lane, extra_);
      }
    }
    stream_ = std::move(stream);
  }

  void read_head_ids(RansDecoder& stream, int32_t head) {
    for (unsigned lane = 0; lane < lanes_; ++lane) {
      if (head >= heads_[lane]) continue;
      const uint32_t rank = read_number(stream, lane, tables_.symbols[head_rank(static_cast<size_t>(head))]);
      head_ids_[static_cast<size_t>(head)][lane] = id_at(lane, rank);
    }
  }

  void read_tails() {
    RansDecoder stream = std::move(stream_);
    for (int32_t i = 0; i < most_tails_; ++i) read_tail_ids(stream, i);
    stream_ = std::move(stream);
  }

  void read_tail_ids(RansDecoder& stream, int32_t i) {
    for (unsigned lane = 0; lane < lanes_; ++lane) {
      if (i >= tails_[lane]) continue;
      const uint32_t reached = reached_[lane];
      // Both below 2^31: no overflow; id_at() bounds what is reached.
      const uint32_t rank =
          reached + read_number(stream, lane, tables_.symbols[gap(static_cast<size_t>(tails_[lane] - i), reached)]);
      tail_ids_[static_cast<size_t>(i)][lane] = id_at(lane, rank);
      reached_[lane] = rank + 1;
      if (spec_.draws > 0)
        counts_[static_cast<size_t>(i)][lane] = 1 + read_number(stream, lane, tables_.symbols[kMultiplicity]);
    }
  }

#ifdef DISTILL_WIDE_RANS
  DISTILL_AVX2_INLINE static LaneVector vector_of(const void* lanes) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(lanes));
  }
  DISTILL_AVX2_INLINE static void store(LaneVector values, void* lanes) {
    _mm256_storeu_si256(static_cast<__m256i*>(lanes), values);
  }
  // As min(value, most) of non-negative numbers.
  DISTILL_AVX2_INLINE static LaneVector at_most(LaneVector values, int most) {
    return _mm256_min_epi32(values, _mm256_set1_epi32(most));
  }

  // The ids of the ranks that numbers under `contexts` give when `reached` is added, in the lanes of `active`; false,
  // with nothing read, if the lanes must be read one by one: a number is long, or an id not allowed.
  DISTILL_AVX2_INLINE bool read_ids(WideRansDecoder& stream, LaneVector contexts, LaneVector active,
                                    LaneVector& reached, Lanes<int32_t>& ids) const {
    const __m256i zero = _mm256_setzero_si256(), one = _mm256_set1_epi32(1);
    const auto found = stream.look_up(contexts);
    const __m256i symbols = found.symbols;
    const __m256i large = _mm256_and_si256(_mm256_cmpgt_epi32(symbols, _mm256_set1_epi32(7)), active);
    const __m256i bits = _mm256_and_si256(_mm256_sub_epi32(_mm256_srli_epi32(symbols, 1), _mm256_set1_epi32(2)), large);
    WideRansDecoder after = stream;
    const __m256i raw = after.read(found, bits, active);
    const __m256i leading = _mm256_or_si256(_mm256_set1_epi32(2), _mm256_and_si256(symbols, one));
    const __m256i value = _mm256_blendv_epi8(symbols, _mm256_or_si256(_mm256_sllv_epi32(leading, bits), raw), large);
    const __m256i ranks = _mm256_and_si256(_mm256_add_epi32(reached, value), active);
    const __m256i size = _mm256_set1_epi32(static_cast<int>(tables_.order.size()));
    const __m256i beyond = _mm256_or_si256(_mm256_cmpgt_epi32(ranks, size),
                                           _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(rans::kMaxRawBits)));
    if (!_mm256_testz_si256(beyond, beyond)) return false;

    const __m256i drawn = vector_of(drawn_.data());
    const __m256i listed = _mm256_cmpgt_epi32(ranks, zero);
    const __m256i places = _mm256_sub_epi32(ranks, one);
    __m256i id;
    if (const uint16_t* const narrow = tables_.order.narrow()) {
      id = _mm256_mask_i32gather_epi32(zero, reinterpret_cast<const int*>(narrow), places, listed, 2);
      id = _mm256_and_si256(id, _mm256_set1_epi32(0xFFFF));
    } else {
      id = _mm256_mask_i32gather_epi32(zero, tables_.order.wide(), places, listed, 4);
    }
    const __m256i twice = _mm256_and_si256(_mm256_cmpeq_epi32(id, drawn), listed);
    if (!_mm256_testz_si256(twice, twice)) return false;
    store(_mm256_blendv_epi8(drawn, id, listed), ids.data());
    reached = _mm256_blendv_epi8(reached, _mm256_add_epi32(ranks, one), active);
    stream = after;
    return true;
  }

  DISTILL_AVX2 void read_heads_wide() {
    WideRansDecoder stream(stream_, tables_.symbols.data());
    const __m256i heads = vector_of(heads_.data()), extra = _mm256_set1_epi32(static_cast<int>(extra_));
    for (int32_t head = 0; head < most_heads_; ++head) {
      const auto step = static_cast<size_t>(head);
      const __m256i active = _mm256_cmpgt_epi32(heads, _mm256_set1_epi32(head));
      const __m256i rank_context = _mm256_set1_epi32(static_cast<int>(head_rank(step)));
      __m256i reached = _mm256_setzero_si256();
      if (!read_ids(stream, rank_context, active, reached, head_ids_[step])) {
        stream.store(stream_);
        read_head_ids(stream_, head);
        stream.load(stream_);
      }
      // set_context::level() of each lane.
      const __m256i left = _mm256_and_si256(_mm256_sub_epi32(heads, _mm256_set1_epi32(head + 1)), active);
      const int first = static_cast<int>(kLevel) + 5 * std::min(head, 3);
      const auto found = stream.look_up(_mm256_add_epi32(_mm256_set1_epi32(first), at_most(left, 4)));
      const __m256i raw = stream.read(found, extra, active);
      store(_mm256_or_si256(_mm256_sllv_epi32(found.symbols, extra), raw), levels_[step].data());
    }
    stream.store(stream_);
  }

  DISTILL_AVX2 void read_tails_wide() {
    WideRansDecoder stream(stream_, tables_.symbols.data());
    const __m256i tails = vector_of(tails_.data());
    __m256i reached = _mm256_setzero_si256();
    for (int32_t i = 0; i < most_tails_; ++i) {
      const __m256i remaining = _mm256_sub_epi32(tails, _mm256_set1_epi32(i));
      const __m256i active = _mm256_cmpgt_epi32(remaining, _mm256_setzero_si256());
      if (read_ids(stream, gaps(remaining, reached), active, reached, tail_ids_[static_cast<size_t>(i)])) continue;
      stream.store(stream_);
      store(reached, reached_.data());
      read_tail_ids(stream_, i);
      reached = vector_of(reached_.data());
      stream.load(stream_);
    }
    stream.store(stream_);
  }

  // set_context::gap() of each lane, whether it has something remaining or not.
  DISTILL_AVX2_INLINE static LaneVector gaps(LaneVector remaining, LaneVector reached) {
    __m256i left = _mm256_setzero_si256();
    for (const int most : {1, 2, 3, 4, 6, 10, 18})
      left = _mm256_sub_epi32(left, _mm256_cmpgt_epi32(remaining, _mm256_set1_epi32(most)));
    // The exponent of a float is its bit width and 126; place() is half the width and 1. Exact up to 16 bits.
    const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(at_most(reached, 0xFFFF))), 23);
    const __m256i place = _mm256_max_epi32(_mm256_sub_epi32(_mm256_srli_epi32(exponent, 1), _mm256_set1_epi32(62)),
                                           _mm256_setzero_si256());
    const __m256i row = _mm256_mullo_epi32(left, _mm256_set1_epi32(10));
    return _mm256_add_epi32(_mm256_set1_epi32(kGap), _mm256_add_epi32(row, place));
  }
#else
  void read_heads_wide() {
    read_heads();
  }
  void read_tails_wide() {
    read_tails();
  }
#endif

  // One position, out of its lane. Ranks of the tail ascend, so only heads may come twice.
  void complete(size_t position, unsigned lane) {
    const auto heads = static_cast<size_t>(heads_[lane]), tail = static_cast<size_t>(tails_[lane]);
    const size_t begin = out_.ids.size();
    out_.ids.resize(begin + heads + tail);
    out_.weights.resize(begin + heads + tail);
    int32_t* const ids = out_.ids.data() + begin;
    float* const weights = out_.weights.data() + begin;
    double rest = 1;
    for (size_t i = 0; i < heads; ++i) {
      ids[i] = head_ids_[i][lane];
      const double weight = rest * grid_.share(levels_[i][lane]);
      weights[i] = static_cast<float>(weight);
      rest -= weight;
    }
    for (size_t i = 0; i < tail; ++i) ids[heads + i] = tail_ids_[i][lane];
    if (spec_.draws > 0) {
      uint64_t sum = 0;
      for (size_t i = 0; i < tail; ++i) sum += counts_[i][lane];
      const double unit = rest / static_cast<double>(sum);
      for (size_t i = 0; i < tail; ++i)
        weights[heads + i] = static_cast<float>(unit * static_cast<double>(counts_[i][lane]));
    } else {
      std::fill_n(weights + heads, tail, static_cast<float>(rest / static_cast<double>(tail)));
    }
    check_distinct(position, {ids, heads + tail}, heads);
    // Only a list of the most probable ids may leave something uncovered.
    core::check(tail > 0 || !spec_.random() || rest == 0, "position {}: weights that do not sum to 1", position);
    out_.uncovered.push_back(tail > 0 ? 0.0f : static_cast<float>(std::max(0.0, rest)));
    out_.offsets.push_back(static_cast<int64_t>(out_.ids.size()));
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

  TraceDocument& document_;
  const TargetSpec& spec_;
  const SetTables& tables_;
  const WeightGrid& grid_;
  const unsigned extra_;  // raw bits of a level
  size_t positions_;
  RansDecoder stream_;
  SparseTargets& out_;

  unsigned lanes_ = 0;
  Lanes<int32_t> heads_{}, tails_{};  // how many ids; none in lanes that the group lacks
  Lanes<int32_t> drawn_{};            // the document's own tokens
  Lanes<uint32_t> reached_{};         // by the ranks of the tails
  int32_t most_heads_ = 0, most_tails_ = 0;
  std::vector<Lanes<int32_t>> head_ids_, tail_ids_;
  std::vector<Lanes<uint32_t>> levels_, counts_;
  std::vector<int32_t> sorted_;
};

}  // namespace

void decode_set_tokens(TraceDocument& document, std::span<const std::byte> payload, const SetTables& tables) {
  RansDecoder stream(payload, lanes_of(document.tokens.size()));
  read_tokens(stream, tables, document);
}

void decode_sets(TraceDocument& document, std::span<const std::byte> payload, const TargetSpec& spec,
                 const SetTables& tables, const WeightGrid& grid, SparseTargets& out,
                 [[maybe_unused]] DecodePath path) {
  bool wide = false;
#ifdef DISTILL_WIDE_RANS
  wide = path == DecodePath::kFastest && WideRansDecoder::available();
#endif
  SetDecoder(document, payload, spec, tables, grid, out).run(wide);
}

}  // namespace distill::data
