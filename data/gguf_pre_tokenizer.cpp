#include "data/gguf_pre_tokenizer.h"

#include <algorithm>
#include <string>
#include <vector>

#include "core/error.h"
#include "data/split_pattern.h"

namespace distill::data {
namespace {

using nlohmann::json;

enum class Numbers { kAsSplit, kSingleDigits, kRuns };

struct Known {
  std::string_view name;
  std::vector<std::string_view> splits;  // applied in order before ByteLevel
  Numbers numbers = Numbers::kAsSplit;   // what the Digits step does; it comes after the splits
  bool gpt2_regex = false;               // ByteLevel splits too
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos_token = false;
};

constexpr std::string_view kGpt4oPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kTekkenPattern =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLineBreak = R"([\r\n])";
constexpr std::string_view kCjkAndMore = "[一-龥ࠀ-一가-퟿]+";
constexpr std::string_view kDeepSeekLlmSigns = R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)";
constexpr std::string_view kDeepSeekLlmLetters =
    R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)";

// Only names whose tokenizer.json is known to say this and no more.
const std::vector<Known>& known_pre_tokenizers() {
  static const std::vector<Known> known = [] {
    const Known gpt2 = {.name = "gpt-2", .splits = {}, .gpt2_regex = true};
    const Known smollm = {.name = "smollm", .splits = {}, .numbers = Numbers::kSingleDigits, .gpt2_regex = true};
    const Known llama3 = {
        .name = "llama-bpe", .splits = {kLlama3Pattern}, .ignore_merges = true, .add_bos_token = true};
    const Known qwen2 = {.name = "qwen2", .splits = {kQwen2Pattern}, .nfc = true};
    const Known gpt4o = {.name = "gpt-4o", .splits = {kGpt4oPattern}};
    const auto named = [](Known entry, std::string_view name) {
      entry.name = name;
      return entry;
    };
    return std::vector<Known>{
        named(gpt2, "default"),
        gpt2,
        named(gpt2, "phi-2"),
        smollm,
        named(smollm, "starcoder"),
        named(smollm, "refact"),
        named(smollm, "codeshell"),
        llama3,
        named(llama3, "llama3"),
        named(llama3, "llama-v3"),
        {.name = "dbrx", .splits = {kLlama3Pattern}},
        {.name = "smaug-bpe", .splits = {kLlama3Pattern}},
        qwen2,
        named(qwen2, "deepseek-r1-qwen"),
        {.name = "deepseek-llm",
         .splits = {kLineBreak, kDeepSeekLlmLetters, kDeepSeekLlmSigns, R"(\s+$)", kCjkAndMore},
         .numbers = Numbers::kRuns},
        {.name = "deepseek-coder",
         .splits = {kLineBreak, R"(\s?\p{L}+)", R"(\s?\p{P}+)", kCjkAndMore},
         .numbers = Numbers::kSingleDigits},
        {.name = "deepseek-v3", .splits = {kDeepSeekNumberPattern, kDeepSeekCjkPattern, kDeepSeekWordPattern}},
        gpt4o,
        named(gpt4o, "llama4"),
        {.name = "tekken", .splits = {kTekkenPattern}, .ignore_merges = true, .add_bos_token = true},
    };
  }();
  return known;
}

json split(std::string_view pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}

}  // namespace

GgufPreTokenizer gguf_pre_tokenizer(std::string_view name, bool add_prefix_space) {
  const auto& known = known_pre_tokenizers();
  const auto found = std::ranges::find(known, name, &Known::name);
  if (found == known.end()) {
    std::vector<std::string_view> names;
    for (const Known& entry : known) names.push_back(entry.name);
    core::fail("the pre-tokenizer '{}' is not known; known are {}", name, fmt::join(names, ", "));
  }
  json steps = json::array();
  for (const std::string_view pattern : found->splits) steps.push_back(split(pattern));
  if (found->numbers != Numbers::kAsSplit) {
    steps.push_back({{"type", "Digits"}, {"individual_digits", found->numbers == Numbers::kSingleDigits}});
  }
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", add_prefix_space},
                   {"trim_offsets", true},
                   {"use_regex", found->gpt2_regex}});
  return {.normalizer = found->nfc ? json{{"type", "NFC"}} : json(),
          .pre_tokenizer = {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}},
          .ignore_merges = found->ignore_merges,
          .add_bos_token = found->add_bos_token};
}

}  // namespace distill::data
