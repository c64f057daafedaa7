#include <filesystem>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/interrupt.h"
#include "data/model_files.h"
#include "distill/load_model.h"
#include "distill/token_logits.h"

namespace distill::cli {
namespace {

struct Options {
  std::filesystem::path model;
  std::filesystem::path tokens;
  std::filesystem::path out;
  std::string dtype = "bf16";
  bool fp8_cache = false;
  bool incremental = false;
};

void run(const Options& options) {
  core::install_interrupt_handlers();
  const auto model =
      load_model(data::ModelFiles::open(options.model),
                 {.compute = options.dtype == "fp32" ? c10::ScalarType::Float : c10::ScalarType::BFloat16,
                  .fp8_cache = options.fp8_cache});
  const auto sequences = read_token_lines(options.tokens, model->shape().vocab_size);
  write_token_logits(*model, sequences, options.incremental ? ScoringMode::kIncremental : ScoringMode::kWholeSequence,
                     options.out);
}

}  // namespace

void add_logits_command(CLI::App& app) {
  auto* const command =
      app.add_subcommand("logits",
                         "Example: distill logits --model DIR --tokens ids.jsonl --out logits.safetensors\n\n"
                         "Writes a model's logits for given token ids, to compare it with other programs.");
  const auto options = std::make_shared<Options>();
  command->add_option("--model", options->model, "Hugging Face directory, GGUF file or checkpoint")->required();
  command->add_option("--tokens", options->tokens, "JSON lines, each an array of token ids; - reads standard input")
      ->required();
  command
      ->add_option("--out", options->out,
                   "Safetensors file to write: tensor \"0\" [tokens, vocab] fp32 belongs to the first line, and so on")
      ->required();
  command->add_option("--dtype", options->dtype, "What to compute in: fp32 or bf16")
      ->check(CLI::IsMember({"fp32", "bf16"}))
      ->capture_default_str();
  add_cache_dtype_option(*command, options->fp8_cache);
  command->add_flag("--incremental", options->incremental, "Go token by token through the cache, as generation does");
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
