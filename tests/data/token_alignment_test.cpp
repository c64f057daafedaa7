#include "data/token_alignment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/atomic_file.h"
#include "core/philox.h"
#include "core/text_file.h"
#include "data/target_encoder.h"
#include "data/utf8.h"
#include "tests/data/small_tokenizer.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using Distribution = std::map<int32_t, double>;
using testing::ElementsAre;

std::shared_ptr<const Tokenizer> family(const std::string& name) {
  return Tokenizer::from_json_file(std::filesystem::path(DISTILL_TEST_DATA) / "tokenizers" / (name + ".json"));
}

std::shared_ptr<const Tokenizer> from_json(const nlohmann::json& json) {
  const TemporaryFolder folder;
  core::write_file_atomically(folder.path() / "tokenizer.json", json.dump());
  return Tokenizer::from_json_file(folder.path() / "tokenizer.json");
}

// The family's with the first `merges` of its merges alone, so that its tokens are shorter.
std::shared_ptr<const Tokenizer> shorter(const std::string& name, size_t merges) {
  auto json = core::read_json_file(std::filesystem::path(DISTILL_TEST_DATA) / "tokenizers" / (name + ".json"));
  auto& all = json["model"]["merges"];
  all.erase(all.begin() + static_cast<std::ptrdiff_t>(merges), all.end());
  return from_json(json);
}

std::string random_text(core::Philox& random) {
  static const std::vector<std::string> kPieces{" the", "license ", "node", "  ",      "12345", "\n\n",   "it's",
                                                " a",   "ing",      "é",    "ש",       " שלום", "日本語", "😀",
                                                "กข",   ".,!",      "copy", " Github", "über",  "\t"};
  std::string text;
  for (uint32_t i = 1 + random.next_below(12); i > 0; --i) {
    if (random.next_below(4) > 0) {
      text += kPieces[random.next_below(static_cast<uint32_t>(kPieces.size()))];
    } else {
      constexpr uint32_t kCharacters = 0x3000;
      utf8::append(text, static_cast<char32_t>(0x20 + random.next_below(kCharacters)));
    }
  }
  return text;
}

// Distributions that hold the written token and some others, and say nothing of a little mass.
SparseTargets random_targets(std::span<const int32_t> tokens, int32_t vocab, core::Philox& random) {
  SparseTargets targets;
  for (const int32_t token : tokens) {
    std::map<int32_t, double> weights{{token, 0.1 + random.next_double()}};
    for (int i = 0; i < 8; ++i) weights[static_cast<int32_t>(random.next_below(static_cast<uint32_t>(vocab)))] += 0.2;
    double sum = 0.25;
    for (const auto& [id, weight] : weights) sum += weight;
    for (const auto& [id, weight] : weights) {
      targets.ids.push_back(id);
      targets.weights.push_back(static_cast<float>(weight / sum));
    }
    targets.offsets.push_back(static_cast<int64_t>(targets.ids.size()));
    targets.uncovered.push_back(static_cast<float>(0.25 / sum));
  }
  return targets;
}

// The header's formula, word for word, in fp64. Returns what no token of the student stands for.
class Formula {
 public:
  Formula(const Tokenizer& teacher, int32_t teacher_end, const Tokenizer& student, int32_t student_end)
      : teacher_(teacher), student_(student), teacher_end_(teacher_end), student_end_(student_end) {}

  double operator()(std::span<const int32_t> tokens, const SparseTargets& q, size_t k, const std::string& prefix,
                    int32_t written, size_t bytes_left, double mass, Distribution& r) const {
    double lost = mass * q[k].uncovered;
    for (size_t e = 0; e < q[k].ids.size(); ++e) {
      const int32_t t = q[k].ids[e];
      const double share = mass * q[k].weights[e];
      const size_t size = t == teacher_end_ ? 1 : teacher_.token_bytes(t).size();
      if (t == tokens[k]) {
        if (size >= bytes_left) {
          r[written] += share;
        } else {
          lost += (*this)(tokens, q, k + 1, prefix + std::string(teacher_.token_bytes(t)), written, bytes_left - size,
                          share, r);
        }
        continue;
      }
      if (t == teacher_end_ && prefix.empty()) {
        r[student_end_] += share;
        continue;
      }
      std::string bytes = prefix;
      if (t != teacher_end_) bytes += teacher_.token_bytes(t);
      const bool special_alone = prefix.empty() && teacher_.is_special(t);
      if (special_alone || utf8::valid_prefix(bytes) != bytes.size()) {
        parts_ += share;  // of characters, and special tokens: another test
        continue;
      }
      r[student_.encode(bytes, false).front()] += share;
    }
    return lost;
  }
  double parts() const { return parts_; }

