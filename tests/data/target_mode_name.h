// What a test that runs for several target modes is called in each: "threshold_0_03".
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <string>

namespace distill::data {

inline std::string target_mode_name(const testing::TestParamInfo<const char*>& mode) {
  std::string name = mode.param;
  std::ranges::replace_if(
      name, [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
}

}  // namespace distill::data
