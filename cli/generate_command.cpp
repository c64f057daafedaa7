#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/progress.h"
#include "data/prompts.h"
#include "distill/capture.h"
#include "distill/remote_capture.h"
#include "distill/text_model.h"
#include "nn/sampler.h"
#include "teacher/remote_teacher.h"

namespace distill::cli {
namespace {

struct Options {
  std::string teacher;
  std::filesystem::path prompts;
  std::string targets = data::kDefaultTargets;
  double target_temperature = 1;
  std::vector<std::string> keep_tokens;
  std::string hidden_layers;
  std::string hidden_dtype = "bf16";
  data::TraceSampling sampling;
  CaptureOptions capture;
  size_t limit = 0;
  std::string dtype = "bf16";
  bool fp8_cache = false;
  std::string chat_template;
  bool json = false;

  // Of a remote teacher.
  std::filesystem::path tokenizer;
  std::string remote_model;
  std::string remote_api = "completions";
  teacher::HttpOptions http;
  teacher::RetryPolicy retry;

  bool is_remote() const { return teacher.starts_with("http://") || teacher.starts_with("https://"); }
};

constexpr const char* kHelp =
    R"(Example: distill generate --teacher model.gguf --prompts prompts.jsonl --out traces --samples 2

Lets a teacher answer prompts and writes the answers with its distribution over the alternatives of each token.
A line of the prompts is {"id", "prompt"} for a text to continue or {"id", "messages"} for a conversation, with
"answer" and "verifier" where answers are to be checked: exact, numeric, choice, math, regex, or program, then "answer"
is a command that is run without network and writes nothing. Run again, it makes only the traces that are missing.
Stopped by Ctrl-C or SIGTERM, it keeps what is finished and exits with 128 + the signal's number. A prompt that the
model cannot answer, such as one too long for its context, is reported at the end, with exit code 1.

The teacher may be a server that speaks OpenAI's API and gives top log-probabilities (llama-server, vLLM, ...):
  distill generate --teacher http://host:8000 --tokenizer model/ --prompts prompts.jsonl --out traces --targets topk:20
Its tokenizer (and chat template) come from --tokenizer; a key from DISTILL_API_KEY or OPENAI_API_KEY, nowhere else.)";

void print(const CaptureSummary& summary, const Options& options) {
  if (options.json) {
    nlohmann::json json = summary.to_json();
    json["out"] = options.capture.directory.string();
    std::printf("%s\n", json.dump().c_str());
    return;
  }
  const auto line = [](const char* name, const std::string& value) { std::printf("%-10s %s\n", name, value.c_str()); };
  line("traces", summary.already_there == 0
                     ? fmt::format("{}", summary.traces)
                     : fmt::format("{}, and {} from earlier runs", summary.traces, summary.already_there));
  line("tokens", fmt::format("{} in {}, {:.0f} tokens/s", core::format_count(summary.completion_tokens),
                             core::format_duration(summary.seconds), summary.tokens_per_second()));
  if (summary.reasoning_tokens > 0) {
    line("reasoning", fmt::format("{} of these tokens", core::format_count(summary.reasoning_tokens)));
  }
  line("finished",
       fmt::format("{} at a stop token, {} at the length limit", summary.finish_reasons[0], summary.finish_reasons[1]));
  line("verdicts", fmt::format("{} correct, {} incorrect, {} unchecked", summary.verdicts[1], summary.verdicts[2],
                               summary.verdicts[0]));
  if (!summary.drafts.empty()) {
    std::string shares;
    for (const auto& count : summary.drafts) {
      shares += fmt::format("{}{:.1f} %", shares.empty() ? "" : ", ", 100 * count.acceptance());
    }
    line("drafts",
         fmt::format("{} accepted, by distance; {:.2f} tokens per pass", shares, nn::tokens_per_pass(summary.drafts)));
  }
  if (!summary.rejected.empty()) line("rejected", fmt::format("{} prompts", summary.rejected.size()));
  if (summary.interrupted) return;
  line("written",
       fmt::format("{}: {} traces, {}, {:.1f} bytes per token", options.capture.directory.string(),
                   summary.total_traces, core::format_bytes(summary.total_bytes), summary.bytes_per_token()));
}

// What can be found wrong before a teacher is there.
std::vector<data::Prompt> read_prompts(const Options& options) {
  data::TargetSpec::parse(options.targets);
  nn::SamplingOptions{.temperature = options.sampling.temperature,
                      .top_k = options.sampling.top_k,
                      .top_p = options.sampling.top_p,
                      .min_p = options.sampling.min_p}
      .validate();
  auto prompts = data::read_prompts(options.prompts);
  if (options.limit > 0 && options.limit < prompts.size()) prompts.resize(options.limit);
  return prompts;
}

// Null if no prompt is a conversation.
std::shared_ptr<const data::ChatTemplate> find_chat_template(const data::ModelFiles& files,
                                                             std::span<const data::Prompt> prompts,
                                                             const Options& options) {
  if (std::ranges::all_of(prompts, [](const auto& prompt) { return prompt.text.has_value(); })) return nullptr;
  auto chat_template = files.chat_template(options.chat_template);
  if (!chat_template) {
    core::fail("{} has no chat template, which prompts with \"messages\" need: name one with --chat-template",
               files.path().string());
  }
  return chat_template;
}

void complete(data::TraceProvenance& provenance, const data::Tokenizer& tokenizer, const Options& options) {
  provenance.sampling = options.sampling;
  provenance.targets = data::TargetSpec::parse(options.targets);
  provenance.targets.temperature = options.target_temperature;
  std::vector<int32_t> keep;
  for (const std::string& token : options.keep_tokens) {
    const auto id = tokenizer.token_to_id(token);
    if (!id) core::fail_usage("--keep-token {}: the tokenizer has no such token", token);
    keep.push_back(*id);
  }
  provenance.targets.set_keep(std::move(keep));
  provenance.command =
      fmt::format("distill generate --teacher {} --prompts {} --out {} --samples {}", options.teacher,
                  options.prompts.string(), options.capture.directory.string(), options.capture.samples);
  provenance.version = DISTILL_VERSION;
}

CaptureSummary generate_locally(const Options& options, std::span<const data::Prompt> prompts) {
  if (!options.tokenizer.empty() || !options.remote_model.empty()) {
    core::fail_usage("--tokenizer and --remote-model belong to a remote teacher, an http(s) URL; {} is none",
                     options.teacher);
  }
  const TextModel teacher = load_text_model(
      options.teacher, {.compute = options.dtype == "fp32" ? c10::ScalarType::Float : c10::ScalarType::BFloat16,
                        .fp8_cache = options.fp8_cache});
  const auto chat_template = find_chat_template(teacher.files, prompts, options);
  data::TraceProvenance provenance = describe_teacher(teacher, chat_template.get());
  complete(provenance, *teacher.tokenizer, options);
  if (!options.hidden_layers.empty()) {
    const nn::ModelShape& shape = teacher.model->shape();
    provenance.hidden_states =
        data::HiddenStatesSpec{.layers = data::parse_layers(options.hidden_layers, shape.num_layers),
                               .last_layer = shape.num_layers,
                               .width = shape.hidden_size,
                               .type = data::parse_hidden_type(options.hidden_dtype)};
  }
  return capture_traces({.model = *teacher.model,
                         .tokenizer = teacher.tokenizer,
                         .chat_template = chat_template,
                         .stop_tokens = teacher.stop_tokens},
                        prompts, provenance, options.capture);
}

CaptureSummary generate_remotely(const Options& options, std::span<const data::Prompt> prompts) {
  if (options.target_temperature != 1 || !options.keep_tokens.empty()) {
    core::fail_usage("--target-temperature and --keep-token: a remote teacher gives what it gives");
  }
  if (!options.hidden_layers.empty()) {
    core::fail_usage("--hidden-states: a remote teacher gives tokens and probabilities, not its hidden states");
  }
  if (options.tokenizer.empty()) {
    core::fail_usage("--teacher {}: name the model's tokenizer with --tokenizer, a Hugging Face directory or GGUF file",
                     options.teacher);
  }
  const auto files = data::ModelFiles::open(options.tokenizer);
  const RemoteText text{.tokenizer = files.tokenizer(),
                        .chat_template = find_chat_template(files, prompts, options),
                        .stop_tokens = files.eos_token_ids()};
  const auto api = options.remote_api == "chat" ? teacher::RemoteApi::kChat : teacher::RemoteApi::kCompletions;
  teacher::RemoteOptions remote{.url = options.teacher,
                                .model = options.remote_model,
                                .api = api,
                                .concurrency = options.capture.batch,
                                .top = remote_alternatives(data::TargetSpec::parse(options.targets)),
                                .http = options.http,
                                .retry = options.retry};
  remote.http.bearer_key = teacher::api_key_from_environment();
  teacher::RemoteTeacher teacher(std::move(remote), text.tokenizer);
  data::TraceProvenance provenance = describe_teacher(teacher, api, text);
  complete(provenance, *text.tokenizer, options);
  auto summary = capture_remote_traces(teacher, api, text, prompts, provenance, options.capture.directory,
                                       options.capture.samples);
  if (const auto& statistics = teacher.statistics(); statistics.retries > 0) {
    core::log::info("{} of {} requests were retries", statistics.retries, statistics.requests);
  }
  return summary;
}

void run(const Options& options) {
  core::install_interrupt_handlers();
  const auto prompts = read_prompts(options);
  const CaptureSummary summary =
      options.is_remote() ? generate_remotely(options, prompts) : generate_locally(options, prompts);
  print(summary, options);
  if (summary.interrupted) {
    throw core::Interrupted(fmt::format("stopped with {} of {} traces in {}: run the same command again to go on",
                                        summary.traces + summary.already_there,
                                        prompts.size() * static_cast<uint64_t>(options.capture.samples),
                                        options.capture.directory.string()));
  }
  if (!summary.rejected.empty()) {
    core::fail("{} of {} prompts could not be answered, the traces of all others are complete; the first: {}",
               summary.rejected.size(), prompts.size(), summary.rejected.front().reason);
  }
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto* const command = app.add_subcommand("generate", kHelp);
  const auto options = std::make_shared<Options>();
  command->add_option("--teacher", options->teacher, "Hugging Face directory, GGUF file, checkpoint or http(s) URL")
      ->required();
  command->add_option("--prompts", options->prompts, "JSON lines of prompts; - reads standard input")->required();
  command->add_option("--out", options->capture.directory, "Directory of trace shards to make or continue")->required();
  command
      ->add_option(
          "--targets", options->targets,
          "What is kept of the teacher's distribution: threshold:T or :K, sampled:N, hybrid:K+N, topk:K or full")
      ->capture_default_str();
  command
      ->add_option("--target-temperature", options->target_temperature,
                   "What the logits are divided by before that, whatever the answers' temperature")
      ->check(CLI::Range(0.01, 100.0))
      ->capture_default_str();
  command->add_option("--keep-token", options->keep_tokens,
                      "Token that is always kept exactly, such as </think>; may be given several times");
  CLI::Option* const hidden_states = command->add_option(
      "--hidden-states", options->hidden_layers,
      "Layers whose hidden states are kept too, such as 0,12,last: 0 is the embedding, last what the head sees");
  command
      ->add_option("--hidden-dtype", options->hidden_dtype, "How they are stored: bf16, or fp8 in about half the space")
      ->check(CLI::IsMember({"bf16", "fp8"}))
      ->needs(hidden_states)
      ->capture_default_str();
  command->add_option("--samples", options->capture.samples, "Answers per prompt")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->capture_default_str();
  command->add_option("--max-new-tokens", options->sampling.max_new_tokens, "Longest answer, in tokens")
      ->check(positive())
      ->capture_default_str();
  command->add_option("--temperature", options->sampling.temperature, "0 takes the most probable token each time")
      ->capture_default_str();
  command->add_option("--top-p", options->sampling.top_p, "Draw from the most probable tokens that reach this mass")
      ->capture_default_str();
  command->add_option("--top-k", options->sampling.top_k, "Draw from the K most probable tokens; 0 is no limit")
      ->capture_default_str();
  command
      ->add_option("--min-p", options->sampling.min_p,
                   "Draw from tokens at least this probable, relative to the most probable one")
      ->capture_default_str();
  command->add_option("--seed", options->sampling.seed, "The same seed draws the same answers, in any batch")
      ->capture_default_str();
  command->add_option("--limit", options->limit, "Use only the first N prompts; 0 uses all")->capture_default_str();
  command->add_option("--batch", options->capture.batch, "Answers generated, or requests under way, side by side")
      ->check(positive())
      ->capture_default_str();
  command
      ->add_option(
          "--cache-tokens", options->capture.cache_tokens,
          "Tokens that the cache holds for all answers side by side; 0 is enough for whole contexts, at most 2 GiB")
      ->check(non_negative())
      ->capture_default_str();
  add_thinking_budget_option(*command, options->sampling.thinking_budget);
  command->add_option(
      "--draft-tokens", options->capture.draft_tokens,
      "Tokens guessed ahead and checked in one pass, for the same answers sooner; 1 if the teacher has a\n"
      "prediction module (MTP) that is mostly right");
  command->add_option("--dtype", options->dtype, "What to compute in: bf16 or fp32")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  add_cache_dtype_option(*command, options->fp8_cache);
  add_chat_template_option(*command, options->chat_template);
  command->add_option("--tokenizer", options->tokenizer,
                      "Of a remote teacher: the model's tokenizer, as a Hugging Face directory or GGUF file");
  command->add_option("--remote-model", options->remote_model,
                      "Of a remote teacher: the model's name there; not needed if it serves a single one");
  command
      ->add_option(
          "--remote-api", options->remote_api,
          "Of a remote teacher: completions, where prompts go as tokens, or chat, where the server applies its "
          "template")
      ->check(CLI::IsMember({"completions", "chat"}))
      ->capture_default_str();
  command->add_option("--connect-timeout", options->http.connect_seconds, "Of a remote teacher: seconds to reach it")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  command
      ->add_option("--stall-timeout", options->http.stall_seconds,
                   "Of a remote teacher: seconds without a byte until a request is tried again")
      ->check(CLI::Range(1.0, 1e6))
      ->capture_default_str();
  command
      ->add_option("--retries", options->retry.retries,
                   "Of a remote teacher: how often a request that fails is tried again, later each time")
      ->check(CLI::Range(int64_t{0}, int64_t{1000}))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print the summary as one JSON object");
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
