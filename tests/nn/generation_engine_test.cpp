#include "nn/generation_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "core/error.h"
#include "tests/nn/context_model.h"
#include "tests/nn/drafting_model.h"
#include "tests/nn/letter_tokenizer.h"

namespace distill::nn {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::StrEq;
using testing::ThrowsMessage;

using Key = std::pair<std::string, uint32_t>;
using Answers = std::map<Key, Completion>;

// A prompt of `length` tokens that depends on its id.
GenerationRequest request(const std::string& id, size_t length, GenerateOptions options = {},
                          std::vector<uint32_t> samples = {0}) {
  GenerationRequest result{.id = id, .prompt = {}, .samples = std::move(samples), .options = std::move(options)};
  core::Philox random(core::stream_id(id, 7), 0, 0);
  for (size_t i = 0; i < length; ++i) result.prompt.push_back(static_cast<int32_t>(1 + random.next_below(49)));
  return result;
}

std::shared_ptr<const data::Tokenizer> letters() {
  return std::make_shared<LetterTokenizer>();
}

Answers generate(CausalLM& model, const std::vector<GenerationRequest>& requests, EngineOptions options = {},
                 EngineHooks hooks = {}, EngineStatistics* statistics = nullptr) {
  GenerationEngine engine(model, letters(), options);
  Answers answers;
  size_t next = 0;
  const auto outcome =
      engine.run([&]() { return next < requests.size() ? std::optional(requests[next++]) : std::nullopt; },
                 [&](Completion&& completion) {
                   const Key key{completion.id, completion.sample};
                   EXPECT_TRUE(answers.emplace(key, std::move(completion)).second) << key.first << " came twice";
                 },
                 hooks);
  EXPECT_EQ(outcome, GenerationEngine::Outcome::kDone);
  if (statistics) *statistics = engine.statistics();
  return answers;
}

// The definition: the whole sequence anew for every token, alone and without a cache.
std::vector<int32_t> answer_alone(CausalLM& model, const GenerationRequest& request, uint32_t sample,
                                  double* log_probability = nullptr) {
  std::vector<int32_t> tokens = request.prompt;
  const auto& options = request.options;
  double sum = 0;
  for (int64_t i = 0; i < options.max_new_tokens; ++i) {
    if (static_cast<int64_t>(tokens.size()) == model.shape().max_positions) break;
    const at::Tensor hidden = model.forward(PackedBatch::from_sequences({tokens}));
    const at::Tensor logits = model.logits(hidden.narrow(0, hidden.size(0) - 1, 1));
    const Draw draw =
        Sampler().draw({logits.const_data_ptr<float>(), static_cast<size_t>(logits.size(1))}, options.sampling,
                       core::Philox(options.seed, core::stream_id(request.id, sample), tokens.size()));
    tokens.push_back(draw.token);
    sum += draw.log_probability;
    if (std::ranges::count(options.stop_tokens, draw.token) > 0) break;
  }
  if (log_probability) *log_probability = sum;
  return {tokens.begin() + static_cast<std::ptrdiff_t>(request.prompt.size()), tokens.end()};
}

std::vector<GenerationRequest> mixed_requests() {
  std::vector<GenerationRequest> requests;
  const std::vector<size_t> lengths{5, 1, 40, 17, 8, 9, 33, 64, 2, 16};
  for (size_t i = 0; i < lengths.size(); ++i) {
    GenerateOptions options{.max_new_tokens = static_cast<int64_t>(3 + 7 * i), .seed = i % 3, .stop_tokens = {0}};
    options.sampling.temperature = i % 4 == 0 ? 0 : 1;
    if (i % 3 == 1) options.sampling.top_p = 0.8;
    requests.push_back(request(fmt::format("p{}", i), lengths[i], options,
                               i % 2 == 0 ? std::vector<uint32_t>{0} : std::vector<uint32_t>{0, 1, 5}));
  }
  return requests;
}

void expect_all_as_alone(CausalLM& model, const std::vector<GenerationRequest>& requests, const Answers& answers) {
  size_t expected = 0;
  for (const auto& request : requests) {
    for (const uint32_t sample : request.samples) {
      ++expected;
      double log_probability = 0;
      const auto alone = answer_alone(model, request, sample, &log_probability);
      const auto it = answers.find({request.id, sample});
      ASSERT_NE(it, answers.end());
      EXPECT_EQ(it->second.tokens, alone) << request.id << " sample " << sample;
      EXPECT_EQ(it->second.prompt, request.prompt);
      EXPECT_DOUBLE_EQ(it->second.log_probability, log_probability);
      const bool stopped = std::ranges::count(request.options.stop_tokens, alone.back()) > 0;
      EXPECT_EQ(it->second.finish_reason, stopped ? data::FinishReason::kStop : data::FinishReason::kLength);
    }
  }
  EXPECT_EQ(answers.size(), expected);
}

TEST(GenerationEngine, AnswersEveryPromptAsIfItWereAlone) {
  ContextModel model;
  const auto requests = mixed_requests();
  for (const int64_t batch : {1, 3, 16}) {
    for (const int64_t step_tokens : {1, 7, 512}) {
      for (const int64_t block_size : {1, 4, 16}) {
        expect_all_as_alone(
            model, requests,
            generate(model, requests,
                     {.max_sequences = batch, .max_step_tokens = step_tokens, .block_size = block_size}));
      }
    }
  }
}

TEST(GenerationEngine, AnswersTheSameWithOtherCompanions) {
  ContextModel model;
  const auto watched = request("watched", 21, {.max_new_tokens = 30, .seed = 4}, {0, 1});
  const auto expected = answer_alone(model, watched, 1);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    core::Philox random(seed, 0, 0);
    std::vector<GenerationRequest> requests;
    for (int i = 0; i < 8; ++i) {
      requests.push_back(request(fmt::format("companion {} {}", seed, i), 1 + random.next_below(60),
                                 {.max_new_tokens = 1 + random.next_below(40)}));
    }
    requests.insert(requests.begin() + random.next_below(9), watched);
    const auto answers = generate(model, requests, {.max_sequences = 4, .max_step_tokens = 16, .block_size = 8});
    EXPECT_EQ(answers.at({"watched", 1}).tokens, expected);
  }
}

