// The one exception family of distill. A message says what was wrong, where, and what to do; callers on the way up add
// where they were with `with_context`.
#pragma once

#include <fmt/format.h>

#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace distill::core {

// A failure the user can act on. The command line prints it and exits with 1.
class Error : public std::exception {
 public:
  explicit Error(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

  // Prepends "<context>: ".
  void add_context(std::string_view context);

 private:
  std::string message_;
};

// The command line, a recipe or an option was wrong. The command line exits with 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

template <typename... Args>
[[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fmt::format(format, std::forward<Args>(args)...));
}

template <typename... Args>
[[noreturn]] void fail_usage(fmt::format_string<Args...> format, Args&&... args) {
  throw UsageError(fmt::format(format, std::forward<Args>(args)...));
}

// Throws Error with the formatted message unless `condition` holds: check(size <= limit, "{}: {} bytes", name, size).
template <typename... Args>
void check(bool condition, fmt::format_string<Args...> format, Args&&... args) {
  if (!condition) fail(format, std::forward<Args>(args)...);
}

// Inside a catch (...) block: rethrows the current exception with "<context>: " before its message. Foreign exceptions
// (LibTorch, the standard library) become Error; UsageError stays UsageError.
[[noreturn]] void rethrow_with_context(std::string_view context);

// Runs `body`; an exception that leaves it carries `context`:
//   with_context("while reading shard-00012.h5", [&] { ... });
template <typename Body>
decltype(auto) with_context(std::string_view context, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    rethrow_with_context(context);
  }
}

// `name` as in the list of `known` that is nearest to it by edit distance, or empty if none is near. For "did you
// mean".
template <typename Range>
std::string nearest(std::string_view name, const Range& known);

// Edit distance (Levenshtein) of two short words.
int edit_distance(std::string_view a, std::string_view b);

template <typename Range>
std::string nearest(std::string_view name, const Range& known) {
  std::string best;
  int best_distance = static_cast<int>(name.size()) / 2 + 1;
  for (const auto& candidate : known) {
    if (const int distance = edit_distance(name, candidate); distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace distill::core
