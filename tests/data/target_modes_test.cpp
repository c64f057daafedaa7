// That the random modes are what docs/targets.md proves of them: unbiased, of the stated variance, of total mass 1.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "core/philox.h"
#include "data/target_encoder.h"
#include "tests/data/expect_error.h"
#include "tests/data/target_mode_name.h"

namespace distill::data {
namespace {

using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Shapes that teachers have: from nearly certain to undecided among hundreds.
std::vector<float> logits_of(double spread, size_t vocab) {
  core::Philox random(17, vocab, 0);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = static_cast<float>(spread * random.next_normal());
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits) {
  const double greatest = *std::ranges::max_element(logits);
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(static_cast<double>(logit) - greatest));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

std::vector<int32_t> by_probability(const std::vector<double>& p) {
  std::vector<int32_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, std::ranges::greater{}, [&](int32_t id) { return p[id]; });
  return order;
}

// "threshold:4 keep": with some ids always kept, a probable one and others.
TargetSpec spec_of(std::string text) {
  const size_t end = text.find(' ');
  TargetSpec spec = TargetSpec::parse(text.substr(0, end));
  if (end != std::string::npos) spec.set_keep({0, 17, 60, 140});
  return spec;
}

// How many ids a threshold target has: K, or the least number whose threshold is no higher than the one given.
double number_kept(const std::vector<double>& p, const std::vector<int32_t>& order, const TargetSpec& spec,
                   double all) {
  if (spec.threshold == 0) return spec.exact;
  for (int kept = 1;; ++kept) {
    double rest = all;
    int exact = 0;
    while (exact < kept && p[order[exact]] * (kept - exact) > rest) rest -= p[order[exact++]];
    if (exact == kept || rest / (kept - exact) <= spec.threshold) return kept;
  }
}

// Variance of the stored weight of each token, as derived in docs/targets.md.
std::vector<double> variances(const std::vector<double>& p, const TargetSpec& spec) {
  auto order = by_probability(p);
  std::erase_if(order, [&](int32_t id) { return std::ranges::binary_search(spec.keep, id); });
  std::vector<double> result(p.size());
  size_t exact = 0;
  double rest = 1, kept = 0;
  for (const int32_t id : spec.keep) rest -= p[id];
  if (spec.mode == TargetMode::kHybrid) {
    for (; exact < static_cast<size_t>(spec.exact); ++exact) rest -= p[order[exact]];
  } else if (spec.mode == TargetMode::kThreshold) {
    kept = number_kept(p, order, spec, rest);
    while (p[order[exact]] * (kept - static_cast<double>(exact)) > rest) rest -= p[order[exact++]];
  }
  for (size_t i = exact; i < order.size(); ++i) {
    const double q = p[order[i]];
    result[order[i]] = spec.mode == TargetMode::kThreshold ? q * (rest / (kept - static_cast<double>(exact)) - q)
                                                           : q * (rest - q) / spec.draws;
  }
  return result;
}

class RandomTargets : public testing::TestWithParam<const char*> {};

TEST_P(RandomTargets, AreUnbiasedWithTheStatedVariance) {
  constexpr int kRepeats = 20000;
  const TargetSpec spec = spec_of(GetParam());
  for (const double spread : {0.5, 2.0, 5.0}) {
    const size_t vocab = 200;
    const auto logits = logits_of(spread, vocab);
    const auto p = softmax(logits), expected_variance = variances(p, spec);
    std::vector<double> sum(vocab), squares(vocab);
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      core::Philox random = target_draws(1, target_stream({"prompt", 0}), static_cast<uint64_t>(repeat));
      SparseTargets out;
      encode_target(logits, spec, random, out);
      for (size_t i = 0; i < out.ids.size(); ++i) {
        sum[out.ids[i]] += out.weights[i];
        squares[out.ids[i]] += static_cast<double>(out.weights[i]) * out.weights[i];
      }
    }
    double total_variance = 0, total_expected = 0;
    for (size_t id = 0; id < vocab; ++id) {
      const double mean = sum[id] / kRepeats, variance = squares[id] / kRepeats - mean * mean;
      // Five standard errors; of a token that is kept once in a long while, four times more than expected is no bias.
      const double once = squares[id] > 0 ? squares[id] / sum[id] / kRepeats : 0;
      EXPECT_NEAR(mean, p[id], 5 * std::sqrt(expected_variance[id] / kRepeats) + 4 * once + 2e-7)
          << spread << ' ' << id;
      total_variance += variance;
      total_expected += expected_variance[id];
    }
    EXPECT_NEAR(total_variance / total_expected, 1, 0.03) << spread;
  }
}

TEST_P(RandomTargets, HaveDistinctIdsOfTotalMassOne) {
  const TargetSpec spec = spec_of(GetParam());
  for (const size_t vocab : {1, 2, 5, 40, 3000}) {
    if (!spec.keep.empty() && vocab <= static_cast<size_t>(spec.keep.back())) continue;
    for (const double spread : {0.0, 1.0, 10.0, 40.0}) {
      auto logits = logits_of(spread, vocab);
      for (size_t id = 3; id < vocab; id += 4) logits[id] = -kInfinity;
      for (uint64_t position = 0; position < 20; ++position) {
        core::Philox random = target_draws(2, target_stream({"prompt", 1}), position);
        SparseTargets out;
        encode_target(logits, spec, random, out);
        EXPECT_EQ(std::set<int32_t>(out.ids.begin(), out.ids.end()).size(), out.ids.size());
        EXPECT_NEAR(std::accumulate(out.weights.begin(), out.weights.end(), 0.0), 1, 1e-6);
        EXPECT_EQ(out.uncovered[0], 0);
        for (size_t i = 0; i < out.ids.size(); ++i) {
          if (out.ids[i] % 4 == 3) {
            EXPECT_EQ(out.weights[i], 0);
          }
        }
        EXPECT_LE(out.ids.size(), spec.exact + spec.draws + spec.keep.size());
        for (const int32_t id : spec.keep) EXPECT_THAT(out.ids, testing::Contains(id));
      }
    }
  }
}

