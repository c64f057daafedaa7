// That the targets of a document, whose tails are chosen together, are each what docs/targets.md proves of one alone,
// and err less together.
#include "data/target_sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/philox.h"

namespace distill::data {
namespace {

constexpr size_t kVocab = 60;

// A text in which the same tokens are likely again and again, a little more or less.
std::vector<float> logits_at(uint64_t position) {
  core::Philox common(4, 0, 0), own(4, 1, position);
  std::vector<float> logits(kVocab);
  for (float& logit : logits) logit = static_cast<float>(2 * common.next_normal() + 0.5 * own.next_normal());
  return logits;
}

std::vector<double> softmax(const std::vector<float>& logits) {
  std::vector<double> p;
  for (const float logit : logits) p.push_back(std::exp(static_cast<double>(logit)));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= sum;
  return p;
}

SparseTargets sample(const std::string& spec, uint64_t seed, uint64_t positions) {
  TargetSampler sampler(TargetSpec::parse(spec), seed, {"prompt", 0});
  for (uint64_t i = 0; i < positions; ++i) sampler.add(logits_at(i));
  sampler.finish();
  return sampler.targets();
}

TEST(TargetSampler, IsUnbiasedAtEachPosition) {
  constexpr uint64_t kRepeats = 5000, kPositions = 6;
  for (const char* spec : {"threshold:8", "threshold:0.1"}) {
    std::vector<double> sum(kPositions * kVocab), squares(sum.size());
    for (uint64_t seed = 0; seed < kRepeats; ++seed) {
      const SparseTargets targets = sample(spec, seed, kPositions);
      for (uint64_t i = 0; i < kPositions; ++i) {
        for (size_t j = 0; j < targets[i].ids.size(); ++j) {
          const auto at = i * kVocab + static_cast<size_t>(targets[i].ids[j]);
          const auto weight = static_cast<double>(targets[i].weights[j]);
          sum[at] += weight;
          squares[at] += weight * weight;
        }
      }
    }
    for (uint64_t i = 0; i < kPositions; ++i) {
      const auto p = softmax(logits_at(i));
      for (size_t id = 0; id < kVocab; ++id) {
        const double mean = sum[i * kVocab + id] / kRepeats;
        const double spread = std::max(0.0, squares[i * kVocab + id] / kRepeats - mean * mean);
        // An id that is kept with the probability p / 0.1 may not have been seen.
        EXPECT_NEAR(mean, p[id], 5 * std::sqrt(std::max(spread, p[id] * 0.1) / kRepeats) + 1e-6) << i << ' ' << id;
      }
    }
  }
}

// Beside the same positions, each sampled alone.
TEST(TargetSampler, ErrsLessOverADocumentThanPositionsAlone) {
  constexpr uint64_t kPositions = 200;
  double together = 0, alone = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    std::vector<double> error(kVocab), error_alone(kVocab);
    const SparseTargets targets = sample("threshold:0.1", seed, kPositions);
    for (uint64_t i = 0; i < kPositions; ++i) {
      TargetSampler one(TargetSpec::parse("threshold:0.1"), seed, {"prompt", static_cast<uint32_t>(i)});
      one.add(logits_at(i));
      one.finish();
      const auto p = softmax(logits_at(i));
      for (size_t id = 0; id < kVocab; ++id) error[id] -= p[id], error_alone[id] -= p[id];
      for (size_t j = 0; j < targets[i].ids.size(); ++j) error[targets[i].ids[j]] += targets[i].weights[j];
      const TargetDistribution single = one.targets()[0];
      for (size_t j = 0; j < single.ids.size(); ++j) error_alone[single.ids[j]] += single.weights[j];
    }
    together += std::inner_product(error.begin(), error.end(), error.begin(), 0.0);
    alone += std::inner_product(error_alone.begin(), error_alone.end(), error_alone.begin(), 0.0);
  }
  EXPECT_LT(together, alone / 4);
}

TEST(TargetSampler, DecidesLongDocumentsInWindows) {
  constexpr uint64_t kPositions = 2 * TargetSampler::kWindow + 100;
  TargetSampler sampler(TargetSpec::parse("threshold:6"), 1, {"prompt", 0});
  std::vector<std::vector<int32_t>> candidates;
  for (uint64_t i = 0; i < kPositions; ++i) {
    sampler.add(logits_at(i));
    candidates.push_back(sampler.candidates());
    EXPECT_LE(i - sampler.targets().positions(), TargetSampler::kWindow);
  }
  sampler.finish();
  ASSERT_EQ(sampler.targets().positions(), kPositions);
  for (uint64_t i = 0; i < kPositions; ++i) {
    const TargetDistribution target = sampler.targets()[i];
    EXPECT_EQ(target.ids.size(), 6);
    EXPECT_NEAR(std::accumulate(target.weights.begin(), target.weights.end(), 0.0), 1, 1e-6);
    EXPECT_THAT(candidates[i], testing::IsSupersetOf(target.ids.begin(), target.ids.end()));
  }
}

TEST(TargetSampler, KeepsOtherKindsAtOnce) {
  TargetSampler sampler(TargetSpec::parse("topk:4"), 1, {"prompt", 0});
  EXPECT_TRUE(sampler.candidates().empty());
  for (uint64_t i = 0; i < 3; ++i) {
    sampler.add(logits_at(i));
    ASSERT_EQ(sampler.targets().positions(), i + 1);
    EXPECT_THAT(sampler.candidates(), testing::ElementsAreArray(sampler.targets()[i].ids));
  }
}

}  // namespace
}  // namespace distill::data
