// One function per subcommand: each adds its subcommand with its options to the application and the callback that runs
// it. Parsing and printing only; the work is in the libraries.
#pragma once

#include <CLI/CLI.hpp>

namespace distill::cli {

void add_chat_command(CLI::App& app);
void add_completion_command(CLI::App& app);
void add_eval_command(CLI::App& app);
void add_export_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_inspect_command(CLI::App& app);
void add_logits_command(CLI::App& app);
void add_quickstart_command(CLI::App& app);
void add_shards_command(CLI::App& app);
void add_tokenize_command(CLI::App& app);
void add_train_command(CLI::App& app);

}  // namespace distill::cli
