// The one implementation of Tokenizer, put together from its parts by the readers of tokenizer.json and GGUF.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/added_tokens.h"
#include "data/bpe_model.h"
#include "data/post_processor.h"
#include "data/pre_tokenizer.h"
#include "data/text_normalizer.h"
#include "data/tokenizer.h"
#include "data/vocabulary.h"

namespace distill::data {

struct TokenizerParts {
  std::shared_ptr<Vocabulary> vocabulary;  // the model's tokens; added tokens come on top
  std::vector<std::pair<int32_t, int32_t>> merges;
  BpeOptions options;
  // Ids are those of the vocabulary, or follow it without gaps, in order.
  std::vector<AddedToken> added_tokens;
  std::shared_ptr<const TextNormalizer> normalizer;  // null: none
  PreTokenizer pre_tokenizer;
};

class BpeTokenizer final : public Tokenizer {
 public:
  // `post_processor` is the entry of a tokenizer.json. Throws Error naming the entry at fault.
  BpeTokenizer(TokenizerParts parts, const nlohmann::json& post_processor);
  ~BpeTokenizer() override;

  std::vector<int32_t> encode(std::string_view text, bool add_special_tokens) const override;
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens) const override;
  std::string_view token_bytes(int32_t id) const override;
  int32_t vocab_size() const override { return vocabulary_->size(); }
  std::optional<int32_t> token_to_id(std::string_view token) const override { return vocabulary_->find(token); }
  bool is_special(int32_t id) const override;
  std::string to_json() const override;
  std::string fingerprint() const override;

 private:
  struct Workspace;

  void add_added_tokens(std::vector<AddedToken> tokens);
  std::unique_ptr<Workspace> borrow() const;
  void give_back(std::unique_ptr<Workspace> workspace) const;
  void encode_valid(std::string_view text, Workspace& workspace, std::vector<int32_t>& ids) const;
  void encode_piece(std::string_view piece, Workspace& workspace, std::vector<int32_t>& ids) const;
  void check_id(int32_t id) const;
  std::string write_json(bool with_decoder) const;

  std::shared_ptr<Vocabulary> vocabulary_;
  BpeModel model_;
  std::shared_ptr<const TextNormalizer> normalizer_;
  PreTokenizer pre_tokenizer_;
  PostProcessor post_processor_;
  std::vector<AddedToken> added_tokens_;  // sorted by id
  std::vector<bool> special_;             // by id
  std::unique_ptr<const AddedTokenFinder> raw_finder_;
  std::unique_ptr<const AddedTokenFinder> normalized_finder_;

  // Scratch space and word caches of calls that are over, for the next ones.
  mutable std::mutex idle_mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace distill::data
