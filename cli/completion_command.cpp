#include <cstdio>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/completion.h"

namespace distill::cli {

void add_completion_command(CLI::App& app) {
  CLI::App* const command =
      app.add_subcommand("completion",
                         "Example: source <(distill completion bash)\n\n"
                         "Prints a script that completes distill's commands and options.\n\n"
                         "To have it in every shell:\n"
                         "  distill completion bash > ~/.local/share/bash-completion/completions/distill\n"
                         "  distill completion zsh  > \"${fpath[1]}/_distill\"\n"
                         "  distill completion fish > ~/.config/fish/completions/distill.fish");
  const auto shell = std::make_shared<std::string>();
  command->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  command->callback([&app, shell] { std::fputs(completion_script(app, *shell).c_str(), stdout); });
}

}  // namespace distill::cli
