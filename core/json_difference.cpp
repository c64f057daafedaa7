#include "core/json_difference.h"

#include <fmt/format.h>

#include <algorithm>

namespace distill::core {

std::string first_difference(const nlohmann::json& mine, const nlohmann::json& theirs) {
  nlohmann::json left = mine.flatten();
  nlohmann::json right = theirs.flatten();
  for (const auto& [key, value] : right.items()) {
    if (!left.contains(key)) left[key] = nullptr;
  }
  for (const auto& [key, value] : left.items()) {
    if (value == right[key]) continue;  // null where only one has the key
    std::string name = key.substr(1);
    std::ranges::replace(name, '/', ' ');
    return fmt::format("{}: {} against {}", name, value.dump(), right[key].dump());
  }
  return {};
}

}  // namespace distill::core
