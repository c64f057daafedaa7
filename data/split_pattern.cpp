#include "data/split_pattern.h"

#include <utility>

#include "core/error.h"

namespace distill::data {
namespace {

class LiteralPattern final : public SplitPattern {
 public:
  explicit LiteralPattern(std::string source) : SplitPattern(std::move(source), true) {}

  void find(std::string_view text, std::vector<Segment>& segments) const override {
    size_t begin = 0;
    while (begin < text.size()) {
      const size_t at = std::min(text.find(source(), begin), text.size());
      if (at > begin) segments.push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(at), false});
      if (at == text.size()) return;
      begin = at + source().size();
      segments.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(begin), true});
    }
  }
};

}  // namespace

std::shared_ptr<const SplitPattern> SplitPattern::regex(std::string source) {
  if (auto known = find_known_pattern(source)) return known;
  return make_pcre_pattern(std::move(source));
}

std::shared_ptr<const SplitPattern> SplitPattern::literal(std::string source) {
  core::check(!source.empty(), "the pattern to split at is an empty string");
  return std::make_shared<LiteralPattern>(std::move(source));
}

}  // namespace distill::data
