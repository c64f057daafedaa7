#include "core/error.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace distill::core {

void Error::add_context(std::string_view context) {
  message_ = fmt::format("{}: {}", context, message_);
}

void rethrow_with_context(std::string_view context) {
  try {
    throw;
  } catch (Error& error) {
    error.add_context(context);
    throw;
  } catch (const std::exception& error) {
    // The first line only: LibTorch appends a C++ stack trace, which tells a user nothing.
    std::string_view message = error.what();
    message = message.substr(0, message.find('\n'));
    throw Error(fmt::format("{}: {}", context, message));
  }
}

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i) + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const int substitution = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, substitution});
    }
  }
  return row.back();
}

}  // namespace distill::core
