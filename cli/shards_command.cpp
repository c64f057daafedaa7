#include <fmt/format.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/error.h"
#include "core/log.h"
#include "core/progress.h"
#include "data/model_files.h"
#include "data/text_measures.h"
#include "data/tokenizer.h"
#include "data/trace_copy.h"
#include "data/trace_export.h"
#include "data/trace_reader.h"
#include "data/trace_report.h"
#include "data/trace_shard.h"
#include "data/trace_statistics.h"

namespace distill::cli {
namespace {

void list_shards(const std::string& path, bool json) {
  const auto reader = data::TraceReader::open(path);
  nlohmann::json rows = nlohmann::json::array();
  if (!json) fmt::print("{:<32} {:>10} {:>12} {:>12} {:>10}\n", "shard", "documents", "prompt", "completion", "size");
  for (const auto& shard : reader.shards()) {
    if (json) {
      rows.push_back({{"path", shard->path().string()},
                      {"documents", shard->size()},
                      {"prompt_tokens", shard->prompt_tokens()},
                      {"completion_tokens", shard->completion_tokens()},
                      {"bytes", shard->file_bytes()},
                      {"codec", shard->codec().description()}});
    } else {
      fmt::print("{:<32} {:>10} {:>12} {:>12} {:>10}\n", shard->path().filename().string(), shard->size(),
                 shard->prompt_tokens(), shard->completion_tokens(),
                 core::format_bytes(static_cast<double>(shard->file_bytes())));
    }
  }
  if (json) fmt::print("{}\n", nlohmann::json{{"shards", rows}, {"provenance", reader.provenance().to_json()}}.dump());
}

void print_statistics(const std::string& path, bool json) {
  const auto statistics = data::measure_traces(data::TraceReader::open(path));
  if (json) {
    fmt::print("{}\n", statistics.dump());
    return;
  }
  const auto& bytes = statistics["bytes_per_token"];
  fmt::print("documents          {}\ncompletion tokens  {}\nprompt tokens      {}\ntargets            {}\n",
             statistics["documents"].get<uint64_t>(), statistics["tokens"].get<uint64_t>(),
             statistics["prompt_tokens"].get<uint64_t>(), statistics["targets"].get<std::string>());
  fmt::print(
      "bytes per token    {:.2f} (ids {:.2f}, weights {:.2f}, tokens {:.2f}, hidden states {:.2f}, overhead {:.2f})\n",
      bytes["total"].get<double>(), bytes["ids"].get<double>(), bytes["weights"].get<double>(),
      bytes["tokens"].get<double>(), bytes["hidden"].get<double>(), bytes["overhead"].get<double>());
  fmt::print("ids per token      {:.2f}\nmass not covered   {:.4f}\n", statistics["ids_per_token"].get<double>(),
             statistics["uncovered"].get<double>());
  const auto& fidelity = statistics["fidelity"];
  if (fidelity.is_null()) return;
  fmt::print("gradient           {:.2f} degrees from that of whole distributions, {:.3f} times its norm\n",
             fidelity["gradient_angle_deg"].get<double>(), fidelity["gradient_norm_ratio"].get<double>());
  fmt::print("tail mass          {:.4f}\nKL(stored || full) {:.4f}\ncalibration error  {:.4f}\n",
             fidelity["tail_mass"].get<double>(), fidelity["kl"].get<double>(), fidelity["ece"].get<double>());
}

void verify_shards(const std::string& path) {
  const auto reader = data::TraceReader::open(path);
  data::verify_traces(reader);
  fmt::print("{} documents in {} shards are intact\n", reader.size(), reader.shards().size());
}

constexpr int kManySets = 1 << 20;

struct CopyOptions {
  std::vector<std::filesystem::path> sources;
  std::filesystem::path out;
  uint64_t documents = UINT64_MAX;
  std::string verdict, finish_reason;
  int64_t min_tokens = 0, max_tokens = INT64_MAX;
  double max_repetition = 1;
  bool unique = false;
  uint64_t per_prompt = UINT64_MAX;
  std::string language, script;
  double script_share = 0.9;
  std::filesystem::path tokenizer_path;
  std::shared_ptr<const data::Tokenizer> tokenizer{};  // to read texts

