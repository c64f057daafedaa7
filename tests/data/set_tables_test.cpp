#include "data/set_tables.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/philox.h"

namespace distill::data {
namespace {

using testing::ElementsAre;

std::shared_ptr<const SetTables> tables(size_t vocabulary) {
  return std::make_shared<const SetTables>(
      std::vector<uint8_t>(vocabulary + set_context::kContexts * Magnitude::kSymbols, 1), vocabulary);
}

TEST(IdOrder, HasTheIdsOfTheHighestClassFirst) {
  const IdOrder order(std::vector<uint8_t>{3, 0, 5, 3, 31, 0, 1});
  std::vector<int32_t> ids;
  for (size_t rank = 0; rank < order.size(); ++rank) ids.push_back(order.id(rank));
  EXPECT_THAT(ids, ElementsAre(4, 2, 0, 3, 6));
  EXPECT_THAT(order.ranks(), ElementsAre(2, IdOrder::kNone, 1, 3, 0, IdOrder::kNone, 4));
}

TEST(IdOrder, TakesVocabulariesOfAnySize) {
  for (const size_t vocabulary : {size_t{1}, size_t{65536}, size_t{65537}, size_t{200000}}) {
    core::Philox random(1, vocabulary, 0);
    std::vector<uint8_t> classes(vocabulary);
    for (uint8_t& value : classes) value = static_cast<uint8_t>(random.next_below(32));
    classes.back() = 7;
    const IdOrder order(classes);
    const auto ranks = order.ranks();
    for (size_t rank = 0; rank < order.size(); ++rank) {
      const auto id = static_cast<size_t>(order.id(rank));
      ASSERT_EQ(ranks[id], rank);
      ASSERT_GT(classes[id], 0);
      if (rank == 0) continue;
      const auto before = static_cast<size_t>(order.id(rank - 1));
      ASSERT_TRUE(classes[before] > classes[id] || (classes[before] == classes[id] && before < id));
    }
    EXPECT_EQ(order.size(), vocabulary - static_cast<size_t>(std::ranges::count(classes, 0)));
    EXPECT_EQ(order.bytes(), order.size() * (vocabulary <= 65536 ? 2 : 4));
  }
}

TEST(RansTable, FindsEverySlotsSymbol) {
  core::Philox random(2, 0, 0);
  for (int round = 0; round < 200; ++round) {
    std::vector<uint64_t> counts(1 + random.next_below(64));
    for (uint64_t& count : counts) count = random.next_below(3) == 0 ? 0 : uint64_t{1} << random.next_below(30);
    counts[random.next_below(static_cast<uint32_t>(counts.size()))] = 1;
    const auto frequencies = normalise_frequencies(counts);
    const RansTable table(frequencies);
    uint32_t slot = 0;
    for (uint32_t symbol = 0; symbol < frequencies.size(); ++symbol) {
      ASSERT_EQ(table.interval(symbol).frequency, frequencies[symbol]);
      if (frequencies[symbol] > 0) {
        ASSERT_EQ(table.interval(symbol).start, slot);
      }
      for (const uint32_t end = slot + frequencies[symbol]; slot < end; ++slot) {
        ASSERT_EQ(table.symbol_at(slot), symbol);
      }
    }
    ASSERT_EQ(slot, 4096u);
  }
}

TEST(SetTableCache, KeepsWhatWasUsedLastWithinItsBound) {
  const size_t bytes = tables(1000)->bytes();
  SetTableCache cache(3 * bytes);
  int keys[5], made = 0;
  const auto get = [&](int key) {
    return cache.get(&keys[key], [&] {
      ++made;
      return tables(1000);
    });
  };
  for (const int key : {0, 1, 2, 0, 1, 2}) get(key);
  EXPECT_EQ(made, 3);
  EXPECT_EQ(cache.bytes(), 3 * bytes);
  get(0);
  const auto held = get(1);
  get(3);  // in place of 2
  for (const int key : {3, 1, 0}) get(key);
  EXPECT_EQ(made, 4);
  get(2);  // in place of 3
  EXPECT_EQ(made, 5);
  get(4);  // in place of 1, which is still held
  EXPECT_EQ(held->order.size(), 1000u);
  EXPECT_EQ(cache.bytes(), 3 * bytes);
  cache.forget(&keys[4]);
  cache.forget(&keys[4]);
  EXPECT_EQ(cache.bytes(), 2 * bytes);
}

TEST(SetTableCache, KeepsTablesThatAreLargerThanItsBoundWhileTheyAreUsed) {
  SetTableCache cache(1);
  int key = 0, made = 0;
  for (int i = 0; i < 3; ++i) {
    cache.get(&key, [&] {
      ++made;
      return tables(10);
    });
  }
  EXPECT_EQ(made, 1);
}

TEST(SetTableCache, ServesSeveralThreads) {
  SetTableCache cache(2 * tables(100)->bytes());
  int keys[4];
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (int i = 0; i < 500; ++i) {
        const auto found = cache.get(&keys[(thread + i) % 4], [] { return tables(100); });
        ASSERT_EQ(found->ranks().size(), 100u);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(cache.bytes(), 2 * tables(100)->bytes());
}

}  // namespace
}  // namespace distill::data
