#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/error.h"
#include "core/text_file.h"
#include "data/chat_template.h"
#include "data/model_files.h"
#include "data/tokenizer.h"
#include "data/utf8.h"

namespace distill::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kFlushBytes = 1 << 16;

struct Options {
  std::string model;
  std::string chat_template;
  bool decode = false;
  bool chat = false;
  bool plain = false;
  bool no_special_tokens = false;
  bool skip_special_tokens = false;
  bool add_generation_prompt = false;
};

// Lines on standard output, written together as long as more input is at hand.
class LineWriter {
 public:
  ~LineWriter() { std::fwrite(buffer_.data(), 1, buffer_.size(), stdout); }

  void write(std::string_view line) {
    buffer_.append(line).push_back('\n');
    if (buffer_.size() >= kFlushBytes || std::cin.rdbuf()->in_avail() <= 0) flush();
  }

  void flush() {
    const bool written = std::fwrite(buffer_.data(), 1, buffer_.size(), stdout) == buffer_.size();
    buffer_.clear();
    core::check(written && std::fflush(stdout) == 0, "cannot write to standard output");
  }

 private:
  std::string buffer_;
};

// A tokenizer.json, or a folder with nothing but that, or any model.
std::shared_ptr<const data::Tokenizer> open_tokenizer(const fs::path& path) {
  if (path.extension() == ".json") return data::Tokenizer::from_json_file(path);
  if (fs::is_directory(path) && !fs::exists(path / "config.json") && fs::exists(path / "tokenizer.json")) {
    return data::Tokenizer::from_json_file(path / "tokenizer.json");
  }
  return data::ModelFiles::open(path).tokenizer();
}

std::shared_ptr<const data::ChatTemplate> open_chat_template(const fs::path& path, const std::string& family) {
  if (path.extension() == ".json") {
    if (family.empty()) core::fail_usage("{} has no chat template; choose one with --chat-template", path.string());
    return data::ChatTemplate::from_family(family, "", "");
  }
  auto chat = data::ModelFiles::open(path).chat_template(family);
  if (chat == nullptr) core::fail_usage("{} has no chat template; choose one with --chat-template", path.string());
  return chat;
}

std::string ids_line(const std::vector<int32_t>& ids) {
  std::string line = "[";
  for (const int32_t id : ids) {
    if (line.size() > 1) line += ',';
    line += std::to_string(id);
  }
  return line + ']';
}

std::vector<int32_t> parse_ids(const json& value) {
  core::check(value.is_array(), "expected an array of token ids, found {}", value.type_name());
  std::vector<int32_t> ids;
  for (const json& id : value) {
    if (!id.is_number_integer()) core::fail("{} is not a token id", id.dump());
    if (id < 0 || id > INT32_MAX) core::fail("token id {} is outside the vocabulary", id.dump());
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

std::vector<data::ChatMessage> parse_messages(const json& value) {
  core::check(value.is_array(), "expected an array of messages, found {}", value.type_name());
  std::vector<data::ChatMessage> messages;
  for (const json& message : value) {
    core::check(message.is_object() && message.contains("role") && message["role"].is_string() &&
                    message.contains("content") && message["content"].is_string(),
                "message {} is not {{\"role\": text, \"content\": text}}", messages.size());
    messages.push_back({message["role"].get<std::string>(), message["content"].get<std::string>()});
  }
  return messages;
}

void encode_plain_lines(const data::Tokenizer& tokenizer, bool add_special_tokens, LineWriter& writer) {
  for (std::string line; std::getline(std::cin, line);) {
    writer.write(ids_line(tokenizer.encode(line, add_special_tokens)));
  }
  core::check(!std::cin.bad(), "cannot read standard input");
}

void run(const Options& options) {
  // Lets standard input tell how much more of it there is.
  std::ios::sync_with_stdio(false);
  LineWriter writer;
  if (options.chat) {
    const auto chat = open_chat_template(options.model, options.chat_template);
    core::for_each_json_line("-", [&](size_t, json&& line) {
      writer.write(json(chat->render(parse_messages(line), options.add_generation_prompt)).dump());
    });
    writer.flush();
    return;
  }
  const auto tokenizer = open_tokenizer(options.model);
  if (options.plain) {
    encode_plain_lines(*tokenizer, !options.no_special_tokens, writer);
  } else if (options.decode) {
    core::for_each_json_line("-", [&](size_t, json&& line) {
      writer.write(json(tokenizer->decode(parse_ids(line), options.skip_special_tokens)).dump());
    });
  } else {
    core::for_each_json_line("-", [&](size_t, json&& line) {
      core::check(line.is_string(), "expected a string, found {}", line.type_name());
      writer.write(ids_line(tokenizer->encode(line.get_ref<const std::string&>(), !options.no_special_tokens)));
    });
  }
  writer.flush();
}

}  // namespace

void add_tokenize_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "tokenize",
      "Example: echo '\"Hello, world\"' | distill tokenize --model model.gguf\n\n"
      "Turns text into token ids and back, or conversations into text:\n"
      "  echo '[28120, 28, 905]' | distill tokenize --model model.gguf --decode\n"
      "  echo '[{\"role\": \"user\", \"content\": \"Hi\"}]' | distill tokenize --model model.gguf --chat\n\n"
      "Reads JSON lines from standard input (strings; with --decode, arrays of ids; with --chat, arrays of messages)\n"
      "and writes one JSON line for each.");
  command
      ->add_option("--model", options->model,
                   "A Hugging Face directory, a GGUF file, a checkpoint of ours, or a tokenizer.json")
      ->required()
      ->check(CLI::ExistingPath);
  auto* decode = command->add_flag("--decode", options->decode, "From ids to text");
  auto* chat = command->add_flag("--chat", options->chat, "From messages to the text the model reads");
  auto* plain =
      command->add_flag("--plain", options->plain,
                        "Read each line as the text itself instead of JSON; bytes that are not UTF-8 count as U+FFFD");
  decode->excludes(chat);
  plain->excludes(chat)->excludes(decode);
  command->add_flag("--no-special-tokens", options->no_special_tokens,
                    "Leave out the tokens that frame a text, such as BOS");
  command->add_flag("--skip-special-tokens", options->skip_special_tokens, "Leave special tokens out of decoded text")
      ->needs(decode);
  command
      ->add_flag("--add-generation-prompt", options->add_generation_prompt,
                 "End a conversation where the assistant's answer begins")
      ->needs(chat);
  command
      ->add_option(
          "--chat-template", options->chat_template,
          fmt::format("Instead of the model's own chat template: {}", fmt::join(data::ChatTemplate::families(), ", ")))
      ->check(chat_template_family())
      ->needs(chat);
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