TEST(GenerationEngine, SharesThePromptOfSeveralSamples) {
  ContextModel model;
  const auto many = request("many", 30, {.max_new_tokens = 10}, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  EngineStatistics statistics;
  const auto answers = generate(model, {many}, {.max_sequences = 4, .block_size = 8}, {}, &statistics);
  expect_all_as_alone(model, {many}, answers);
  EXPECT_EQ(statistics.prompt_tokens, 30 + 9);  // the last prompt token of the others
}

TEST(GenerationEngine, AnswersTheSameWhenBlocksRunOut) {
  ContextModel model;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(request(fmt::format("p{}", i), static_cast<size_t>(4 + 9 * i), {.max_new_tokens = 40},
                               i % 2 == 0 ? std::vector<uint32_t>{0, 1, 2} : std::vector<uint32_t>{0}));
  }
  EngineStatistics statistics;
  const auto answers =
      generate(model, requests, {.max_sequences = 6, .max_step_tokens = 32, .block_size = 4, .cache_tokens = 100}, {},
               &statistics);
  expect_all_as_alone(model, requests, answers);
  EXPECT_GT(statistics.preemptions, 0);
}

TEST(GenerationEngine, StopsAtATokenAndAtTheEndOfTheContext) {
  ContextModel model(50, 40);
  const auto endless = request("endless", 30, {.max_new_tokens = 1000});
  const auto answers = generate(model, {endless});
  EXPECT_EQ(answers.at({"endless", 0}).tokens.size(), 10u);
  EXPECT_EQ(answers.at({"endless", 0}).finish_reason, data::FinishReason::kLength);

  const int32_t third = answers.at({"endless", 0}).tokens[2];
  auto stopping = endless;
  stopping.options.stop_tokens = {49, third};
  const auto stopped = generate(model, {stopping}).at({"endless", 0});
  EXPECT_EQ(stopped.tokens.back(), third);
  EXPECT_LE(stopped.tokens.size(), 3u);
  EXPECT_EQ(stopped.finish_reason, data::FinishReason::kStop);
  EXPECT_EQ(stopped.text, LetterTokenizer().decode(std::span(stopped.tokens).first(stopped.tokens.size() - 1), true));
}

