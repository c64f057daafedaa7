#include "nn/generation_scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/philox.h"

namespace distill::nn {
namespace {

struct Totals {
  int64_t items = 0, tokens = 0;
};

Totals totals(const StepPlan& plan) {
  Totals result;
  for (const auto& item : plan.items) {
    ++result.items;
    result.tokens += item.count;
  }
  return result;
}

void add(GenerationScheduler& scheduler, int64_t length, std::vector<uint64_t> ids) {
  scheduler.add(length, ids);
}

TEST(GenerationScheduler, ReadsALongPromptInStepsWhileOthersGetTheirNextToken) {
  GenerationScheduler scheduler({.blocks = 100, .block_size = 4, .max_sequences = 4, .max_step_tokens = 8});
  add(scheduler, 3, {1});
  auto plan = scheduler.plan();
  EXPECT_EQ(plan.items.at(0).count, 3);
  scheduler.commit(plan);
  scheduler.grow(*plan.items[0].sequence);
  add(scheduler, 20, {2});
  for (const int64_t chunk : {7, 7, 6}) {
    plan = scheduler.plan();
    ASSERT_EQ(plan.items.size(), 2u);
    EXPECT_EQ(plan.items[0].count, 1);
    EXPECT_EQ(plan.items[1].count, chunk);
    EXPECT_EQ(plan.items[1].reaches_end(), chunk == 6);
    scheduler.commit(plan);
    scheduler.grow(*plan.items[0].sequence);
  }
}

TEST(GenerationScheduler, RunsNoMoreSequencesThanItMay) {
  GenerationScheduler scheduler({.blocks = 100, .block_size = 4, .max_sequences = 2, .max_step_tokens = 100});
  add(scheduler, 3, {1});
  EXPECT_TRUE(scheduler.has_room());
  add(scheduler, 3, {2});
  EXPECT_FALSE(scheduler.has_room());
  add(scheduler, 3, {3});
  EXPECT_EQ(totals(scheduler.plan()).items, 2);
}

TEST(GenerationScheduler, ComputesTheSharedPrefixOfSamplesOnce) {
  GenerationScheduler scheduler({.blocks = 100, .block_size = 4, .max_sequences = 4, .max_step_tokens = 100});
  add(scheduler, 11, {1, 2, 3});
  auto plan = scheduler.plan();
  EXPECT_EQ(totals(plan).tokens, 11);
  scheduler.commit(plan);
  scheduler.grow(*plan.items[0].sequence);
  plan = scheduler.plan();
  ASSERT_EQ(plan.items.size(), 3u);
  // The first sample's new token and the last prompt token of the other two, each in a block of its own: all but the
  // last of those who share it take a copy.
  EXPECT_EQ(totals(plan).tokens, 3);
  EXPECT_EQ(plan.copies.size(), 2u);
  EXPECT_EQ(scheduler.blocks().num_free(), 100 - 3 - 2);
  std::set<int32_t> last_blocks;
  for (const auto& item : plan.items) last_blocks.insert(item.sequence->blocks.back());
  EXPECT_EQ(last_blocks.size(), 3u);
}

TEST(GenerationScheduler, TakesBlocksFromTheYoungestWhenTheyRunOut) {
  GenerationScheduler scheduler({.blocks = 5, .block_size = 4, .max_sequences = 2, .max_step_tokens = 100});
  add(scheduler, 4, {1});
  add(scheduler, 4, {2});
  std::map<uint64_t, int64_t> drawn;
  for (int step = 0; step < 14; ++step) {
    const auto plan = scheduler.plan();
    ASSERT_EQ(plan.items.at(0).sequence->id, 1u);
    scheduler.commit(plan);
    for (const auto& item : plan.items) {
      if (!item.reaches_end()) continue;
      scheduler.grow(*item.sequence);
      ++drawn[item.sequence->id];
    }
  }
  EXPECT_EQ(drawn[1], 14);
  EXPECT_GT(drawn[2], 3);
  EXPECT_LT(drawn[2], 14);
  EXPECT_GT(scheduler.preemptions(), 0);
}

TEST(GenerationScheduler, KnowsWhatCanNeverFit) {
  GenerationScheduler scheduler({.blocks = 3, .block_size = 4});
  EXPECT_TRUE(scheduler.fits(13));  // the last token is never computed
  EXPECT_FALSE(scheduler.fits(14));
}

// Every sequence gets on, blocks are never lost or used twice, whatever comes in.
TEST(GenerationScheduler, CompletesRandomLoadsInSmallCaches) {
  for (uint64_t seed = 0; seed < 60; ++seed) {
    core::Philox random(seed, 0, 0);
    const int64_t block_size = 1 + random.next_below(6);
    const int64_t blocks = 8 + random.next_below(12);
    const int64_t longest = blocks * block_size + 1;
    GenerationScheduler scheduler({.blocks = blocks,
                                   .block_size = block_size,
                                   .max_sequences = 1 + random.next_below(6),
                                   .max_step_tokens = 1 + random.next_below(20)});
    std::map<uint64_t, int64_t> goal;
    uint64_t next_id = 0;
    int to_add = 25;
    for (int steps = 0; to_add > 0 || !scheduler.is_idle(); ++steps) {
      ASSERT_LT(steps, 20000) << "seed " << seed;
      while (to_add > 0 && scheduler.has_room()) {
        --to_add;
        const int64_t prompt = 1 + random.next_below(static_cast<uint32_t>(longest - 1));
        std::vector<uint64_t> ids(1 + random.next_below(4));
        for (auto& id : ids) {
          id = next_id++;
          goal[id] = std::min<int64_t>(longest, prompt + 1 + random.next_below(12));
        }
        scheduler.add(prompt, ids);
      }
      const StepPlan plan = scheduler.plan();
      std::map<int32_t, int32_t> written;
      for (const auto& item : plan.items) {
        ASSERT_EQ(item.begin, item.sequence->cached);
        ASSERT_GT(item.count, 0);
        for (int64_t p = item.begin; p < item.begin + item.count; p += 1) {
          const int32_t block = item.sequence->blocks.at(static_cast<size_t>(p / block_size));
          ASSERT_EQ(scheduler.blocks().references(block), 1) << "writes to a shared block";
          ASSERT_TRUE(written.try_emplace(block, item.sequence->id).first->second ==
                      static_cast<int32_t>(item.sequence->id));
        }
      }
      scheduler.commit(plan);
      for (const auto& item : plan.items) {
        if (!item.reaches_end()) continue;
        scheduler.grow(*item.sequence);
        if (item.sequence->length == goal.at(item.sequence->id)) {
          goal.erase(item.sequence->id);
          scheduler.finish(*item.sequence);
        }
      }
    }
    EXPECT_TRUE(goal.empty());
    EXPECT_EQ(scheduler.blocks().num_free(), blocks) << "seed " << seed;
  }
}

}  // namespace
}  // namespace distill::nn
