#include "core/names.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/error.h"

namespace distill::core {

size_t index_of_name(std::span<const std::string_view> names, std::string_view name, std::string_view what) {
  const auto found = std::ranges::find(names, name);
  if (found != names.end()) return static_cast<size_t>(found - names.begin());
  const std::string quoted = fmt::format("{}{}'{}'", what, what.empty() ? "" : " ", name);
  if (names.size() == 2) fail_usage("{} is neither {} nor {}", quoted, names[0], names[1]);
  fail_usage("{} is none of {}", quoted, fmt::join(names, ", "));
}

}  // namespace distill::core