TEST(GenerationEngine, StopsAtAStringThatSpansTokens) {
  ContextModel model;
  auto spelled = request("spelled", 5, {.max_new_tokens = 60});
  const auto free = generate(model, {spelled}).at({"spelled", 0});
  const std::string stop = free.text.substr(20, 3);
  spelled.options.stop_strings = {"this never comes", stop};
  std::string streamed;
  const auto stopped = generate(model, {spelled}, {},
                                {.on_text =
                                     [&](std::string_view id, uint32_t sample, std::string_view text) {
                                       EXPECT_EQ(id, "spelled");
                                       EXPECT_EQ(sample, 0u);
                                       streamed += text;
                                     }})
                           .at({"spelled", 0});
  EXPECT_EQ(stopped.text, free.text.substr(0, free.text.find(stop)));
  EXPECT_EQ(streamed, stopped.text);
  EXPECT_EQ(stopped.finish_reason, data::FinishReason::kStop);
  EXPECT_LT(stopped.tokens.size(), free.tokens.size());
  EXPECT_TRUE(std::equal(stopped.tokens.begin(), stopped.tokens.end(), free.tokens.begin()));
}

TEST(GenerationEngine, TakesTheNameOfASpecialTokenForAStopToken) {
  ContextModel model(4);
  const auto plain = request("p", 3, {.max_new_tokens = 100, .stop_tokens = {0}});
  auto named = plain;
  named.prompt = {1, 2, 3};
  auto numbered = named;
  named.options.stop_tokens.clear();
  named.options.stop_strings = {"<end>"};
  const auto expected = generate(model, {numbered}).at({"p", 0});
  ASSERT_EQ(expected.finish_reason, data::FinishReason::kStop);
  EXPECT_EQ(generate(model, {named}).at({"p", 0}).tokens, expected.tokens);
}

TEST(GenerationEngine, GivesNoTextToIdsThatTheTokenizerLacks) {
  ContextModel model(50);
  GenerationEngine engine(model, std::make_shared<LetterTokenizer>(20));
  std::optional<GenerationRequest> pending = request("p", 5, {.max_new_tokens = 60});
  engine.run([&] { return std::exchange(pending, std::nullopt); },
             [](Completion&& completion) {
               const auto known =
                   std::ranges::count_if(completion.tokens, [](int32_t id) { return id > 0 && id < 20; });
               EXPECT_EQ(completion.tokens.size(), 60u);
               EXPECT_LT(known, 60);
               EXPECT_EQ(completion.text.size(), static_cast<size_t>(known));
             });
}

TEST(GenerationEngine, ShowsTheLogitsOfEachPositionOnceBeforeItsTokenIsDrawn) {
  ContextModel model;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 5; ++i) requests.push_back(request(fmt::format("p{}", i), 12, {.max_new_tokens = 30}, {0, 3}));
  std::map<Key, std::vector<at::Tensor>> seen;
  const auto answers =
      generate(model, requests, {.max_sequences = 6, .max_step_tokens = 16, .block_size = 4, .cache_tokens = 80},
               {.on_logits = [&](const at::Tensor& logits, std::span<const LogitsRow> rows) {
                 ASSERT_EQ(logits.size(0), static_cast<int64_t>(rows.size()));
                 for (size_t i = 0; i < rows.size(); ++i) {
                   auto& of_answer = seen[{std::string(rows[i].id), rows[i].sample}];
                   ASSERT_EQ(rows[i].index, static_cast<int64_t>(of_answer.size()));
                   of_answer.push_back(logits[static_cast<int64_t>(i)].clone());
                 }
               }});
  ASSERT_EQ(seen.size(), answers.size());
  for (const auto& [key, completion] : answers) {
    std::vector<int32_t> tokens = completion.prompt;
    tokens.insert(tokens.end(), completion.tokens.begin(), completion.tokens.end());
    const at::Tensor all = model.logits(model.forward(PackedBatch::from_sequences({tokens})));
    ASSERT_EQ(seen.at(key).size(), completion.tokens.size());
    EXPECT_TRUE(at::equal(at::stack(seen.at(key)),
                          all.slice(0, static_cast<int64_t>(completion.prompt.size()) - 1, all.size(0) - 1)));
  }
}

