#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/option_checks.h"
#include "core/interrupt.h"
#include "core/shared_files.h"
#include "distill/quickstart.h"

namespace distill::cli {

void add_quickstart_command(CLI::App& app) {
  CLI::App* const command = app.add_subcommand(
      "quickstart",
      "Example: distill quickstart --teacher SmolLM2-135M-Instruct.Q4_1.gguf --out quickstart\n\n"
      "Does the whole job once: the teacher answers the prompts that come with distill, a student of a quarter of its\n"
      "size learns from its distributions and a second one from its answers alone, both are compared on answers they\n"
      "have not seen, and the first is exported for transformers. Stopped, it goes on when it is run again.");
  struct Arguments {
    QuickstartOptions options;
    bool json = false;
  };
  const auto arguments = std::make_shared<Arguments>();
  command->add_option("--teacher", arguments->options.teacher, "Hugging Face directory, GGUF file or checkpoint")
      ->required();
  command->add_option("--out", arguments->options.out, "Folder for everything that is made")->default_val("quickstart");
  command->add_option("--prompts", arguments->options.prompts, "JSON lines; by default those that come with distill");
  command->add_option("--student", arguments->options.student,
                      "CONFIG.json of the students; by default three layers of the teacher");
  command->add_option("--steps", arguments->options.steps, "Training steps of each student")->check(positive());
  command->add_option("--seed", arguments->options.seed, "The same seed gives the same traces and students")
      ->capture_default_str();
  command->add_flag("--full", arguments->options.full,
                    "Hours instead of minutes: more and longer answers, more training");
  command->add_flag("--json", arguments->json, "Print the report as one JSON object");
  command->callback([arguments] {
    core::install_interrupt_handlers();
    QuickstartOptions& options = arguments->options;
    options.version = DISTILL_VERSION;
    if (options.prompts.empty()) options.prompts = core::shared_file("recipes/prompts/quickstart.jsonl");
    const QuickstartReport report = run_quickstart(options);
    const std::string text = arguments->json ? report.to_json().dump() + "\n" : report.to_text();
    std::fputs(text.c_str(), stdout);
  });
}

}  // namespace distill::cli
