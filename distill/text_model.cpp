#include "distill/text_model.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "distill/load_model.h"

namespace distill {

TextModel load_text_model(const std::filesystem::path& path, const nn::ModelOptions& options) {
  TextModel result{.files = data::ModelFiles::open(path), .model = {}, .tokenizer = {}, .stop_tokens = {}};
  // The tokenizer first: it is quick to find damaged, the weights are not.
  result.tokenizer = result.files.tokenizer();
  result.model = load_model(result.files, options);
  const int64_t vocab = result.model->shape().vocab_size;
  core::check(result.tokenizer->vocab_size() <= vocab,
              "{}: the tokenizer has ids up to {}, but the model knows only {} tokens: they do not belong together",
              result.files.path().string(), result.tokenizer->vocab_size() - 1, vocab);
  result.stop_tokens = result.files.eos_token_ids();
  return result;
}

}  // namespace distill