TEST(GenerationEngine, ReadsNoFurtherAheadThanItHasRoom) {
  ContextModel model;
  GenerationEngine engine(model, nullptr, {.max_sequences = 3});
  int taken = 0;
  int answered = 0;
  engine.run(
      [&]() -> std::optional<GenerationRequest> {
        EXPECT_LE(taken - answered, 3);
        if (taken == 50) return std::nullopt;
        return request(fmt::format("p{}", taken++), 10, {.max_new_tokens = 5});
      },
      [&](Completion&&) { ++answered; });
  EXPECT_EQ(answered, 50);
  EXPECT_EQ(model.most_sequences, 3);
}

TEST(GenerationEngine, KeepsStepsWithinTheirTokens) {
  ContextModel model;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 12; ++i) requests.push_back(request(fmt::format("p{}", i), 90, {.max_new_tokens = 20}));
  generate(model, requests, {.max_sequences = 4, .max_step_tokens = 32});
  EXPECT_EQ(model.largest_step, 32);
}

TEST(GenerationEngine, EndsBetweenStepsWhenInterrupted) {
  ContextModel model;
  GenerationEngine engine(model, letters());
  std::optional<GenerationRequest> pending = request("long", 10, {.max_new_tokens = 100});
  int steps = 0;
  std::string text;
  const auto outcome = engine.run([&] { return std::exchange(pending, std::nullopt); },
                                  [&](Completion&&) { ADD_FAILURE() << "it was not complete"; },
                                  {.on_text = [&](auto, auto, std::string_view piece) { text += piece; },
                                   .interrupted = [&] { return ++steps > 6; }});
  EXPECT_EQ(outcome, GenerationEngine::Outcome::kInterrupted);
  EXPECT_EQ(text.size(), 6u);
  // The engine is as new.
  pending = request("short", 10, {.max_new_tokens = 5});
  std::vector<int32_t> tokens;
  engine.run([&] { return std::exchange(pending, std::nullopt); },
             [&](Completion&& completion) { tokens = completion.tokens; });
  EXPECT_EQ(tokens, answer_alone(model, request("short", 10, {.max_new_tokens = 5}), 0));
}

