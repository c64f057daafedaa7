#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/error.h"
#include "core/progress.h"
#include "data/file_description.h"

namespace distill::cli {
namespace {

using core::format_bytes;
using core::format_count;
using nlohmann::ordered_json;

struct Options {
  std::filesystem::path path;
  bool json = false;
  data::DescribeOptions describe;
};

// Text of a file for a terminal: JSON's escapes keep its control characters from doing anything there.
std::string shown(const ordered_json& value) {
  if (!value.is_string()) return value.dump();
  const std::string quoted = value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  return quoted.find('\\') == std::string::npos ? quoted.substr(1, quoted.size() - 2) : quoted;
}

// The value under `key`; null if there is none.
ordered_json get(const ordered_json& object, const char* key) {
  return object.is_object() && object.contains(key) ? object[key] : ordered_json();
}

void print_row(const char* label, const std::string& text) {
  fmt::print("  {:<14} {}\n", label, text);
}

// "label: a of config[key], ..." of those keys the configuration has.
void print_sizes(const ordered_json& config) {
  constexpr std::pair<const char*, const char*> kSizes[] = {
      {"num_hidden_layers", "layers"},  {"hidden_size", "hidden"},           {"intermediate_size", "feed-forward"},
      {"num_attention_heads", "heads"}, {"num_key_value_heads", "KV heads"}, {"head_dim", "per head"},
      {"n_routed_experts", "experts"}};
  std::vector<std::string> parts;
  for (const auto& [key, word] : kSizes) {
    if (const auto value = get(config, key); value.is_number())
      parts.push_back(fmt::format("{} {}", value.dump(), word));
  }
  if (!parts.empty()) print_row("sizes", fmt::format("{}", fmt::join(parts, ", ")));
}

void print_vocabulary(const ordered_json& config) {
  std::vector<std::string> parts;
  if (const auto size = get(config, "vocab_size"); size.is_number()) parts.push_back(size.dump() + " tokens");
  if (const auto size = get(config, "max_position_embeddings"); size.is_number()) {
    parts.push_back(fmt::format("context of {}", size.dump()));
  }
  if (get(config, "tie_word_embeddings") == true) parts.emplace_back("embedding and head tied");
  if (!parts.empty()) print_row("vocabulary", fmt::format("{}", fmt::join(parts, ", ")));
}

void print_weights(const ordered_json& weights) {
  if (!get(weights, "tensors").is_number()) return;
  print_row("weights", fmt::format("{} parameters in {} tensors, {}", format_count(weights["parameters"].get<double>()),
                                   weights["tensors"].dump(), format_bytes(weights["bytes"].get<double>())));
  for (const auto& [dtype, amount] : weights["dtypes"].items()) {
    print_row("", fmt::format("{:<8} {:>8} parameters in {} tensors, {}", dtype,
                              format_count(amount["parameters"].get<double>()), amount["tensors"].dump(),
                              format_bytes(amount["bytes"].get<double>())));
  }
  if (weights.contains("fingerprint")) print_row("fingerprint", shown(weights["fingerprint"]));
}

void print_cache(const ordered_json& description) {
  const auto bytes = get(description, "cache_bytes_per_token");
  if (!bytes.is_number()) return;
  std::string text = fmt::format("{} per token in bf16", format_bytes(bytes.get<double>()));
  if (const auto fp8 = get(description, "cache_bytes_per_token_fp8"); fp8.is_number()) {
    text += fmt::format(", {} in FP8", format_bytes(fp8.get<double>()));
  }
  if (const auto modules = get(get(description, "config"), "num_nextn_predict_layers");
      modules.is_number() && modules != 0) {
    text += ", besides those of prediction modules";
  }
  print_row("cache", text);
  if (const auto ordinary = get(description, "cache_bytes_per_token_without_latents"); ordinary.is_object()) {
    print_row("",
              fmt::format("{} with keys and values of every head, {} with grouped heads (8)",
                          format_bytes(ordinary["mha"].get<double>()), format_bytes(ordinary["gqa_8"].get<double>())));
  }
}

// One part of a model: `text` if it is there, else that it is not.
void print_part(const ordered_json& description, const char* key, const char* label, auto&& text) {
  if (!description.contains(key)) return;
  const ordered_json& part = description[key];
  print_row(label, part.is_null() ? "none" : get(part, "error").is_null() ? text(part) : "cannot be read");
}

void print_text_side(const ordered_json& description) {
  print_part(description, "tokenizer", "tokenizer", [](const ordered_json& tokenizer) {
    return fmt::format("{} tokens, {} of them special, fingerprint {:.12}", tokenizer["vocab_size"].dump(),
                       tokenizer["special_tokens"].dump(), tokenizer["fingerprint"].get<std::string>());
  });
  print_part(description, "chat_template", "chat template", [](const ordered_json& chat_template) {
    return shown(chat_template[chat_template["family"].is_null() ? "note" : "family"]);
  });
  print_part(description, "eos_token_ids", "end tokens", [](const ordered_json& ids) { return ids.dump(); });
}

void print_metadata(const ordered_json& metadata) {
  if (!metadata.is_object() || metadata.empty()) return;
  fmt::print("metadata\n");
  constexpr size_t kShown = 80;
  for (const auto& [key, value] : metadata.items()) {
    std::string text =
        value.is_object() ? fmt::format("{} x {}", value["count"].dump(), shown(value["array_of"])) : shown(value);
    if (text.size() > kShown) {
      size_t end = kShown;
      while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0u) == 0x80u) --end;  // not within a character
      text = text.substr(0, end) + "...";
    }
    fmt::print("  {} = {}\n", shown(key), text);
  }
}

