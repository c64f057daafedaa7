#include "data/bpe_tokenizer.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/digest.h"
#include "core/error.h"
#include "data/utf8.h"
#include "data/word_cache.h"

namespace distill::data {
namespace {

constexpr size_t kMaxTextBytes = INT32_MAX;  // ICU counts bytes in 32 bits

}  // namespace

struct BpeTokenizer::Workspace {
  WordCache cache;
  std::vector<TextPart> raw_parts;
  std::vector<TextPart> parts;
  std::string normalized;
  Pieces pieces;
};

BpeTokenizer::BpeTokenizer(TokenizerParts parts, const nlohmann::json& post_processor)
    : vocabulary_(std::move(parts.vocabulary)),
      model_(*vocabulary_, std::move(parts.merges), std::move(parts.options)),
      normalizer_(std::move(parts.normalizer)),
      pre_tokenizer_(std::move(parts.pre_tokenizer)) {
  vocabulary_->check_complete();
  add_added_tokens(std::move(parts.added_tokens));
  post_processor_ =
      core::with_context("post_processor", [&] { return PostProcessor::from_json(post_processor, *vocabulary_); });
}

BpeTokenizer::~BpeTokenizer() = default;

void BpeTokenizer::add_added_tokens(std::vector<AddedToken> tokens) {
  for (const AddedToken& token : tokens) {
    core::with_context(fmt::format("added token '{}'", token.content), [&] {
      core::check(!token.content.empty(), "it has no text");
      const auto known = vocabulary_->find(token.content);
      if (known) {
        core::check(*known == token.id, "it has the id {}, but {} in the vocabulary", token.id, *known);
      } else {
        core::check(token.id == vocabulary_->size(), "it has the id {}, but the next free one is {}", token.id,
                    vocabulary_->size());
        vocabulary_->add(token.content, token.id);
      }
    });
  }
  std::ranges::sort(tokens, {}, &AddedToken::id);
  const auto twice = std::ranges::adjacent_find(tokens, {}, &AddedToken::id);
  core::check(twice == tokens.end(), "the added token with id {} is there twice",
              twice == tokens.end() ? 0 : twice->id);

  added_tokens_ = std::move(tokens);
  special_.assign(vocabulary_->size(), false);
  std::vector<const AddedToken*> raw;
  std::vector<const AddedToken*> normalized;
  std::vector<std::string> raw_contents;
  std::vector<std::string> normalized_contents;
  for (const AddedToken& token : added_tokens_) {
    special_[token.id] = token.special;
    if (!token.normalized) {
      raw.push_back(&token);
      raw_contents.push_back(token.content);
      continue;
    }
    std::string buffer;
    std::string content(normalizer_ ? normalizer_->apply(token.content, buffer) : token.content);
    core::check(!content.empty(), "the added token '{}' is empty once normalised", token.content);
    if (content != token.content) vocabulary_->set_decoded_text(token.id, content);
    normalized.push_back(&token);
    normalized_contents.push_back(std::move(content));
  }
  raw_finder_ = std::make_unique<AddedTokenFinder>(raw, raw_contents);
  normalized_finder_ = std::make_unique<AddedTokenFinder>(normalized, normalized_contents);
}

std::unique_ptr<BpeTokenizer::Workspace> BpeTokenizer::borrow() const {
  {
    const std::lock_guard lock(idle_mutex_);
    if (!idle_.empty()) {
      auto workspace = std::move(idle_.back());
      idle_.pop_back();
      return workspace;
    }
  }
  return std::make_unique<Workspace>();
}

void BpeTokenizer::give_back(std::unique_ptr<Workspace> workspace) const {
  const std::lock_guard lock(idle_mutex_);
  idle_.push_back(std::move(workspace));
}

std::vector<int32_t> BpeTokenizer::encode(std::string_view text, bool add_special_tokens) const {
  core::check(text.size() <= kMaxTextBytes, "a text of {} bytes is too long to tokenise (limit {})", text.size(),
              kMaxTextBytes);
  std::string repaired;
  if (utf8::valid_prefix(text) != text.size()) {
    repaired = utf8::replace_invalid(text);
    text = repaired;
  }
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 3 + 8);
  if (add_special_tokens) ids = post_processor_.prefix;
  auto workspace = borrow();
  encode_valid(text, *workspace, ids);
  give_back(std::move(workspace));
  if (add_special_tokens) ids.insert(ids.end(), post_processor_.suffix.begin(), post_processor_.suffix.end());
  return ids;
}