  bool wants(const data::TraceDocument& document) const {
    return (verdict.empty() || verdict == to_string(document.verdict)) &&
           (finish_reason.empty() || finish_reason == to_string(document.finish_reason)) &&
           document.completion_length() >= min_tokens && document.completion_length() <= max_tokens &&
           (max_repetition >= 1 || data::repetition(document.completion()) <= max_repetition) && reads_right(document);
  }
  bool reads_right(const data::TraceDocument& document) const {
    if (!tokenizer) return true;
    const std::string text = tokenizer->decode(document.completion(), true);
    if (!script.empty() && data::script_share(text, script) < script_share) return false;
    const std::string found = language.empty() ? "" : data::language(text);
    return found.empty() || found == language;
  }
};

void copy(const CopyOptions& options, std::function<bool(const data::TraceDocument&)> wanted = nullptr) {
  const auto summary = data::copy_traces(options.sources, options.out,
                                         {.documents_per_shard = options.documents,
                                          .wanted = std::move(wanted),
                                          .unique = options.unique,
                                          .per_prompt = options.per_prompt});
  const std::string rest = summary.left_out > 0 ? fmt::format(", {} left out", summary.left_out) : "";
  fmt::print("{} documents in {}{}\n", summary.copied, options.out.string(), rest);
}

// The same for traces that are left out for what their text is.
void filter_traces(CopyOptions& options) {
  if ((options.script.empty() && options.language.empty()) != options.tokenizer_path.empty()) {
    core::fail_usage(
        "--language and --script need --tokenizer, and it one of them: the traces' own, to read the texts");
  }
  if (!options.script.empty()) data::script_share("", options.script);
  if (!options.language.empty()) data::check_language(options.language);
  if (!options.tokenizer_path.empty()) {
    options.tokenizer = data::ModelFiles::open(options.tokenizer_path).tokenizer();
    for (const auto& source : options.sources) {
      data::TraceReader::open(source).require(options.tokenizer->fingerprint(), INT64_MAX);
    }
  }
  copy(options, [&](const auto& document) { return options.wants(document); });
}

void repair(const CopyOptions& options) {
  const auto summary = data::repair_traces(options.sources.front(), options.out);
  for (const std::string& damage : summary.damage) core::log::warn("{}", damage);
  fmt::print("{} intact documents in {}, {} lost\n", summary.copied, options.out.string(), summary.damage.size());
}

// merge, split, filter and repair: each makes a new set.
void add_copy_commands(CLI::App& shards) {
  const auto options = std::make_shared<CopyOptions>();
  const auto add = [&](const char* name, const char* description, int most_sources) {
    CLI::App* command = shards.add_subcommand(name, description);
    command->add_option("traces", options->sources, "Directories of shards or single shards")
        ->required()
        ->expected(1, most_sources);
    command->add_option("--out", options->out, "Directory of the new set")->required();
    return command;
  };
  add("merge",
      "Example: distill shards merge run-1/ run-2/ --out traces/\n\nPuts several sets into one, with common tables.",
      kManySets)
      ->callback([options] { copy(*options); });
  CLI::App* split = add("split",
                        "Example: distill shards split traces/ --documents 1000 --out parts/\n\nMakes shards of as "
                        "many documents each.",
                        1);
  split->add_option("--documents", options->documents, "Documents per shard")->required()->check(CLI::PositiveNumber);
  split->callback([options] { copy(*options); });
  CLI::App* filter =
      add("filter",
          "Example: distill shards filter traces/ --verdict correct --unique --per-prompt 2 --out good/\n\nCopies the "
          "documents that meet all conditions: with these, what rejection sampling keeps of several "
          "answers to each prompt.",
          kManySets);
  filter->add_option("--verdict", options->verdict, "What the verifier said")
      ->check(CLI::IsMember({"correct", "incorrect", "unchecked"}));
  filter->add_option("--finish-reason", options->finish_reason, "How the completion ended")
      ->check(CLI::IsMember({"stop", "length"}));
  filter->add_option("--min-tokens", options->min_tokens, "Shortest completion");
  filter->add_option("--max-tokens", options->max_tokens, "Longest completion");
  filter
      ->add_option("--max-repetition", options->max_repetition,
                   "Most of a completion's runs of four tokens that may have occurred before in it, 0 to 1")
      ->check(CLI::Range(0.0, 1.0));
  filter->add_option(
      "--language", options->language,
      "Language of the completions, as a code such as en; those too short to tell stay; needs --tokenizer");
  filter->add_option("--script", options->script,
                     "Script that nearly all letters must be in: Latin, Han, Cyrillic, ...; needs --tokenizer");
  filter->add_option("--script-share", options->script_share, "How many of them")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  filter->add_option("--tokenizer", options->tokenizer_path, "Model with the traces' tokenizer");
  filter->add_flag("--unique", options->unique, "Of equal completions of a prompt only one");
  filter->add_option("--per-prompt", options->per_prompt, "Most completions of a prompt; the shortest are taken")
      ->check(CLI::PositiveNumber);
  filter->callback([options] { filter_traces(*options); });
  add("repair",
      "Example: distill shards repair damaged/ --out traces/\n\nCopies every document whose checksum matches out of "
      "damaged or cut shards, and names the others.",
      1)
      ->callback([options] { repair(*options); });
}

}  // namespace

void add_shards_command(CLI::App& app) {
  CLI::App* shards = app.add_subcommand(
      "shards", "Example: distill shards stats traces/\n\nLooks into trace shards and copies them into other forms.");
  shards->require_subcommand(1);
  const auto path = std::make_shared<std::string>();
  const auto add = [&](const char* name, const char* description) {
    CLI::App* command = shards->add_subcommand(name, description);
    command->add_option("traces", *path, "A directory of shards or one shard")->required();
    return command;
  };

  const auto json = std::make_shared<bool>();
  CLI::App* list = add("list", "Example: distill shards list traces/\n\nLists the shards with their sizes.");
  list->add_flag("--json", *json, "Print one JSON object");
  list->callback([=] { list_shards(*path, *json); });

  CLI::App* statistics =
      add("stats", "Example: distill shards stats traces/ --json\n\nSums up documents, tokens and bytes per token.");
  statistics->add_flag("--json", *json, "Print one JSON object");
  statistics->callback([=] { print_statistics(*path, *json); });

  add("verify",
      "Example: distill shards verify traces/\n\nReads everything and checks every checksum; exits with 1 at the first "
      "defect.")
      ->callback([=] { verify_shards(*path); });

  const auto out = std::make_shared<std::string>();
  CLI::App* exported =
      add("export",
          "Example: distill shards export traces/ --out traces.jsonl\n\nWrites every document with its decoded "
          "targets, for other programs: as JSON Lines, or as flat tensors if the name ends in .safetensors.");
  exported->add_option("--out", *out, "File to write; - is standard output")->required();
  exported->callback([=] {
    const auto reader = data::TraceReader::open(*path);
    out->ends_with(".safetensors") ? data::export_safetensors(reader, *out) : data::export_traces(reader, *out);
  });

  const auto sets = std::make_shared<std::vector<std::filesystem::path>>();
  CLI::App* report =
      shards->add_subcommand("report",
                             "Example: distill shards report traces/ other/ --out report.html\n\nWrites a page that "
                             "shows what sets hold, cost and lose, side by side.");
  report->add_option("traces", *sets, "Directories of shards or single shards")->required()->expected(1, kManySets);
  report->add_option("--out", *out, "HTML file to write")->required();
  report->callback([=] {
    data::report_traces(*sets).write(*out);
    fmt::print("{}\n", *out);
  });

  add_copy_commands(*shards);
}

}  // namespace distill::cli
