#include "data/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "data/json_fields.h"
#include "data/unicode_table.h"
#include "data/utf8.h"

namespace distill::data {
namespace {

using nlohmann::json;

enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

constexpr std::pair<std::string_view, Behavior> kBehaviors[] = {
    {"Removed", Behavior::kRemoved},
    {"Isolated", Behavior::kIsolated},
    {"MergedWithPrevious", Behavior::kMergedWithPrevious},
    {"MergedWithNext", Behavior::kMergedWithNext},
    {"Contiguous", Behavior::kContiguous},
};

// A match joins the segment before it unless that was a match too.
void merge_with_previous(std::vector<Segment>& segments) {
  size_t kept = 0;
  bool previous_matched = false;
  for (const Segment& segment : segments) {
    const Segment current = segment;
    if (current.matched && !previous_matched && kept > 0) {
      segments[kept - 1].end = current.end;
    } else {
      segments[kept++] = current;
    }
    previous_matched = current.matched;
  }
  segments.resize(kept);
}

void merge_with_next(std::vector<Segment>& segments) {
  size_t kept = segments.size();
  bool next_matched = false;
  for (size_t i = segments.size(); i-- > 0;) {
    const Segment current = segments[i];
    if (current.matched && !next_matched && kept < segments.size()) {
      segments[kept].begin = current.begin;
    } else {
      segments[--kept] = current;
    }
    next_matched = current.matched;
  }
  segments.erase(segments.begin(), segments.begin() + static_cast<std::ptrdiff_t>(kept));
}

// Neighbours that are both matches, or both not, become one.
void merge_alike(std::vector<Segment>& segments) {
  size_t kept = 0;
  for (const Segment& segment : segments) {
    const Segment current = segment;
    if (kept > 0 && segments[kept - 1].matched == current.matched) {
      segments[kept - 1].end = current.end;
    } else {
      segments[kept++] = current;
    }
  }
  segments.resize(kept);
}

void arrange(std::vector<Segment>& segments, Behavior behavior) {
  switch (behavior) {
    case Behavior::kRemoved:
      std::erase_if(segments, [](const Segment& segment) { return segment.matched; });
      break;
    case Behavior::kIsolated:
      break;
    case Behavior::kMergedWithPrevious:
      merge_with_previous(segments);
      break;
    case Behavior::kMergedWithNext:
      merge_with_next(segments);
      break;
    case Behavior::kContiguous:
      merge_alike(segments);
      break;
  }
}

void append_pieces(std::string_view text, const std::vector<Segment>& segments, std::vector<std::string_view>& views) {
  for (const auto& [begin, end, matched] : segments) {
    if (begin < end) views.emplace_back(text.data() + begin, end - begin);
  }
}

class Split final : public PreTokenizerStep {
 public:
  Split(std::shared_ptr<const SplitPattern> pattern, Behavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  void apply(Pieces& pieces) const override {
    std::swap(pieces.views, pieces.previous);
    pieces.views.clear();
    for (const std::string_view piece : pieces.previous) {
      pieces.segments.clear();
      pattern_->find(piece, pieces.segments);
      if (invert_) {
        for (Segment& segment : pieces.segments) segment.matched = !segment.matched;
      }
      arrange(pieces.segments, behavior_);
      append_pieces(piece, pieces.segments, pieces.views);
    }
  }

  json to_json() const override {
    const auto* name = std::ranges::find(kBehaviors, behavior_, [](const auto& entry) { return entry.second; });
    return {{"type", "Split"},
            {"pattern", {{pattern_->is_literal() ? "String" : "Regex", pattern_->source()}}},
            {"behavior", name->first},
            {"invert", invert_}};
  }

 private:
  std::shared_ptr<const SplitPattern> pattern_;
  Behavior behavior_;
  bool invert_;
};

class Digits final : public PreTokenizerStep {
 public:
  explicit Digits(bool individual) : individual_(individual) {}

  void apply(Pieces& pieces) const override {
    std::swap(pieces.views, pieces.previous);
    pieces.views.clear();
    for (const std::string_view piece : pieces.previous) cut(piece, pieces.views);
  }

  json to_json() const override { return {{"type", "Digits"}, {"individual_digits", individual_}}; }