TEST(GenerationEngine, NamesThePromptAndTheLimitOfARequestThatCannotBeServed) {
  ContextModel model(50, 100);
  GenerationEngine engine(model, nullptr, {.cache_tokens = 60});
  const auto message = [&](const GenerationRequest& request) {
    try {
      engine.check(request);
    } catch (const core::Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message(request("fits", 20, {.max_new_tokens = 40})), "");
  EXPECT_THAT(message(request("none", 0)), AllOf(HasSubstr("\"none\""), HasSubstr("no tokens")));
  EXPECT_THAT(message(request("long", 100)),
              AllOf(HasSubstr("\"long\""), HasSubstr("100 tokens"), HasSubstr("of 100")));
  EXPECT_THAT(message(request("large", 50, {.max_new_tokens = 40})),
              AllOf(HasSubstr("\"large\""), HasSubstr("90 tokens"), HasSubstr("64")));
  auto strange = request("strange", 5);
  strange.prompt[3] = 50;
  EXPECT_THAT(message(strange), AllOf(HasSubstr("\"strange\""), HasSubstr("token id 50")));
  EXPECT_THAT(message(request("zero", 5, {.max_new_tokens = 0})), HasSubstr("max-new-tokens"));
  EXPECT_THAT(message(request("text", 5, {.stop_strings = {"x"}})), HasSubstr("tokenizer"));

  const auto run_it = [&] {
    std::optional<GenerationRequest> pending = request("long", 100);
    engine.run([&] { return std::exchange(pending, std::nullopt); }, [](Completion&&) {});
  };
  EXPECT_THAT(run_it, ThrowsMessage<core::Error>(HasSubstr("\"long\"")));
}

TEST(GenerationEngine, NamesThePromptWhoseLogitsAreNotNumbers) {
  ContextModel model;
  model.nan_after = 3;
  EXPECT_THAT([&] { generate(model, {request("damaged", 4)}); },
              ThrowsMessage<core::Error>(AllOf(HasSubstr("\"damaged\""), HasSubstr("not numbers"))));
}

TEST(GenerationEngine, NamesThePromptsOfAStepThatFails) {
  struct FailingModel : ContextModel {
    at::Tensor forward_tapped(const PackedBatch& batch, KvCache* cache, const CacheSlots* slots,
                              LayerTap& tap) override {
      TORCH_CHECK(steps-- > 0, "a router's logit is NaN");
      return ContextModel::forward_tapped(batch, cache, slots, tap);
    }
    int64_t steps = 0;  // until it fails
  } model;
  EXPECT_THAT(
      [&] {
        generate(model, {request("a", 4), request("b", 4)});
      },
      ThrowsMessage<core::Error>(StrEq("one of the prompts \"a\", \"b\": a router's logit is NaN")));
  model.steps = 1;  // the second step computes both answers
  EXPECT_THAT(
      [&] {
        generate(model, {request("a", 4, {}, {0, 1})});
      },
      ThrowsMessage<core::Error>(StrEq("prompt \"a\": a router's logit is NaN")));
}

TEST(GenerationEngine, EndsReasoningThatExceedsItsBudget) {
  DraftingModel model;
  const data::ReasoningTokens markers{.open = 7, .close = 8};
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 40; ++i) {
    requests.push_back(request(fmt::format("p{}", i), 6, {.max_new_tokens = 60}));
    std::erase_if(requests.back().prompt, [](int32_t token) { return token == 7 || token == 8; });
    if (i % 2 == 0) requests.back().prompt.push_back(7);
  }
  const Answers free = generate(model, requests, {.draft_tokens = 0});
  for (auto& request : requests) request.options.thinking = ThinkingBudget{.markers = markers, .tokens = 10};
  const Answers limited = generate(model, requests, {.max_sequences = 1, .draft_tokens = 0});
  int cut = 0;
  for (const auto& [key, completion] : limited) {
    bool thinks = data::is_open(completion.prompt, markers);
    int thought = 0;
    for (const int32_t token : completion.tokens) {
      if (thinks && thought == 10) {
        ASSERT_EQ(token, 8) << key.first;
        ++cut;
      }
      thought += thinks && token != 7 && token != 8 ? 1 : 0;
      thinks = token == 7 || (thinks && token != 8);
    }
    const auto& before = free.at(key).tokens;
    const auto [a, b] = std::ranges::mismatch(completion.tokens, before);
    if (a != completion.tokens.end()) {
      EXPECT_EQ(*a, 8) << "an answer is the same up to where its reasoning is ended";
    }
  }
  EXPECT_GE(cut, 15);
  EXPECT_EQ(generate(model, requests, {.draft_tokens = 3}).at({"p0", 0}).tokens, limited.at({"p0", 0}).tokens);
  for (const auto& [key, completion] : generate(model, requests, {.draft_tokens = 2})) {
    EXPECT_EQ(completion.tokens, limited.at(key).tokens);
  }
}

TEST(GenerationEngine, AnswersTheSameWithDraftsWhateverTheyGuess) {
  DraftingModel model;
  const auto requests = mixed_requests();
  for (const bool errs : {false, true}) {
    model.wrong_thirds = errs ? 1 : 0;
    for (const int64_t drafts : {1, 2, 5}) {
      for (const int64_t batch : {1, 3, 16}) {
        for (const int64_t step_tokens : {3, 512}) {
          for (const int64_t block_size : {1, 4, 16}) {
            EngineStatistics statistics;
            const EngineOptions options{.max_sequences = batch,
                                        .max_step_tokens = step_tokens,
                                        .block_size = block_size,
                                        .draft_tokens = drafts};
            expect_all_as_alone(model, requests, generate(model, requests, options, {}, &statistics));
            ASSERT_EQ(statistics.drafts.size(), static_cast<size_t>(drafts));
            for (const DraftCount& count : statistics.drafts) {
              EXPECT_GT(count.checked, 0);
              // Behind its own guesses the drafter would be right, but an answer may end first.
              EXPECT_GE(count.acceptance(), errs ? 0.0 : drafts == 1 ? 1.0 : 0.8);
            }
            EXPECT_NEAR(statistics.drafts[0].acceptance(), errs ? 2.0 / 3 : 1.0, 0.15);
          }
        }
      }
    }
  }
}