void BpeTokenizer::encode_valid(std::string_view text, Workspace& workspace, std::vector<int32_t>& ids) const {
  workspace.raw_parts.clear();
  raw_finder_->split(text, workspace.raw_parts);
  for (const auto& [raw_text, raw_token] : workspace.raw_parts) {
    if (raw_token != nullptr) {
      ids.push_back(raw_token->id);
      continue;
    }
    const std::string_view normal = normalizer_ ? normalizer_->apply(raw_text, workspace.normalized) : raw_text;
    workspace.parts.clear();
    normalized_finder_->split(normal, workspace.parts);
    for (const auto& [part, token] : workspace.parts) {
      if (token != nullptr) {
        ids.push_back(token->id);
        continue;
      }
      pre_tokenizer_.apply(part, workspace.pieces);
      for (const std::string_view piece : workspace.pieces.views) encode_piece(piece, workspace, ids);
    }
  }
}

void BpeTokenizer::encode_piece(std::string_view piece, Workspace& workspace, std::vector<int32_t>& ids) const {
  if (piece.size() > WordCache::kMaxBytes) {
    model_.encode(piece, ids);
    return;
  }
  const WordCache::Key key = WordCache::key_of(piece);
  WordCache::Slot& slot = workspace.cache.slot(key);
  if (slot.holds(key)) {
    ids.insert(ids.end(), slot.ids.begin(), slot.ids.begin() + slot.count);
    return;
  }
  const size_t before = ids.size();
  model_.encode(piece, ids);
  WordCache::store(slot, key, std::span(ids).subspan(before));
}

void BpeTokenizer::check_id(int32_t id) const {
  core::check(vocabulary_->contains(id), "token id {} is outside the vocabulary of {} tokens", id, vocabulary_->size());
}

std::string BpeTokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) {
    check_id(id);
    if (!(skip_special_tokens && special_[id])) bytes += vocabulary_->bytes(id);
  }
  if (utf8::valid_prefix(bytes) != bytes.size()) bytes = utf8::replace_invalid(bytes);
  return bytes;
}

std::string_view BpeTokenizer::token_bytes(int32_t id) const {
  check_id(id);
  return vocabulary_->bytes(id);
}

bool BpeTokenizer::is_special(int32_t id) const {
  check_id(id);
  return special_[id];
}

std::string BpeTokenizer::to_json() const {
  return write_json(true);
}

std::string BpeTokenizer::fingerprint() const {
  return core::sha256_hex(write_json(false));
}

std::string BpeTokenizer::write_json(bool with_decoder) const {
  using nlohmann::json;
  const auto quoted = [](std::string_view text) { return json(text).dump(); };
  json added = json::array();
  for (const AddedToken& token : added_tokens_) {
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", token.single_word},
                     {"lstrip", token.lstrip},
                     {"rstrip", token.rstrip},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
  const json decoder = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
  const BpeOptions& options = model_.options();
  std::string out = R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":)";
  out += added.dump();
  out += R"(,"normalizer":)" + (normalizer_ ? normalizer_->to_json().dump() : "null");
  out += R"(,"pre_tokenizer":)" + pre_tokenizer_.to_json().dump();
  out += R"(,"post_processor":)" + post_processor_.to_json(*vocabulary_).dump();
  if (with_decoder) out += R"(,"decoder":)" + decoder.dump();
  out += R"(,"model":{"type":"BPE","dropout":null,"unk_token":)";
  out += options.unknown_token ? quoted(*options.unknown_token) : "null";
  out += R"(,"continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":)";
  out += options.fuse_unknown ? "true" : "false";
  out += R"(,"byte_fallback":false,"ignore_merges":)";
  out += options.ignore_merges ? "true" : "false";
  out += R"(,"vocab":{)";
  for (int32_t id = 0; id < model_.vocab_size(); ++id) {
    if (id > 0) out += ',';
    out += quoted(vocabulary_->text(id)) + ':' + std::to_string(id);
  }
  out += R"(},"merges":[)";
  bool first = true;
  for (const auto& [left, right] : model_.merges()) {
    if (!first) out += ',';
    first = false;
    out += '[' + quoted(vocabulary_->text(left)) + ',' + quoted(vocabulary_->text(right)) + ']';
  }
  out += "]}}\n";
  return out;
}

}  // namespace distill::data
