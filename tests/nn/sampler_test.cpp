#include "nn/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <vector>

#include "core/error.h"

namespace distill::nn {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(size_t vocab, double spread, uint64_t seed) {
  core::Philox random(seed, 0, 0);
  std::vector<float> logits(vocab);
  for (auto& logit : logits) logit = static_cast<float>(spread * random.next_normal());
  return logits;
}

// The definition, by sorting everything in fp64: probability of each token that can be drawn.
std::map<int32_t, double> distribution(const std::vector<float>& logits, const SamplingOptions& options) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits[id]) - logits[order[0]]) / options.temperature);
  };
  const auto mass = [&] {
    double sum = 0;
    for (const int32_t id : order) sum += weight(id);
    return sum;
  };
  if (options.top_k > 0) order.resize(std::min(order.size(), static_cast<size_t>(options.top_k)));
  if (options.top_p < 1) {
    const double goal = options.top_p * mass();
    double sum = 0;
    size_t kept = 0;
    while (sum < goal && kept < order.size()) sum += weight(order[kept++]);
    order.resize(kept);
  }
  std::erase_if(order, [&](int32_t id) { return weight(id) < options.min_p; });
  const double total = mass();
  std::map<int32_t, double> result;
  for (const int32_t id : order) result[id] = weight(id) / total;
  return result;
}

// Pearson's statistic of `draws` draws stays near its degrees of freedom (standard deviation sqrt(2 n)), and each
// draw's log-probability is that of the definition.
void expect_draws_from(const std::vector<float>& logits, const SamplingOptions& options, int draws = 40000) {
  const auto expected = distribution(logits, options);
  std::map<int32_t, int> counts;
  Sampler sampler;
  for (int i = 0; i < draws; ++i) {
    const Draw draw = sampler.draw(logits, options, core::Philox(3, 1, static_cast<uint64_t>(i)));
    ASSERT_TRUE(expected.contains(draw.token)) << "drew " << draw.token << ", which the filters leave out";
    ASSERT_NEAR(draw.log_probability, std::log(expected.at(draw.token)), 1e-5);
    ++counts[draw.token];
  }
  double statistic = 0;
  for (const auto& [id, probability] : expected) {
    const double mean = probability * draws;
    statistic += (counts[id] - mean) * (counts[id] - mean) / mean;
  }
  const auto freedom = static_cast<double>(expected.size() - 1);
  EXPECT_LT(statistic, freedom + 6 * std::sqrt(2 * freedom) + 6);
}

TEST(Sampler, TakesTheFirstOfTheMostProbableTokensAtTemperatureZero) {
  std::vector<float> logits(1000, -1.0f);
  logits[700] = logits[300] = 2.5f;
  const Draw draw = Sampler().draw(logits, {.temperature = 0}, core::Philox(0, 0, 0));
  EXPECT_EQ(draw.token, 300);
  EXPECT_EQ(draw.log_probability, 0);
}

TEST(Sampler, DrawsFromTheSoftmaxAtItsTemperature) {
  const auto logits = random_logits(600, 1.5, 1);
  for (const double temperature : {0.5, 1.0, 1.7}) expect_draws_from(logits, {.temperature = temperature});
}

TEST(Sampler, AppliesEachFilterAndTheirCombinations) {
  const auto logits = random_logits(600, 2, 2);
  expect_draws_from(logits, {.top_k = 10});
  expect_draws_from(logits, {.top_p = 0.8});
  expect_draws_from(logits, {.min_p = 0.05});
  expect_draws_from(logits, {.temperature = 1.3, .top_k = 40, .top_p = 0.7});
  expect_draws_from(logits, {.temperature = 0.8, .top_k = 200, .min_p = 0.1});
  expect_draws_from(logits, {.top_p = 0.95, .min_p = 0.02});
  expect_draws_from(logits, {.temperature = 2, .top_k = 300, .top_p = 0.9, .min_p = 0.02});
}

