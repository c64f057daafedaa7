#include "data/set_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <numeric>

#include "data/adaptive_coder.h"
#include "data/little_endian.h"
#include "data/magnitude.h"
#include "data/set_decoder.h"
#include "data/set_position.h"
#include "data/weight_grid.h"
#include "tests/data/expect_error.h"
#include "tests/data/sample_traces.h"
#include "tests/data/target_mode_name.h"

namespace distill::data {
namespace {

using testing::HasSubstr;

std::map<int32_t, float> weights_of(const TargetDistribution& target) {
  std::map<int32_t, float> result;
  for (size_t i = 0; i < target.ids.size(); ++i) result[target.ids[i]] = target.weights[i];
  return result;
}

// What a reader has before it decodes: as many tokens, but not these.
TraceDocument outline(TraceDocument document) {
  std::ranges::fill(document.tokens, 0);
  return document;
}

class SetCodecTest : public testing::TestWithParam<const char*> {
 protected:
  SetCodecTest() {
    const std::string mode = GetParam();
    provenance_ = sample_provenance(mode.substr(0, mode.find(' ')), 300);
    if (mode.ends_with(" keep")) provenance_.targets.set_keep({5, 200});
    traces_ = sample_traces(40, provenance_, 40);
  }
  TraceProvenance provenance_;
  std::vector<Trace> traces_;
};

TEST_P(SetCodecTest, KeepsTheIdsAndRoundsTheWeightsToTheGrid) {
  const auto trained = trained_codec(traces_, provenance_);
  const auto model = trained->model();
  const auto codec = TargetCodec::open(trained->description(), model, provenance_);
  const double step = std::numbers::pi / 2 / (std::pow(2, trained->description()["weight_bits"].get<int>()) - 1);
  for (const Trace& trace : traces_) {
    std::vector<std::byte> payload, other;
    trained->encode(trace.document, trace.targets, payload);
    codec->encode(trace.document, trace.targets, other);
    EXPECT_EQ(payload, other);
    SparseTargets decoded;
    TraceDocument document = outline(trace.document);
    codec->decode(document, payload, decoded);
    EXPECT_EQ(document.tokens, trace.document.tokens);
    document = outline(trace.document);
    codec->decode_tokens(document, payload);
    EXPECT_EQ(document.tokens, trace.document.tokens);
    ASSERT_EQ(decoded.positions(), trace.targets.positions());
    for (size_t i = 0; i < decoded.positions(); ++i) {
      const auto actual = weights_of(decoded[i]), expected = weights_of(trace.targets[i]);
      double sum = decoded.uncovered[i];
      for (const auto& [id, weight] : expected) {
        // Only what a share rounded to 1 left nothing for may be missing.
        if (!actual.contains(id)) {
          EXPECT_LE(weight, step * step);
          continue;
        }
        // A step of the first share, and of all shares before it, of what is left.
        EXPECT_NEAR(actual.at(id), weight, 3 * step) << i << ' ' << id;
        sum += actual.at(id);
      }
      EXPECT_NEAR(sum, 1, 1e-5);
    }
  }
}

// As when shards are merged: nothing is rounded twice.
TEST_P(SetCodecTest, KeepsWhatItDecodedWhenThatIsEncodedAgain) {
  const auto first = trained_codec(traces_, provenance_);
  std::vector<Trace> decoded = traces_;
  for (Trace& trace : decoded) {
    std::vector<std::byte> payload;
    first->encode(trace.document, trace.targets, payload);
    first->decode(trace.document, payload, trace.targets);
  }
  const auto second = trained_codec(decoded, provenance_);
  for (Trace& trace : decoded) {
    std::vector<std::byte> payload;
    SparseTargets again;
    second->encode(trace.document, trace.targets, payload);
    second->decode(trace.document, payload, again);
    for (size_t i = 0; i < again.positions(); ++i) {
      const auto actual = weights_of(again[i]), expected = weights_of(trace.targets[i]);
      ASSERT_EQ(actual.size(), expected.size());
      for (const auto& [id, weight] : expected) EXPECT_NEAR(actual.at(id), weight, 2e-6) << i << ' ' << id;
    }
  }
}

TEST_P(SetCodecTest, AccountsForItsBytes) {
  const auto codec = trained_codec(traces_, provenance_);
  double bytes = 0, measured = 0, lanes = 0;
  for (const Trace& trace : traces_) {
    std::vector<std::byte> payload;
    codec->encode(trace.document, trace.targets, payload);
    const auto sizes = codec->sizes(trace, payload);
    bytes += static_cast<double>(payload.size());
    measured += sizes.ids + sizes.weights + sizes.tokens;
    lanes += static_cast<double>(std::min<size_t>(8, trace.document.tokens.size()));
  }
  // Of its four bytes each coder state holds none to two that say something.
  EXPECT_GE(bytes, measured * 0.98 + 2 * lanes);
  EXPECT_LE(bytes, measured * 1.02 + 4 * lanes);
}

TEST_P(SetCodecTest, SurvivesDamagedPayloads) {
  const auto codec = trained_codec(traces_, provenance_);
  core::Philox random(3, 0, 0);
  SparseTargets out;
  for (Trace& trace : traces_) {
    std::vector<std::byte> payload;
    codec->encode(trace.document, trace.targets, payload);
    for (int round = 0; round < 200; ++round) {
      auto damaged = payload;
      for (uint32_t i = 0; i <= random.next_below(3); ++i) {
        damaged[random.next_below(static_cast<uint32_t>(damaged.size()))] ^=
            static_cast<std::byte>(1 + random.next_below(255));
      }
      error_of([&] { codec->decode(trace.document, damaged, out); });
      for (const int32_t token : trace.document.tokens) EXPECT_LT(static_cast<uint32_t>(token), 300u);
      damaged.resize(random.next_below(static_cast<uint32_t>(payload.size())));
      EXPECT_NE(error_of([&] { codec->decode(trace.document, damaged, out); }), "");
    }
  }
}

// What decoding gives or says on the path: the targets, or the message of the error.
std::string decoded_by(DecodePath path, const Trace& trace, std::span<const std::byte> payload,
                       const TraceProvenance& provenance, const SetTables& tables, SparseTargets& out) {
  TraceDocument document = outline(trace.document);
  return error_of([&] {
    decode_sets(document, payload, provenance.targets, tables, WeightGrid::of(weight_bits(provenance.targets)), out,
                path);
  });
}

void expect_equal_paths(const Trace& trace, std::span<const std::byte> payload, const TraceProvenance& provenance,
                        const SetTables& tables) {
  SparseTargets one_by_one, together;
  const std::string error = decoded_by(DecodePath::kScalar, trace, payload, provenance, tables, one_by_one);
  ASSERT_EQ(decoded_by(DecodePath::kFastest, trace, payload, provenance, tables, together), error);
  if (!error.empty()) return;
  EXPECT_EQ(together.ids, one_by_one.ids);
  EXPECT_EQ(together.weights, one_by_one.weights);
  EXPECT_EQ(together.uncovered, one_by_one.uncovered);
  EXPECT_EQ(together.offsets, one_by_one.offsets);
}

TEST_P(SetCodecTest, DecodesTheSameWithAllLanesTogether) {
  const auto codec = trained_codec(traces_, provenance_);
  const auto tables = SetTables::decode(codec->model(), 300, true);
  core::Philox random(4, 0, 0);
  for (const Trace& trace : traces_) {
    std::vector<std::byte> payload;
    codec->encode(trace.document, trace.targets, payload);
    expect_equal_paths(trace, payload, provenance_, *tables);
    for (int round = 0; round < 100; ++round) {
      auto damaged = payload;
      damaged[random.next_below(static_cast<uint32_t>(damaged.size()))] ^=
          static_cast<std::byte>(1 + random.next_below(255));
      expect_equal_paths(trace, damaged, provenance_, *tables);
      damaged.resize(random.next_below(static_cast<uint32_t>(payload.size())));
      expect_equal_paths(trace, damaged, provenance_, *tables);
    }
  }
}

// Ids of more than 16 bits; ranks of more than 16 raw bits, which only a damaged or odd stream has.
TEST(SetCodec, DecodesTheSameWithAllLanesTogetherInALargeVocabulary) {
  constexpr size_t kVocab = 400'000;
  const auto provenance = sample_provenance("threshold:16", kVocab);
  // Every id has a rank, and every symbol of every context occurs.
  const std::vector<uint8_t> classes(kVocab + set_context::kContexts * Magnitude::kSymbols, 1);
  const SetTables tables(classes, kVocab);
  core::Philox random(5, 0, 0);
  Trace trace;
  trace.document.key = {"p", 0};
  trace.document.prompt_length = 1;
  trace.document.tokens = {0};
  for (int i = 0; i < 64; ++i) {
    trace.document.tokens.push_back(static_cast<int32_t>(random.next_below(kVocab)));
    for (int j = 0; j < 4; ++j) {
      trace.targets.ids.push_back(static_cast<int32_t>(random.next_below(kVocab / 4)) * 4 + j);
    }
    trace.targets.weights.insert(trace.targets.weights.end(), {0.25f, 0.25f, 0.25f, 0.25f});
    trace.targets.uncovered.push_back(0);
    trace.targets.offsets.push_back(static_cast<int64_t>(trace.targets.ids.size()));
  }
  std::vector<std::byte> model(4), payload;
  encode_adaptively(classes, model);
  const auto codec = TargetCodec::open({{"name", "sets"}, {"version", 2}, {"weight_bits", 6}}, model, provenance);
  codec->encode(trace.document, trace.targets, payload);
  SparseTargets out;
  ASSERT_EQ(decoded_by(DecodePath::kFastest, trace, payload, provenance, tables, out), "");
  EXPECT_EQ(weights_of(out[5]), weights_of(trace.targets[5]));
  expect_equal_paths(trace, payload, provenance, tables);
  for (size_t i = 0; i < payload.size(); ++i) {
    auto damaged = payload;
    damaged[i] ^= std::byte{1};
    expect_equal_paths(trace, damaged, provenance, tables);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, SetCodecTest,
                         testing::Values("topk:12", "sampled:25", "hybrid:4+6", "threshold:1", "threshold:16",
                                         "threshold:0.05", "threshold:16 keep", "hybrid:4+6 keep", "topk:12 keep"),
                         target_mode_name);

// Twice as many documents whose prompts begin alike; of one kind, prompts are not much longer than that.
TEST(SetCodec, KeepsWhatPromptsHaveInCommonOnce) {
  const auto provenance = sample_provenance("threshold:0.05", 300);
  std::vector<Trace> traces = sample_traces(40, provenance, 4);
  std::vector<int32_t> opening(100);
  std::iota(opening.begin(), opening.end(), 7);
  size_t apart = 0;
  const auto size_of = [&] {
    const auto codec = trained_codec(traces, provenance);
    std::vector<std::byte> payload = codec->model();
    SparseTargets targets;
    for (Trace& trace : traces) {
      codec->encode(trace.document, trace.targets, payload);
      std::vector<std::byte> own;
      codec->encode(trace.document, trace.targets, own);
      TraceDocument document = outline(trace.document);
      codec->decode(document, own, targets);
      EXPECT_EQ(document.tokens, trace.document.tokens);
    }
    return payload.size();
  };
  const size_t without = size_of();
  for (Trace& trace : traces) {
    // One prompt begins otherwise, and one is a mere part of what the others begin with.
    if (trace.document.key.prompt_id == "prompt-3") continue;
    const std::span most(opening.data(), trace.document.key.prompt_id == "prompt-5" ? 60 : opening.size());
    trace.document.tokens.insert(trace.document.tokens.begin(), most.begin(), most.end());
    trace.document.prompt_length += static_cast<int32_t>(most.size());
    apart += most.size();
  }
  EXPECT_EQ(apart, 36u * 100 + 2 * 60);
  // Less than a bit for each of these tokens, the opening itself included.
  EXPECT_LT(size_of(), without + apart / 8);
}

TEST(SetCodec, RefusesAnOpeningThatPromptsCannotHave) {
  const auto provenance = sample_provenance("threshold:8", 300);
  const auto codec = trained_codec(sample_traces(10, provenance), provenance);
  const auto with_opening = [&](uint32_t count, const std::vector<uint16_t>& ids) {
    std::vector<std::byte> model;
    append_value(model, count);
    for (const uint16_t id : ids) append_value(model, id);
    const auto tables = codec->model();
    model.insert(model.end(), tables.begin() + 4, tables.end());
    return error_of([&] { SetTables::decode(model, 300, true); });
  };
  EXPECT_EQ(with_opening(0, {}), "");
  EXPECT_EQ(with_opening(2, {0, 299}), "");
  EXPECT_THAT(with_opening(2, {0, 300}), HasSubstr("id 300 is outside the vocabulary"));
  EXPECT_THAT(with_opening(UINT32_MAX, {}), HasSubstr("an opening of"));
  EXPECT_NE(error_of([&] { SetTables::decode(std::vector<std::byte>(3), 300, true); }), "");
}

TEST(SetCodec, RefusesDamagedTables) {
  const auto provenance = sample_provenance("threshold:8", 300);
  const auto codec = trained_codec(sample_traces(10, provenance), provenance);
  auto description = codec->description();
  auto model = codec->model();
  model.pop_back();
  const auto damaged = TargetCodec::open(description, model, provenance);
  Trace trace = sample_traces(1, provenance).front();
  std::vector<std::byte> payload;
  codec->encode(trace.document, trace.targets, payload);
  SparseTargets out;
  EXPECT_THAT(error_of([&] { damaged->decode(trace.document, payload, out); }), HasSubstr("codec tables"));
  description["weight_bits"] = 40;
  EXPECT_THAT(error_of([&] { TargetCodec::open(description, codec->model(), provenance); }), HasSubstr("weight_bits"));
  description["name"] = "other";
  EXPECT_THAT(error_of([&] { TargetCodec::open(description, codec->model(), provenance); }),
              HasSubstr("codec 'other' version 2, which this version of distill does not know"));
}

TEST(WeightGrid, RoundsWithoutBias) {
  const WeightGrid grid(6);
  core::Philox random(1, 0, 0);
  for (const double share : {0.0, 0.001, 0.03, 0.5, 0.77, 0.999, 1.0}) {
    double sum = 0, worst = 0;
    constexpr int kRepeats = 40000;
    for (int i = 0; i < kRepeats; ++i) {
      const double rounded = grid.share(grid.round(share, random));
      sum += rounded;
      worst = std::max(worst, std::abs(rounded - share));
    }
    EXPECT_NEAR(sum / kRepeats, share, 5 * worst / std::sqrt(kRepeats) + 1e-12) << share;
    EXPECT_LE(worst, 0.025);
  }
}

TEST(Rans, GivesBackSymbolsAndRawBits) {
  core::Philox random(5, 0, 0);
  std::vector<uint64_t> counts(40);
  for (size_t i = 0; i < counts.size(); ++i) counts[i] = i % 7 == 3 ? 0 : uint64_t{1} << (i / 2);
  const RansTable table(normalise_frequencies(counts)), certain(normalise_frequencies(std::vector<uint64_t>{0, 9}));
  for (const unsigned lanes : {1u, 3u, 8u}) {
    struct Item {
      unsigned lane;
      uint32_t symbol, raw;
      unsigned bits;
      bool bit;
    };
    std::vector<Item> items;
    RansEncoder encoder;
    for (int i = 0; i < 5000; ++i) {
      Item item{random.next_below(lanes), random.next_below(40), 0, random.next_below(17), random.next_below(2) == 1};
      if (table.interval(item.symbol).frequency == 0) item.symbol = 39;
      item.raw = random.next_uint32() & ((1u << item.bits) - 1);
      items.push_back(item);
      encoder.put(item.lane, table, item.symbol);
      encoder.put_raw(item.lane, item.raw, item.bits);
      encoder.put(item.lane, certain, 1);
      encoder.put_bit(item.lane, 100, item.bit);
    }
    std::vector<std::byte> bytes;
    encoder.finish(lanes, bytes);
    RansDecoder decoder(bytes, lanes);
    for (const Item& item : items) {
      ASSERT_EQ(decoder.get(item.lane, table), item.symbol);
      ASSERT_EQ(decoder.get_raw(item.lane, item.bits), item.raw);
      ASSERT_EQ(decoder.get(item.lane, certain), 1);
      ASSERT_EQ(decoder.get_bit(item.lane, 100), item.bit);
    }
    decoder.finish();
    bytes.resize(bytes.size() - 2);
    RansDecoder cut(bytes, lanes);
    for (const Item& item : items) {
      cut.get(item.lane, table);
      cut.get_raw(item.lane, item.bits);
      cut.get(item.lane, certain);
      cut.get_bit(item.lane, 100);
    }
    EXPECT_THAT(error_of([&] { cut.finish(); }), HasSubstr("shorter than its contents"));
  }
}

TEST(Rans, NormalisesFrequencies) {
  for (const size_t size : {1, 2, 64, 4096}) {
    std::vector<uint64_t> counts(size, 1);
    counts[size / 2] = 1000000;
    const auto frequencies = normalise_frequencies(counts);
    EXPECT_EQ(std::accumulate(frequencies.begin(), frequencies.end(), 0), 4096);
    EXPECT_GE(*std::ranges::min_element(frequencies), 1);
  }
  EXPECT_THAT(error_of([] { normalise_frequencies(std::vector<uint64_t>(4097, 1)); }), HasSubstr("don't fit"));
  EXPECT_THAT(error_of([] { normalise_frequencies(std::vector<uint64_t>(3, 0)); }), HasSubstr("at least one"));
}

TEST(Magnitude, CoversAllNumbers) {
  for (uint64_t value = 0; value < uint64_t{1} << 31; value = value < 5000 ? value + 1 : value + value / 37) {
    const Magnitude magnitude = Magnitude::of(static_cast<uint32_t>(value));
    ASSERT_LT(magnitude.symbol, Magnitude::kSymbols);
    ASSERT_EQ(magnitude.bits, Magnitude::bits_of(magnitude.symbol));
    ASSERT_EQ(Magnitude::value(magnitude.symbol, magnitude.raw), value);
  }
}

TEST(AdaptiveCoder, GivesBackTables) {
  core::Philox random(6, 0, 0);
  std::vector<uint8_t> values(20000);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = i % 1000 < 900 ? 0 : static_cast<uint8_t>(random.next_below(32));
  std::vector<std::byte> bytes;
  encode_adaptively(values, bytes);
  EXPECT_LT(bytes.size(), 2500);
  EXPECT_EQ(decode_adaptively(bytes, values.size()), values);
  EXPECT_NE(error_of([&] { decode_adaptively(bytes, values.size() + 500); }), "");
  bytes.pop_back();
  EXPECT_NE(error_of([&] { decode_adaptively(bytes, values.size()); }), "");
}

}  // namespace
}  // namespace distill::data