 private:
  const Tokenizer& teacher_;
  const Tokenizer& student_;
  int32_t teacher_end_, student_end_;
  mutable double parts_ = 0;
};

void expect_alignment(const std::shared_ptr<const Tokenizer>& teacher, const std::shared_ptr<const Tokenizer>& student,
                      int32_t teacher_end, int32_t student_end) {
  const TokenAlignment alignment({teacher, {teacher_end}}, {student, {student_end}});
  core::Philox random(3, 0, 0);
  size_t shared = 0, inside = 0, longer = 0;
  for (int repeat = 0; repeat < 300; ++repeat) {
    const std::string text = random_text(random);
    auto theirs = teacher->encode(text, false);
    theirs.push_back(teacher_end);
    const auto found = alignment.text(theirs);
    ASSERT_EQ(found.bytes, teacher->decode(std::span(theirs).first(theirs.size() - 1)));
    const auto ours = alignment.encode(found);
    ASSERT_EQ(ours.back(), student_end);
    std::string bytes;
    for (const int32_t id : std::span(ours).first(ours.size() - 1)) bytes += student->token_bytes(id);
    const bool same_bytes = bytes == found.bytes;

    const SparseTargets q = random_targets(theirs, teacher->vocab_size(), random);
    SparseTargets carried;
    alignment.carry(theirs, q, ours, carried);
    ASSERT_EQ(carried.positions(), ours.size());
    std::map<size_t, size_t> begins;  // bytes at which the teacher's tokens begin, and which do
    size_t at = 0;
    for (size_t k = 0; k < theirs.size(); ++k) {
      begins[at] = k;
      at += k + 1 == theirs.size() ? 1 : teacher->token_bytes(theirs[k]).size();
    }
    at = 0;
    for (size_t i = 0; i < ours.size(); ++i) {
      const size_t size = i + 1 == ours.size() ? 1 : student->token_bytes(ours[i]).size();
      const auto row = carried[i];
      Distribution r;
      double sum = row.uncovered;
      for (size_t e = 0; e < row.ids.size(); ++e) {
        EXPECT_TRUE(r.emplace(row.ids[e], row.weights[e]).second) << "an id twice";
        sum += row.weights[e];
      }
      EXPECT_NEAR(sum, 1, 1e-5);
      const auto begin = begins.find(at);
      if (!same_bytes || begin == begins.end()) {
        EXPECT_THAT(r, ElementsAre(testing::Pair(ours[i], 1.0)));
        ++inside;
      } else {
        ++shared;
        const size_t theirs_size =
            begin->second + 1 == theirs.size() ? 1 : teacher->token_bytes(theirs[begin->second]).size();
        if (theirs_size < size) ++longer;
        const Formula formula(*teacher, teacher_end, *student, student_end);
        Distribution expected;
        const double lost = formula(theirs, q, begin->second, "", ours[i], size, 1.0, expected);
        // What the formula leaves open is added somewhere.
        double more = row.uncovered - lost;
        for (const auto& [id, weight] : expected) {
          EXPECT_GE(r[id], weight - 1e-6);
          more += r[id] - weight;
          r.erase(id);
        }
        for (const auto& [id, weight] : r) more += weight;
        EXPECT_NEAR(more, formula.parts(), 1e-5);
      }
      at += size;
    }
  }
  EXPECT_GT(shared, 300);
  EXPECT_GT(inside + longer, 50) << "the tokenizers hardly differ";
}

TEST(TokenAlignment, FollowsItsFormulaForAStudentOfShorterTokens) {
  const auto teacher = family("qwen2");
  const auto student = shorter("llama3", 60);
  expect_alignment(teacher, student, *teacher->token_to_id("<|im_end|>"), *student->token_to_id("<|eot_id|>"));
}

