#include "distill/token_logits.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/safetensors.h"
#include "student/dense_model.h"
#include "tests/kernels/compare.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class TokenLogits : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& lines) {
    std::ofstream(folder_.path() / "ids.jsonl") << lines;
    return folder_.path() / "ids.jsonl";
  }
  std::string error_of(const std::string& lines) {
    try {
      read_token_lines(write(lines), 10);
      return {};
    } catch (const core::Error& error) {
      return error.what();
    }
  }
  static std::unique_ptr<nn::CausalLM> model() {
    return student::make_dense_model({{"model_type", "llama"},
                                      {"vocab_size", 10},
                                      {"hidden_size", 32},
                                      {"intermediate_size", 48},
                                      {"num_hidden_layers", 2},
                                      {"num_attention_heads", 2},
                                      {"initializer_range", 0.2}},
                                     {.compute = at::kFloat}, 1);
  }
  TemporaryFolder folder_;
};

TEST_F(TokenLogits, ReadsOneSequencePerLine) {
  EXPECT_THAT(read_token_lines(write("[1, 2, 9]\n[]\n[0]\n"), 10),
              ElementsAre(ElementsAre(1, 2, 9), ElementsAre(), ElementsAre(0)));
}

TEST_F(TokenLogits, NamesTheLineAndEntryItRefuses) {
  EXPECT_THAT(error_of("[1]\n[2, 10]\n"), HasSubstr("ids.jsonl:2: entry 1: 10 is not a token id of this model"));
  EXPECT_THAT(error_of("[-1]\n"), HasSubstr("ids.jsonl:1: entry 0: -1"));
  EXPECT_THAT(error_of("[1.5]\n"), HasSubstr("ids.jsonl:1: entry 0: 1.5"));
  EXPECT_THAT(error_of("[18446744073709551615]\n"), HasSubstr("ids.jsonl:1: entry 0"));
  EXPECT_THAT(error_of("[true]\n"), HasSubstr("ids.jsonl:1: entry 0: true"));
  EXPECT_THAT(error_of("{\"ids\": [1]}\n"), HasSubstr("ids.jsonl:1: expected an array of token ids, found object"));
  EXPECT_THAT(error_of("[1, 2\n"), HasSubstr("ids.jsonl:1"));
  EXPECT_THAT(error_of("[1]\n\n[2]\n"), HasSubstr("ids.jsonl:3: the line before is blank"));
  EXPECT_THROW(read_token_lines(folder_.path() / "missing.jsonl", 10), core::Error);
}

TEST_F(TokenLogits, AreTheSameForWholeSequencesAndTokenByToken) {
  const auto dense = model();
  const std::vector<int32_t> tokens{1, 2, 3, 9, 0, 4, 4, 4, 7, 6, 5, 1, 2, 3, 9, 0, 4, 8, 1, 2};
  EXPECT_LT(kernels::scaled_error(sequence_logits(*dense, tokens, ScoringMode::kIncremental),
                                  sequence_logits(*dense, tokens, ScoringMode::kWholeSequence)),
            1e-5);
}

TEST_F(TokenLogits, AreWrittenAsOneFp32TensorPerSequence) {
  const auto dense = model();
  const std::vector<std::vector<int32_t>> sequences{{1, 2, 3}, {}, {4}};
  const auto out = folder_.path() / "logits.safetensors";
  write_token_logits(*dense, sequences, ScoringMode::kWholeSequence, out);
  const auto file = data::SafetensorsFile::open(out);
  ASSERT_EQ(file->tensors().size(), 3u);
  for (size_t i = 0; i < sequences.size(); ++i) {
    const at::Tensor logits = file->load(std::to_string(i));
    EXPECT_TRUE(at::equal(logits, sequence_logits(*dense, sequences[i], ScoringMode::kWholeSequence))) << i;
    EXPECT_EQ(logits.sizes().vec(), (std::vector<int64_t>{static_cast<int64_t>(sequences[i].size()), 10}));
  }
}

}  // namespace
}  // namespace distill