void print_tensors(const ordered_json& tensors) {
  if (!tensors.is_array()) return;
  size_t width = 4;
  for (const auto& tensor : tensors) width = std::max(width, shown(tensor["name"]).size());
  fmt::print("{:<{}}  {:<8} {:>10}  shape\n", "name", width, "dtype", "bytes");
  for (const auto& tensor : tensors) {
    fmt::print("{:<{}}  {:<8} {:>10}  {}\n", shown(tensor["name"]), width, shown(tensor["dtype"]),
               tensor["bytes"].dump(), tensor["shape"].dump());
  }
}

void print_traces(const ordered_json& traces) {
  print_row("traces", fmt::format("{} in {} shards, {}", traces["documents"].dump(), traces["shards"].dump(),
                                  format_bytes(traces["bytes"].get<double>())));
  print_row("tokens",
            fmt::format("{} of completions, {} of prompts", format_count(traces["completion_tokens"].get<double>()),
                        format_count(traces["prompt_tokens"].get<double>())));
  for (const auto& [key, value] : traces["provenance"].items()) {
    if (!value.is_object()) {
      print_row(key.c_str(), shown(value));
      continue;
    }
    for (const auto& [name, part] : value.items()) print_row(key.c_str(), fmt::format("{:<14} {}", name, shown(part)));
  }
}

void print_text(const ordered_json& description) {
  const auto kind = description["kind"].get<std::string>();
  std::string title = fmt::format("{}: {}", description["path"].get<std::string>(), kind);
  if (kind == "gguf") title += fmt::format(" version {}", description["version"].dump());
  if (const auto type = get(description, "model_type"); type.is_string()) title += ", " + shown(type);
  fmt::print("{}\n", title);
  if (kind == "run") {
    print_row("checkpoints",
              fmt::format("{}, the newest is {}", description["checkpoints"].size(), shown(description["latest"])));
  }
  if (kind == "traces") print_traces(description);
  const ordered_json config = get(description, "config");
  print_sizes(config);
  print_vocabulary(config);
  print_weights(get(description, "weights"));
  print_cache(description);
  print_text_side(description);
  print_metadata(get(description, "metadata"));
  print_tensors(get(description, "tensors"));
}

void run(const Options& options) {
  const ordered_json description = data::describe_file(options.path, options.describe);
  if (options.json) {
    fmt::print("{}\n", description.dump(2, ' ', false, ordered_json::error_handler_t::replace));
  } else {
    print_text(description);
  }
  std::fflush(stdout);
  const ordered_json problems = get(description, "problems");
  if (!problems.empty()) {
    std::vector<std::string> messages = problems.get<std::vector<std::string>>();
    core::fail("{}", fmt::join(messages, "\n"));
  }
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  auto* const command = app.add_subcommand(
      "inspect",
      "Example: distill inspect model.gguf --tensors\n\n"
      "Says what a file or directory holds: a model (Hugging Face directory, GGUF file, run or checkpoint), a\n"
      "safetensors file or index, a tokenizer.json, or traces. What is damaged is named, with exit status 1.");
  const auto options = std::make_shared<Options>();
  command->add_option("path", options->path, "The file or directory")->required();
  command->add_flag("--tensors", options->describe.tensors, "List every tensor");
  command->add_flag("--fingerprint", options->describe.fingerprint, "Read the weights for their SHA-256");
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
