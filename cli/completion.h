// Shell completion, made from the application's own options so that it never goes stale.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <string_view>

namespace distill::cli {

// "bash", "zsh" or "fish": a script for that shell, to be sourced or put where it looks for completions. Offers the
// subcommands, each one's options, the words that an option or argument allows, and files everywhere else. Throws
// UsageError on any other shell.
std::string completion_script(const CLI::App& app, std::string_view shell);

// What a command does, in one line: the first sentence of its description behind the example that opens it.
std::string summary_of(const CLI::App& command);

}  // namespace distill::cli