 private:
  void cut(std::string_view piece, std::vector<std::string_view>& views) const {
    const unicode::Table& table = unicode::Table::instance();
    const auto* p = reinterpret_cast<const unsigned char*>(piece.data());
    size_t begin = 0;
    bool in_digits = false;
    for (size_t i = 0; i < piece.size();) {
      const auto [code_point, length] = utf8::decode(p + i);
      const bool is_digit = (table[code_point] & unicode::kNumeric) != 0;
      if (i > begin && (is_digit != in_digits || (is_digit && individual_))) {
        views.push_back(piece.substr(begin, i - begin));
        begin = i;
      }
      in_digits = is_digit;
      i += length;
    }
    if (begin < piece.size()) views.push_back(piece.substr(begin));
  }

  bool individual_;
};

class ByteLevel final : public PreTokenizerStep {
 public:
  ByteLevel(bool add_prefix_space, bool use_regex)
      : add_prefix_space_(add_prefix_space),
        pattern_(use_regex ? SplitPattern::regex(std::string(kGpt2Pattern)) : nullptr) {}

  void apply(Pieces& pieces) const override {
    if (add_prefix_space_) {
      for (std::string_view& piece : pieces.views) {
        if (!piece.starts_with(' ')) piece = pieces.rewritten.emplace_back(" ").append(piece);
      }
    }
    if (pattern_ == nullptr) return;
    std::swap(pieces.views, pieces.previous);
    pieces.views.clear();
    for (const std::string_view piece : pieces.previous) {
      pieces.segments.clear();
      pattern_->find(piece, pieces.segments);
      append_pieces(piece, pieces.segments, pieces.views);
    }
  }

  json to_json() const override {
    return {{"type", "ByteLevel"},
            {"add_prefix_space", add_prefix_space_},
            {"trim_offsets", true},
            {"use_regex", pattern_ != nullptr}};
  }

 private:
  bool add_prefix_space_;
  std::shared_ptr<const SplitPattern> pattern_;  // null: pieces stay whole
};

Behavior parse_behavior(const std::string& name) {
  const auto* found = std::ranges::find(kBehaviors, name, [](const auto& entry) { return entry.first; });
  core::check(found != std::end(kBehaviors), "\"behavior\" is {}", name);
  return found->second;
}

std::unique_ptr<const PreTokenizerStep> parse_split(const json& config) {
  const json& pattern = json_member(config, "pattern");
  const bool is_regex = pattern.is_object() && pattern.contains("Regex");
  const std::string source = json_text(pattern, is_regex ? "Regex" : "String");
  return std::make_unique<Split>(is_regex ? SplitPattern::regex(source) : SplitPattern::literal(source),
                                 parse_behavior(json_text(config, "behavior")), json_bool(config, "invert", false));
}

// Appends the steps of `config`, those of nested Sequences in order.
void parse_steps(const json& config, std::vector<std::unique_ptr<const PreTokenizerStep>>& steps, bool& is_complete) {
  const std::string type = json_text(config, "type");
  if (type == "Sequence") {
    const json& list = json_member(config, "pretokenizers");
    core::check(list.is_array(), "\"pretokenizers\" is not an array");
    for (const json& step : list) parse_steps(step, steps, is_complete);
    return;
  }
  core::check(!is_complete, "{} after ByteLevel is not supported", type);
  if (type == "Split") {
    steps.push_back(parse_split(config));
  } else if (type == "Digits") {
    steps.push_back(std::make_unique<Digits>(json_bool(config, "individual_digits", false)));
  } else if (type == "ByteLevel") {
    steps.push_back(
        std::make_unique<ByteLevel>(json_bool(config, "add_prefix_space", true), json_bool(config, "use_regex", true)));
    is_complete = true;
  } else {
    core::fail("{} is not supported; known are Split, Digits, ByteLevel and Sequence", type);
  }
}

}  // namespace

PreTokenizer PreTokenizer::from_json(const json& config) {
  core::check(!config.is_null(), "there is none, so this is not byte-level BPE, the only kind supported");
  PreTokenizer result;
  bool is_complete = false;
  parse_steps(config, result.steps_, is_complete);
  core::check(is_complete, "there is no ByteLevel, so this is not byte-level BPE, the only kind supported");
  return result;
}

void PreTokenizer::apply(std::string_view text, Pieces& pieces) const {
  pieces.rewritten.clear();
  pieces.views.assign(1, text);
  for (const auto& step : steps_) step->apply(pieces);
}

json PreTokenizer::to_json() const {
  if (steps_.size() == 1) return steps_.front()->to_json();
  json list = json::array();
  for (const auto& step : steps_) list.push_back(step->to_json());
  return {{"type", "Sequence"}, {"pretokenizers", std::move(list)}};
}

}  // namespace distill::data