TEST(Sampler, KeepsWhatAFullSortKeepsInLargeVocabularies) {
  for (const double spread : {0.01, 1.0, 4.0}) {
    const auto logits = random_logits(152000, spread, 4);
    for (const SamplingOptions& options :
         {SamplingOptions{.top_k = 50}, SamplingOptions{.top_p = 0.9}, SamplingOptions{.top_k = 1000, .top_p = 0.5},
          SamplingOptions{.top_p = 0.97, .min_p = 0.001}}) {
      const auto expected = distribution(logits, options);
      Sampler sampler;
      for (uint64_t i = 0; i < 20; ++i) {
        const Draw draw = sampler.draw(logits, options, core::Philox(5, 0, i));
        ASSERT_TRUE(expected.contains(draw.token));
        EXPECT_NEAR(draw.log_probability, std::log(expected.at(draw.token)), 1e-4);
      }
    }
  }
}

TEST(Sampler, PrefersLowerIdsAmongEquallyProbableTokens) {
  const std::vector<float> logits(500, 1.0f);
  Sampler sampler;
  for (uint64_t i = 0; i < 100; ++i) {
    EXPECT_LT(sampler.draw(logits, {.top_k = 7}, core::Philox(0, 0, i)).token, 7);
    EXPECT_LT(sampler.draw(logits, {.top_p = 0.1}, core::Philox(0, 0, i)).token, 50);
  }
}

TEST(Sampler, DrawsTheSameForTheSameKeyWhateverItDrewBefore) {
  const auto logits = random_logits(5000, 2, 6);
  const SamplingOptions options{.top_p = 0.9};
  Sampler used;
  used.draw(random_logits(90000, 3, 7), {.top_k = 900, .min_p = 0.01}, core::Philox(1, 1, 1));
  for (uint64_t i = 0; i < 50; ++i) {
    EXPECT_EQ(used.draw(logits, options, core::Philox(8, 1, i)).token,
              Sampler().draw(logits, options, core::Philox(8, 1, i)).token);
  }
}

TEST(Sampler, NeverDrawsAForbiddenToken) {
  std::vector<float> logits(1000, -kInfinity);
  logits[999] = -3;
  for (const SamplingOptions& options : {SamplingOptions{}, SamplingOptions{.top_k = 10}, SamplingOptions{.top_p = 0.5},
                                         SamplingOptions{.min_p = 0.5}, SamplingOptions{.temperature = 0}}) {
    const Draw draw = Sampler().draw(logits, options, core::Philox(0, 0, 0));
    EXPECT_EQ(draw.token, 999);
    EXPECT_EQ(draw.log_probability, 0);
  }
}

TEST(Sampler, RefusesLogitsThatAreNotNumbers) {
  auto logits = random_logits(1000, 1, 1);
  const auto refuses = [&] {
    for (const double temperature : {0.0, 1.0}) {
      EXPECT_THAT([&] { Sampler().draw(logits, {.temperature = temperature}, core::Philox(0, 0, 0)); },
                  ThrowsMessage<core::Error>(HasSubstr("not numbers")));
    }
  };
  logits[997] = std::nanf("");
  refuses();
  logits[997] = kInfinity;
  refuses();
  logits.assign(1000, -kInfinity);
  refuses();
}

TEST(Sampler, NamesTheOptionThatMakesNoSense) {
  const auto message = [](const SamplingOptions& options) {
    try {
      options.validate();
    } catch (const core::UsageError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_THAT(message({.temperature = -1}), HasSubstr("temperature"));
  EXPECT_THAT(message({.temperature = std::nan("")}), HasSubstr("temperature"));
  EXPECT_THAT(message({.top_k = -1}), HasSubstr("top-k"));
  EXPECT_THAT(message({.top_p = 0}), HasSubstr("top-p"));
  EXPECT_THAT(message({.min_p = 1.5}), HasSubstr("min-p"));
  EXPECT_EQ(message({.temperature = 0, .top_k = 5, .top_p = 0.5, .min_p = 0.1}), "");
}

}  // namespace
}  // namespace distill::nn
