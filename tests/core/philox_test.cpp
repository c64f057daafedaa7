#include "core/philox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace distill::core {
namespace {

using testing::ElementsAre;

TEST(Philox, EqualsThePublishedVectors) {  // Random123, kat_vectors, philox4x32 10
  EXPECT_THAT(philox4x32_10({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(Philox, DrawsTheSameForTheSameKeyAndOtherwiseDifferently) {
  const uint32_t first = Philox(1, 2, 3).next_uint32();
  EXPECT_EQ(Philox(1, 2, 3).next_uint32(), first);
  EXPECT_NE(Philox(2, 2, 3).next_uint32(), first);
  EXPECT_NE(Philox(1, 3, 3).next_uint32(), first);
  EXPECT_NE(Philox(1, 2, 4).next_uint32(), first);
}

TEST(Philox, DrawsUniformAndNormalNumbersWithTheRightMoments) {
  constexpr int kDraws = 100000;
  Philox random(7, 0, 0);
  double uniform = 0;
  double normal = 0;
  double normal_square = 0;
  for (int i = 0; i < kDraws; ++i) {
    uniform += random.next_double();
    const double z = random.next_normal();
    normal += z;
    normal_square += z * z;
  }
  EXPECT_NEAR(uniform / kDraws, 0.5, 5 * std::sqrt(1.0 / 12 / kDraws));
  EXPECT_NEAR(normal / kDraws, 0.0, 5 / std::sqrt(kDraws));
  EXPECT_NEAR(normal_square / kDraws, 1.0, 5 * std::sqrt(2.0 / kDraws));
}

TEST(Philox, DrawsEveryValueBelowABoundEquallyOften) {
  Philox random(7, 0, 0);
  std::array<int, 3> counts{};
  for (int i = 0; i < 30000; ++i) ++counts[random.next_below(3)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 5 * std::sqrt(30000.0 * 2 / 9));
}

}  // namespace
}  // namespace distill::core
