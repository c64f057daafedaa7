// The words by which settings name the values of an enumeration.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace distill::core {

// The place of `name` among `names`. Throws UsageError that lists them, `what` in front: "schedule 'cosin' is none of
// cosine, wsd, linear, constant".
size_t index_of_name(std::span<const std::string_view> names, std::string_view name, std::string_view what = {});

// The same for an enumeration whose values from 0 on have these names.
template <typename Enum>
Enum parse_name(std::span<const std::string_view> names, std::string_view name, std::string_view what = {}) {
  return static_cast<Enum>(index_of_name(names, name, what));
}

}  // namespace distill::core