TEST(TokenAlignment, FollowsItsFormulaForAStudentOfLongerTokens) {
  const auto teacher = shorter("qwen2", 60);
  const auto student = family("llama3");
  expect_alignment(teacher, student, *teacher->token_to_id("<|im_end|>"), *student->token_to_id("<|eot_id|>"));
}

TEST(TokenAlignment, FollowsItsFormulaBetweenFamilies) {
  const auto teacher = family("tekken");
  const auto student = shorter("deepseek-v3", 120);
  expect_alignment(teacher, student, *teacher->token_to_id("</s>"), *student->token_to_id("<｜end▁of▁sentence｜>"));
}

TEST(TokenAlignment, ChangesNothingBetweenEqualTokenizers) {
  const auto tokenizer = family("llama3");
  const int32_t end = *tokenizer->token_to_id("<|eot_id|>");
  const TokenAlignment alignment({tokenizer, {end}}, {tokenizer, {end}});
  auto tokens = tokenizer->encode("copy the node license", false);
  tokens.push_back(end);
  SparseTargets q;
  for (const int32_t token : tokens) {
    std::set<int32_t> ids{token, end, tokenizer->encode(" a", false).front(), tokenizer->encode("node", false).front()};
    for (const int32_t id : ids) {
      q.ids.push_back(id);
      q.weights.push_back(0.9f / static_cast<float>(ids.size()));
    }
    q.offsets.push_back(static_cast<int64_t>(q.ids.size()));
    q.uncovered.push_back(0.1f);
  }
  SparseTargets carried;
  alignment.carry(tokens, q, tokens, carried);
  EXPECT_EQ(carried.offsets, q.offsets);
  EXPECT_EQ(carried.ids, q.ids);
  EXPECT_EQ(carried.weights, q.weights);
  EXPECT_EQ(carried.uncovered, q.uncovered);
}

// Letters a and b drawn one by one. The student writes "ab" as one token.
class LettersTest : public testing::Test {
 protected:
  static std::shared_ptr<const Tokenizer> letters() {
    auto json = nlohmann::json::parse(kSmallTokenizer);
    json["model"]["merges"] = nlohmann::json::array();
    return from_json(json);
  }
  static constexpr int32_t kA = 0, kB = 1, kAb = 2, kEnd = 4;
  static void add_target(SparseTargets& q, float a, float b, float end) {
    q.ids.insert(q.ids.end(), {kA, kB, kEnd});
    q.weights.insert(q.weights.end(), {a, b, end});
    q.offsets.push_back(static_cast<int64_t>(q.ids.size()));
    q.uncovered.push_back(0);
  }
  std::map<int32_t, float> carry(const std::vector<int32_t>& tokens, const SparseTargets& q, size_t row) const {
    SparseTargets carried;
    alignment_.carry(tokens, q, alignment_.encode(alignment_.text(tokens)), carried);
    std::map<int32_t, float> result;
    for (size_t e = 0; e < carried[row].ids.size(); ++e) result[carried[row].ids[e]] = carried[row].weights[e];
    return result;
  }

  TokenAlignment alignment_{{letters(), {kEnd}}, {from_json(nlohmann::json::parse(kSmallTokenizer)), {kEnd}}};
};

TEST_F(LettersTest, GivesTheWrittenPiecesThePiecesProbabilities) {
  SparseTargets q;
  for (int i = 0; i < 4; ++i) add_target(q, 0.6f, 0.3f, 0.1f);
  // Texts that begin with "ab": 0.6 0.3; with "a" and something else: 0.6 0.7.
  const auto first = carry({kA, kB, kB, kEnd}, q, 0);
  EXPECT_NEAR(first.at(kAb), 0.18, 1e-6);
  EXPECT_NEAR(first.at(kA), 0.42, 1e-6);
  EXPECT_NEAR(first.at(kB), 0.3, 1e-6);
  EXPECT_NEAR(first.at(kEnd), 0.1, 1e-6);
  // Off the written text nobody knows what would have followed an "a".
  const auto off = carry({kB, kB, kB, kEnd}, q, 0);
  EXPECT_NEAR(off.at(kA), 0.6, 1e-6);
  EXPECT_EQ(off.count(kAb), 0);
}

