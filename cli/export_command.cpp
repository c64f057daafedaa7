#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/commands.h"
#include "core/progress.h"
#include "distill/export_model.h"

namespace distill::cli {
namespace {

struct Options {
  ExportOptions what;
  std::string format = "hf";
  std::string dtype = "bf16";
  bool json = false;
};

void run(Options& options) {
  options.what.dtype = parse_export_dtype(options.dtype);
  const ExportSummary summary = export_model(options.what);
  if (options.json) {
    std::printf(
        "%s\n",
        nlohmann::json({{"out", summary.out.string()}, {"parameters", summary.parameters}, {"bytes", summary.bytes}})
            .dump()
            .c_str());
    return;
  }
  std::printf("%s: %s parameters, %s\n", summary.out.c_str(),
              core::format_count(static_cast<double>(summary.parameters)).c_str(),
              core::format_bytes(static_cast<double>(summary.bytes)).c_str());
}

}  // namespace

void add_export_command(CLI::App& app) {
  auto* const command =
      app.add_subcommand("export",
                         "Example: distill export --model run --out student --format hf --dtype bf16\n\n"
                         "Writes a model for other programs: weights, config, tokenizer, chat template, generation "
                         "config and a model card\nthat transformers and vLLM load.");
  const auto options = std::make_shared<Options>();
  command->add_option("--model", options->what.model, "Run, checkpoint, Hugging Face directory or GGUF file")
      ->required();
  command->add_option("--out", options->what.out, "Directory to make")->required();
  command->add_option("--format", options->format, "hf: safetensors in Hugging Face's layout")
      ->check(CLI::IsMember({"hf"}))
      ->capture_default_str();
  command->add_option("--dtype", options->dtype, "What weights are stored as")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  command->add_flag("--overwrite", options->what.overwrite, "Replace a model that is in --out already");
  command->add_flag("--json", options->json, "Print the summary as one JSON object");
  command->callback([options] { run(*options); });
}

}  // namespace distill::cli