TEST(GenerationEngine, AnswersTheSameWithDraftsWhenBlocksRunOut) {
  DraftingModel model;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(request(fmt::format("p{}", i), 20, {.max_new_tokens = 50}, {0, 1}));
  }
  for (const int64_t drafts : {1, 4}) {
    EngineStatistics statistics;
    const EngineOptions options{.max_sequences = 8, .block_size = 4, .cache_tokens = 160, .draft_tokens = drafts};
    expect_all_as_alone(model, requests, generate(model, requests, options, {}, &statistics));
    EXPECT_GT(statistics.preemptions, 0);
    EXPECT_GT(statistics.drafts[0].accepted, 50);
  }
}

TEST(GenerationEngine, StopsDraftingWhenMostDraftsAreWrong) {
  DraftingModel model;
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 12; ++i) requests.push_back(request(fmt::format("p{}", i), 5 + i, {.max_new_tokens = 60}));
  const auto checked = [&](uint32_t wrong_thirds, std::optional<int64_t> drafts) {
    model.wrong_thirds = wrong_thirds;
    EngineStatistics statistics;
    const EngineOptions options{.max_sequences = 3, .draft_tokens = drafts};
    expect_all_as_alone(model, requests, generate(model, requests, options, {}, &statistics));
    return statistics.drafts.at(0).checked;
  };
  const int64_t all = checked(2, 1);  // somebody wants them
  EXPECT_GT(all, 400);
  EXPECT_NEAR(static_cast<double>(checked(2, std::nullopt)), 256, 6);
  EXPECT_GT(checked(1, std::nullopt), 300);
}

TEST(GenerationEngine, TakesFewerStepsWithDrafts) {
  DraftingModel model;
  const std::vector<GenerationRequest> requests{request("p", 9, {.max_new_tokens = 61})};
  EngineStatistics plain, drafted;
  generate(model, requests, {.draft_tokens = 0}, {}, &plain);
  generate(model, requests, {.draft_tokens = 3}, {}, &drafted);
  EXPECT_EQ(plain.steps, 61);
  EXPECT_EQ(drafted.steps, 1 + 60 / 4);
  EXPECT_TRUE(plain.drafts.empty());
  EXPECT_EQ(tokens_per_pass(plain.drafts), 1);
  EXPECT_NEAR(tokens_per_pass(drafted.drafts), 4, 0.1);
}

TEST(GenerationEngine, ShowsTheLogitsOfEachPositionOnceWithDrafts) {
  DraftingModel model;
  model.wrong_thirds = 1;
  const auto requests = mixed_requests();
  std::map<Key, std::vector<at::Tensor>> seen;
  EngineHooks hooks{.on_logits = [&](const at::Tensor& logits, std::span<const LogitsRow> rows) {
    ASSERT_EQ(logits.size(0), static_cast<int64_t>(rows.size()));
    for (size_t i = 0; i < rows.size(); ++i) {
      auto& rows_of_answer = seen[{std::string(rows[i].id), rows[i].sample}];
      ASSERT_EQ(rows[i].index, static_cast<int64_t>(rows_of_answer.size()));
      rows_of_answer.push_back(logits[static_cast<int64_t>(i)].clone());
    }
  }};
  const auto answers = generate(model, requests, {.max_sequences = 5, .draft_tokens = 2}, hooks);
  for (const auto& [key, completion] : answers) {
    ASSERT_EQ(seen[key].size(), completion.tokens.size());
    std::vector<int32_t> context = completion.prompt;
    for (size_t i = 0; i < completion.tokens.size(); ++i) {
      const at::Tensor hidden = model.forward(PackedBatch::from_sequences({context}));
      EXPECT_TRUE(seen[key][i].equal(model.logits(hidden.narrow(0, hidden.size(0) - 1, 1))[0]));
      context.push_back(completion.tokens[i]);
    }
  }
}

