#include "cli/commands.h"

namespace distill::cli {

void add_tokenize_command(CLI::App& app) {
  app.add_subcommand("tokenize", "Turns text into token ids and back");
}

}  // namespace distill::cli
