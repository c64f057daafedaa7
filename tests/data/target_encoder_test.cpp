#include "data/target_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "core/philox.h"
#include "tests/data/expect_error.h"

namespace distill::data {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(size_t vocab) {
  core::Philox random(1, vocab, 0);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = static_cast<float>(4 * random.next_normal());
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits, double temperature) {
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(logit / temperature));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

TEST(EncodeTarget, KeepsTheMostProbableTokensAndTheMassOfTheRest) {
  for (const size_t vocab : {1, 7, 64, 1000, 49152}) {
    for (const double temperature : {1.0, 2.5}) {
      const auto logits = random_logits(vocab);
      const auto p = softmax(logits, temperature);
      SparseTargets out;
      encode_target(logits, {.mode = TargetMode::kTopk, .exact = 16, .temperature = temperature}, out);
      const TargetDistribution target = out[0];
      ASSERT_EQ(target.ids.size(), std::min<size_t>(vocab, 16));
      double covered = 0;
      std::vector<bool> kept(vocab);
      for (size_t i = 0; i < target.ids.size(); ++i) {
        EXPECT_NEAR(target.weights[i], p[target.ids[i]], 1e-5 * p[target.ids[i]]);
        if (i > 0) {
          EXPECT_GE(target.weights[i - 1], target.weights[i]);
        }
        kept[target.ids[i]] = true;
        covered += p[target.ids[i]];
      }
      for (size_t id = 0; id < vocab; ++id) {
        if (!kept[id]) {
          EXPECT_LE(p[id], target.weights.back() * 1.00001);
        }
      }
      EXPECT_NEAR(target.uncovered, 1 - covered, 1e-6);
    }
  }
}

TEST(EncodeTarget, PrefersTheLowerIdAmongEquals) {
  SparseTargets out;
  encode_target(std::vector<float>{1, 2, 1, 2, 1}, {.exact = 3}, out);
  EXPECT_THAT(out.ids, ElementsAre(1, 3, 0));
}

TEST(EncodeTarget, ListsEveryIdOfAFullDistribution) {
  const auto logits = random_logits(300);
  const auto p = softmax(logits, 1);
  SparseTargets out;
  encode_target(logits, {.mode = TargetMode::kFull}, out);
  encode_target(logits, {.mode = TargetMode::kFull}, out);
  ASSERT_EQ(out.positions(), 2);
  for (size_t id = 0; id < p.size(); ++id) {
    EXPECT_EQ(out[1].ids[id], static_cast<int32_t>(id));
    EXPECT_NEAR(out[1].weights[id], p[id], 1e-5 * p[id]);
  }
  EXPECT_EQ(out[1].uncovered, 0);
}

TEST(EncodeTarget, GivesForbiddenTokensNoMass) {
  SparseTargets out;
  encode_target(std::vector<float>{-kInfinity, 5000, -kInfinity}, {.exact = 2}, out);
  EXPECT_THAT(out.ids, ElementsAre(1, 0));
  EXPECT_THAT(out.weights, ElementsAre(1, 0));
  EXPECT_EQ(out.uncovered[0], 0);
}

TEST(EncodeTarget, RefusesLogitsThatAreNoNumbers) {
  SparseTargets out;
  for (const float bad : {NAN, kInfinity}) {
    EXPECT_THAT(error_of([&] {
                  encode_target(std::vector<float>{1, bad, 2}, {}, out);
                }),
                HasSubstr("NaN or infinities"));
  }
  EXPECT_THAT(error_of([&] { encode_target(std::vector<float>{-kInfinity}, {}, out); }), HasSubstr("none is finite"));
  EXPECT_EQ(out.positions(), 0);
}

}  // namespace
}  // namespace distill::data