// That the hidden states shown for each token are those of the tokens before it.
void expect_states_before_each_token(CausalLM& model, const std::vector<GenerationRequest>& requests,
                                     const EngineOptions& options) {
  std::map<Key, std::vector<at::Tensor>> seen;
  EngineHooks hooks{.on_logits = [](const at::Tensor&, std::span<const LogitsRow>) {}, .hidden_layers = {1, 0}};
  hooks.on_hidden_states = [&](const at::Tensor& states, std::span<const LogitsRow> rows) {
    ASSERT_THAT(states.sizes(), testing::ElementsAre(static_cast<int64_t>(rows.size()), 2, 4));
    for (size_t i = 0; i < rows.size(); ++i) {
      auto& of_answer = seen[{std::string(rows[i].id), rows[i].sample}];
      ASSERT_EQ(rows[i].index, static_cast<int64_t>(of_answer.size()));
      of_answer.push_back(states[static_cast<int64_t>(i)].clone());
    }
  };
  const Answers answers = generate(model, requests, options, hooks);
  ASSERT_EQ(seen.size(), answers.size());
  for (const auto& [key, completion] : answers) {
    std::vector<int32_t> tokens = completion.prompt;
    tokens.insert(tokens.end(), completion.tokens.begin(), completion.tokens.end());
    LayerTap tap{.layers = {1, 0}};
    model.forward_tapped(PackedBatch::from_sequences({tokens}), nullptr, nullptr, tap);
    ASSERT_EQ(seen.at(key).size(), completion.tokens.size());
    const auto first = static_cast<int64_t>(completion.prompt.size()) - 1;
    EXPECT_TRUE(at::stack(seen.at(key)).equal(at::stack(tap.states, 1).slice(0, first, -1))) << key.first;
  }
}

TEST(GenerationEngine, ShowsTheHiddenStatesBeforeEachToken) {
  ContextModel model;
  for (const int64_t batch : {1, 3, 16}) {
    for (const int64_t step_tokens : {3, 512}) {
      expect_states_before_each_token(model, mixed_requests(),
                                      {.max_sequences = batch, .max_step_tokens = step_tokens, .block_size = 4});
    }
  }
  std::vector<GenerationRequest> many;
  for (int i = 0; i < 6; ++i) many.push_back(request(fmt::format("p{}", i), 14, {.max_new_tokens = 40}, {0, 1, 2}));
  expect_states_before_each_token(model, many, {.max_sequences = 6, .block_size = 4, .cache_tokens = 100});
}

TEST(GenerationEngine, ShowsTheHiddenStatesBeforeAcceptedTokensOnlyAndBeforeThoseThatABudgetSets) {
  DraftingModel model;
  std::vector<GenerationRequest> requests = mixed_requests();
  for (auto& request : requests) {
    request.options.thinking = ThinkingBudget{.markers = {.open = request.prompt.back(), .close = 8}, .tokens = 4};
  }
  for (const bool errs : {false, true}) {
    model.wrong_thirds = errs ? 1 : 0;
    for (const int64_t drafts : {1, 4}) {
      expect_states_before_each_token(model, requests, {.max_sequences = 5, .draft_tokens = drafts});
      expect_states_before_each_token(
          model, requests, {.max_sequences = 8, .block_size = 4, .cache_tokens = 160, .draft_tokens = drafts});
    }
  }
}

TEST(GenerationEngine, NamesALayerThatAModelDoesNotShow) {
  ContextModel model;
  LayerTap last{.layers = {1}}, inner{.layers = {0}};
  const auto batch = PackedBatch::from_sequences({{1, 2}});
  EXPECT_TRUE(model.CausalLM::forward_tapped(batch, nullptr, nullptr, last).equal(last.states.at(0)));
  EXPECT_THAT([&] { model.CausalLM::forward_tapped(batch, nullptr, nullptr, inner); },
              ThrowsMessage<core::Error>(HasSubstr("layer 0, only of its last")));
}

TEST(GenerationEngine, DraftsOneTokenByItselfAndOnlyWithADrafter) {
  DraftingModel drafting;
  EXPECT_EQ(GenerationEngine(drafting, nullptr).statistics().drafts.size(), 1u);
  ContextModel plain;
  EXPECT_EQ(GenerationEngine(plain, nullptr).statistics().drafts.size(), 0u);
  EXPECT_THAT([&] { GenerationEngine(plain, nullptr, {.draft_tokens = 1}); },
              ThrowsMessage<core::UsageError>(HasSubstr("no multi-token-prediction module")));
  EXPECT_THAT([&] { GenerationEngine(drafting, nullptr, {.draft_tokens = 65}); },
              ThrowsMessage<core::UsageError>(HasSubstr("between 0 and 64")));
}

}  // namespace
}  // namespace distill::nn