TEST_P(RandomTargets, DependOnSeedKeyAndPositionOnly) {
  const TargetSpec spec = spec_of(GetParam());
  const auto logits = logits_of(0.5, 1000);
  const auto draw = [&](uint64_t seed, const TraceKey& key, uint64_t position) {
    core::Philox random = target_draws(seed, target_stream(key), position);
    SparseTargets out;
    encode_target(logits, spec, random, out);
    return out.ids;
  };
  const auto reference = draw(1, {"a", 0}, 0);
  EXPECT_EQ(draw(1, {"a", 0}, 0), reference);
  EXPECT_NE(draw(2, {"a", 0}, 0), reference);
  EXPECT_NE(draw(1, {"b", 0}, 0), reference);
  EXPECT_NE(draw(1, {"a", 1}, 0), reference);
  EXPECT_NE(draw(1, {"a", 0}, 1), reference);
}

INSTANTIATE_TEST_SUITE_P(Modes, RandomTargets,
                         testing::Values("sampled:1", "sampled:25", "hybrid:4+6", "threshold:1", "threshold:4",
                                         "threshold:16", "threshold:0.03", "threshold:0.3", "hybrid:4+6 keep",
                                         "threshold:4 keep", "threshold:0.1 keep"),
                         target_mode_name);

TEST(Threshold, KeepsExactlyWhatLiesAboveTheThreshold) {
  const auto logits = logits_of(3, 500);
  const auto p = softmax(logits);
  core::Philox random(1, 2, 3);
  SparseTargets out;
  encode_target(logits, TargetSpec::parse("threshold:16"), random, out);
  ASSERT_EQ(out.ids.size(), 16);
  const float level = *std::ranges::min_element(out.weights);
  size_t exact = 0;
  for (size_t id = 0; id < p.size(); ++id) exact += p[id] > level * 1.0001;
  EXPECT_GT(exact, 1);
  EXPECT_LT(exact, 16);
  for (size_t i = 0; i < 16; ++i) {
    if (i < exact) {
      EXPECT_NEAR(out.weights[i], p[out.ids[i]], 1e-6);
    } else {
      EXPECT_NEAR(out.weights[i], level, 1e-7);
    }
  }
}

TEST(Threshold, KeepsMoreIdsWhereTheTeacherIsLessCertain) {
  const TargetSpec spec = TargetSpec::parse("threshold:0.05");
  const auto kept = [&](double spread) {
    core::Philox random(1, 2, 3);
    SparseTargets out;
    encode_target(logits_of(spread, 500), spec, random, out);
    return out.ids.size();
  };
  EXPECT_EQ(kept(0.01), 20);
  EXPECT_LT(kept(3), 20);
  EXPECT_EQ(kept(60), 2);
}

TEST(Threshold, KeepsADistributionOfFewTokensWhole) {
  std::vector<float> logits(100, -kInfinity);
  logits[7] = 1, logits[50] = 2, logits[99] = -3;
  core::Philox random(1, 2, 3);
  SparseTargets out;
  encode_target(logits, TargetSpec::parse("threshold:16"), random, out);
  const auto p = softmax(logits);
  EXPECT_THAT(out.ids, testing::ElementsAre(50, 7, 99));
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(out.weights[i], p[out.ids[i]], 1e-6);
}

TEST(TargetSpecs, ReadBackWhatTheyPrint) {
  for (const char* text : {"topk:64", "full", "sampled:50", "hybrid:8+9", "threshold:16", "threshold:0.03"}) {
    EXPECT_EQ(TargetSpec::parse(text).to_string(), text);
  }
  for (const char* text :
       {"", "topk", "topk:", "topk:0", "topk:65536", "topk:-1", "hybrid:8", "hybrid:8+", "hybrid:+8", "sampled:1+1",
        "threshold:x", "full:1", "threshold:0", "threshold:0.00001", "threshold:0.1x", "threshold:1.5", "topk:0.1"}) {
    EXPECT_THAT(error_of([&] { TargetSpec::parse(text); }), HasSubstr("threshold:K")) << text;
  }
}

TEST(TargetSpecs, KeepChosenTokensWhereTheModeCan) {
  TargetSpec spec = TargetSpec::parse("topk:4");
  spec.set_keep({9, 3, 9});
  EXPECT_THAT(spec.keep, testing::ElementsAre(3, 9));
  SparseTargets out;
  encode_target(std::vector<float>{5, 4, 3, -9, 2, 1, 0, -1, -2, 6}, spec, out);
  EXPECT_THAT(out.ids, testing::ElementsAre(9, 0, 1, 2, 4, 3));
  EXPECT_GT(out.weights.back(), 0);
  TargetSpec sampled = TargetSpec::parse("sampled:5");
  EXPECT_THAT(error_of([&] { sampled.set_keep({1}); }), HasSubstr("sampled:5 targets keep no chosen tokens"));
}

TEST(EncodeTarget, RefusesRandomModesWithoutDraws) {
  SparseTargets out;
  EXPECT_THAT(error_of([&] {
                encode_target(std::vector<float>{1, 2}, TargetSpec::parse("threshold:16"), out);
              }),
              HasSubstr("threshold:16 targets need random draws"));
}

}  // namespace
}  // namespace distill::data