TEST_F(LettersTest, KeepsUnbiasedEstimatesUnbiased) {
  const std::vector<int32_t> tokens{kA, kB, kEnd};
  SparseTargets exact;
  add_target(exact, 0.5f, 0.3f, 0.2f);
  add_target(exact, 0.2f, 0.7f, 0.1f);
  add_target(exact, 0.1f, 0.1f, 0.8f);
  const auto expected = carry(tokens, exact, 0);
  std::map<int32_t, double> mean;
  constexpr int kDraws = 20000;
  core::Philox random(5, 0, 0);
  for (int draw = 0; draw < kDraws; ++draw) {
    SparseTargets q;
    for (size_t k = 0; k < tokens.size(); ++k) {
      int32_t id = kA;
      double left = random.next_double();
      for (size_t e = 0; e + 1 < 3 && left >= exact[k].weights[e]; ++e) {
        left -= exact[k].weights[e];
        id = exact[k].ids[e + 1];
      }
      q.ids.push_back(id);
      q.weights.push_back(1);
      q.offsets.push_back(static_cast<int64_t>(q.ids.size()));
      q.uncovered.push_back(0);
    }
    for (const auto& [id, weight] : carry(tokens, q, 0)) mean[id] += static_cast<double>(weight) / kDraws;
  }
  for (const auto& [id, weight] : expected) EXPECT_NEAR(mean[id], weight, 0.015) << id;
}

TEST(TokenAlignment, LeavesOutACharacterThatWasCutOff) {
  const auto teacher = shorter("qwen2", 0);
  const auto student = family("llama3");
  const TokenAlignment alignment({teacher, {*teacher->token_to_id("<|im_end|>")}},
                                 {student, {*student->token_to_id("<|eot_id|>")}});
  auto tokens = teacher->encode("it 😀", false);
  tokens.pop_back();
  const auto text = alignment.text(tokens);
  EXPECT_EQ(text.bytes, "it ");
  EXPECT_FALSE(text.ended);
  core::Philox random(1, 0, 0);
  SparseTargets carried;
  const auto ours = alignment.encode(text);
  alignment.carry(tokens, random_targets(tokens, teacher->vocab_size(), random), ours, carried);
  EXPECT_EQ(carried.positions(), ours.size());
}

TEST(TokenAlignment, TakesTheTextAloneWhereAStudentNormalisesIt) {
  const auto teacher = family("llama3");
  const auto student = family("qwen2");  // NFC
  const TokenAlignment alignment({teacher, {*teacher->token_to_id("<|eot_id|>")}},
                                 {student, {*student->token_to_id("<|im_end|>")}});
  const auto tokens = teacher->encode("e\u0301 a", false);
  const auto ours = alignment.encode(alignment.text(tokens));
  core::Philox random(1, 0, 0);
  SparseTargets carried;
  alignment.carry(tokens, random_targets(tokens, teacher->vocab_size(), random), ours, carried);
  EXPECT_EQ(carried.ids, ours);
  EXPECT_THAT(carried.weights, testing::Each(1.0f));
}

TEST(TokenAlignment, GivesPartsOfCharactersToThePieceTheyBeginWith) {
  const auto teacher = family("llama3");
  const auto student = shorter("qwen2", 0);
  const int32_t end = *student->token_to_id("<|im_end|>");
  const TokenAlignment alignment({teacher, {*teacher->token_to_id("<|eot_id|>")}}, {student, {end}});
  const int32_t part = teacher->encode("日", false).front();  // less than the character
  ASSERT_LT(teacher->token_bytes(part).size(), 3);
  const auto tokens = teacher->encode("a", false);
  SparseTargets q;
  q.ids = {part, *teacher->token_to_id("<|eot_id|>"), *teacher->token_to_id("<|begin_of_text|>")};
  q.weights = {0.5f, 0.3f, 0.2f};
  q.offsets = {0, 3};
  q.uncovered = {0};
  SparseTargets carried;
  const auto ours = alignment.encode(alignment.text(tokens));
  alignment.carry(tokens, q, ours, carried);
  std::map<int32_t, float> row;
  for (size_t e = 0; e < carried.ids.size(); ++e) row[carried.ids[e]] = carried.weights[e];
  EXPECT_FLOAT_EQ(row.at(end), 0.3f);
  EXPECT_FLOAT_EQ(row.at(student->encode("日", false).front()), 0.5f);
  EXPECT_FLOAT_EQ(carried.uncovered[0], 0.2f);  // a special token that the student does not have
}

}  // namespace
}  // namespace distill::data
