// Ends a growing text at whichever of some strings is complete first, however the text is cut into pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace distill::nn {

class StopStrings {
 public:
  // Empty strings are ignored.
  explicit StopStrings(std::vector<std::string> strings);

  // The text that is certain by now: held back is what may be the beginning of a stop string. After a match: what came
  // before it, and from then on nothing.
  std::string push(std::string_view piece);
  bool matched() const { return matched_; }
  // What was held back, at the end of a text without a match.
  std::string finish();

 private:
  std::vector<std::string> strings_;
  std::string pending_;
  bool matched_ = false;
};

}  // namespace distill::nn
