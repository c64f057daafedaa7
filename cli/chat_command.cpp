#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "distill/conversation.h"
#include "distill/text_model.h"

namespace distill::cli {
namespace {

struct Options {
  std::filesystem::path model;
  nn::GenerateOptions generate{.max_new_tokens = 1024};
  std::string system;
  std::string dtype = "bf16";
  bool fp8_cache = false;
  std::string chat_template;
  std::optional<int64_t> draft_tokens, thinking_budget;
};

constexpr const char* kDescription =
    R"(Example: distill chat --model model.gguf --temperature 0.7

Talks with a model. Each line of standard input is a message; answers go to standard output as they come.
/reset forgets the conversation, /exit ends it, Ctrl-C ends an answer.)";

constexpr const char* kHelp = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C ends an answer.\n";

void show(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

// Answers one line; on a terminal, what goes wrong is said and the conversation goes on.
void answer(Conversation& conversation, const std::string& line, bool is_terminal) {
  try {
    const auto answer = conversation.say(line, show, core::interrupt_requested);
    show("\n");
    if (is_terminal && answer.finish_reason == data::FinishReason::kLength) {
      std::fprintf(stderr, "(cut at the limit of new tokens or of the model's context)\n");
    }
  } catch (const core::Error& error) {
    if (!is_terminal) throw;
    std::fprintf(stderr, "%s\n%s", error.what(), kHelp);
  }
}

// False when the conversation is over.
bool take_line(Conversation& conversation, const std::string& line, bool is_terminal) {
  if (line == "/exit") return false;
  if (line == "/reset") {
    conversation.reset();
    if (is_terminal) std::fprintf(stderr, "(forgotten)\n");
  } else if (line.starts_with('/') && is_terminal) {
    std::fputs(kHelp, stderr);
  } else if (line.find_first_not_of(" \t\r") != std::string::npos) {
    answer(conversation, line, is_terminal);
  }
  // On a terminal Ctrl-C belongs to the answer; everything else that asks us to stop means the program.
  if (core::interrupt_requested() && (!is_terminal || core::interrupt_signal() != SIGINT)) {
    throw core::Interrupted("stopped");
  }
  core::clear_interrupt();
  return true;
}

void run(Options options) {
  core::install_interrupt_handlers();
  options.generate.sampling.validate();
  const TextModel model = load_text_model(
      options.model, {.compute = options.dtype == "fp32" ? c10::ScalarType::Float : c10::ScalarType::BFloat16,
                      .fp8_cache = options.fp8_cache});
  const auto chat_template = model.files.chat_template(options.chat_template);
  core::check(chat_template != nullptr, "{} has no chat template: name one with --chat-template",
              options.model.string());
  options.generate.stop_tokens = model.stop_tokens;
  if (options.thinking_budget) {
    const auto markers = data::find_reasoning_tokens(*model.tokenizer);
    if (!markers) core::fail_usage("--thinking-budget: the model's tokenizer has no tokens <think> and </think>");
    options.generate.thinking = {.markers = *markers, .tokens = *options.thinking_budget};
  }
  Conversation conversation(*model.model, model.tokenizer, chat_template, options.generate, options.system,
                            options.draft_tokens);

  const bool is_terminal = ::isatty(STDIN_FILENO) != 0;
  if (is_terminal) std::fputs(kHelp, stderr);
  for (std::string line;;) {
    if (is_terminal) std::fputs("> ", stderr);
    if (!std::getline(std::cin, line)) break;
    if (line.ends_with('\r')) line.pop_back();
    if (!take_line(conversation, line, is_terminal)) return;
  }
  if (core::interrupt_requested()) throw core::Interrupted("stopped");
  if (is_terminal) std::fputs("\n", stderr);
}

}  // namespace

void add_chat_command(CLI::App& app) {
  auto* const command = app.add_subcommand("chat", kDescription);
  const auto options = std::make_shared<Options>();
  auto& sampling = options->generate.sampling;
  command->add_option("--model", options->model, "Hugging Face directory, GGUF file or checkpoint")->required();
  command->add_option("--system", options->system, "System message that opens the conversation");
  command->add_option("--max-new-tokens", options->generate.max_new_tokens, "Longest answer, in tokens")
      ->check(positive())
      ->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0 takes the most probable token each time")
      ->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Draw from the most probable tokens that reach this mass")
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Draw from the K most probable tokens; 0 is no limit")
      ->capture_default_str();
  command
      ->add_option("--min-p", sampling.min_p,
                   "Draw from tokens at least this probable, relative to the most probable one")
      ->capture_default_str();
  command->add_option("--seed", options->generate.seed, "The same seed and messages give the same answers")
      ->capture_default_str();
  add_thinking_budget_option(*command, options->thinking_budget);
  command->add_option(
      "--draft-tokens", options->draft_tokens,
      "Tokens guessed ahead and checked in one pass; 1 if the model has a prediction module (MTP) that is\n"
      "mostly right");
  command->add_option("--dtype", options->dtype, "What to compute in: bf16 or fp32")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  add_cache_dtype_option(*command, options->fp8_cache);
  add_chat_template_option(*command, options->chat_template);
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
