#include "cli/completion.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "core/error.h"

namespace distill::cli {
namespace {

struct OptionWords {
  std::vector<std::string> names;  // "--out", "-o"; empty for an argument without a name
  std::string description;
  bool takes_value = false;
  std::vector<std::string> choices;  // the only values it allows, if that is known
};

struct CommandWords {
  std::string name;  // empty for the application itself
  std::string summary;
  std::vector<OptionWords> options;
  std::vector<std::string> argument_choices;  // of arguments without a name
};

std::string first_line(std::string_view text) {
  return std::string(text.substr(0, text.find('\n')));
}

// CLI::IsMember describes itself in the type name as "TEXT:{fp32,bf16}".
std::vector<std::string> choices_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t open = type.find('{');
  const size_t close = type.find('}');
  if (open == std::string::npos || close == std::string::npos || close < open) return {};
  return CLI::detail::split(type.substr(open + 1, close - open - 1), ',');
}

CommandWords words_of(const CLI::App& app, const std::string& name) {
  CommandWords command{.name = name, .summary = summary_of(app), .options = {}, .argument_choices = {}};
  for (const CLI::Option* option : app.get_options()) {
    OptionWords words{.names = {},
                      .description = first_line(option->get_description()),
                      .takes_value = option->get_items_expected_max() > 0,
                      .choices = choices_of(*option)};
    for (const auto& letter : option->get_snames()) words.names.push_back("-" + letter);
    for (const auto& word : option->get_lnames()) words.names.push_back("--" + word);
    if (words.names.empty()) {
      command.argument_choices.insert(command.argument_choices.end(), words.choices.begin(), words.choices.end());
    } else {
      command.options.push_back(std::move(words));
    }
  }
  return command;
}

// The application first, then its subcommands.
std::vector<CommandWords> commands_of(const CLI::App& app) {
  std::vector<CommandWords> commands{words_of(app, "")};
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    commands.push_back(words_of(*command, command->get_name()));
  }
  return commands;
}

std::vector<std::string> names_of(const std::vector<CommandWords>& commands) {
  std::vector<std::string> names;
  for (const auto& command : commands) {
    if (!command.name.empty()) names.push_back(command.name);
  }
  return names;
}

// Each character of `special` behind a backslash.
std::string escape(std::string_view text, std::string_view special) {
  std::string escaped;
  for (const char c : text) {
    if (special.find(c) != std::string_view::npos) escaped += '\\';
    escaped += c;
  }
  return escaped;
}

// As one word in single quotes.
std::string quote(std::string_view text) {
  std::string quoted = "'";
  for (const char c : text) {
    if (c == '\'') {
      quoted += "'\\''";
    } else {
      quoted += c;
    }
  }
  return quoted + "'";
}

std::string quote(const std::vector<std::string>& words) {
  return quote(fmt::format("{}", fmt::join(words, " ")));
}

std::string bash_script(const std::vector<CommandWords>& commands) {
  std::string values;
  std::string words;
  for (const auto& command : commands) {
    std::vector<std::string> offered = command.argument_choices;
    if (command.name.empty()) offered = names_of(commands);
    for (const auto& option : command.options) {
      offered.insert(offered.end(), option.names.begin(), option.names.end());
      if (!option.takes_value) continue;
      for (const auto& name : option.names) {
        // The application's own options may stand behind a subcommand too.
        const std::string pattern = command.name.empty() ? "*" + quote(" " + name) : quote(command.name + " " + name);
        values += fmt::format("    {}) {}; return ;;\n", pattern,
                              option.choices.empty()
                                  ? "COMPREPLY=($(compgen -f -- \"$current\"))"
                                  : fmt::format("COMPREPLY=($(compgen -W {} -- \"$current\"))", quote(option.choices)));
      }
    }
    words += fmt::format("    {}) words={} ;;\n", quote(command.name), quote(offered));
  }
  return fmt::format(R"(# bash completion of distill
_distill() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} command='' words='' word
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case $word in
      {}) command=$word; break ;;
    esac
  done
  case "$command ${{COMP_WORDS[COMP_CWORD-1]}}" in
{}  esac
  case $command in
{}  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ -n $command && $current != -* ]]; then
    COMPREPLY=($(compgen -f -- "$current") $(compgen -W "$words" -X '-*' -- "$current"))
  fi
}}
complete -o filenames -F _distill distill
)",
                     fmt::join(names_of(commands), "|"), values, words);
}

std::string zsh_option(const OptionWords& option) {
  std::string action;
  if (option.takes_value) {
    action = option.choices.empty() ? ":value:_files" : fmt::format(":value:({})", fmt::join(option.choices, " "));
  }
  std::string specifications;
  for (const auto& name : option.names) {
    specifications += " " + quote(fmt::format("{}[{}]{}", name, escape(option.description, "[]:\\"), action));
  }
  return specifications;
}

std::string zsh_script(const std::vector<CommandWords>& commands) {
  std::string descriptions;
  std::string cases;
  std::string global;
  for (const auto& command : commands) {
    std::string options;
    for (const auto& option : command.options) options += " \\\n       " + zsh_option(option);
    if (command.name.empty()) {
      global = options;
      continue;
    }
    descriptions += fmt::format("    {}\n", quote(command.name + ":" + command.summary));
    const std::string rest = command.argument_choices.empty()
                                 ? "'*:file:_files'"
                                 : fmt::format("'*:word:({})'", fmt::join(command.argument_choices, " "));
    cases += fmt::format("      {})\n        _arguments {}{}\n        ;;\n", command.name, rest, options);
  }
  return fmt::format(R"(#compdef distill
# zsh completion of distill
_distill() {{
  local state
  local -a commands=(
{})
  _arguments -C '1:command:->command' '*::argument:->arguments'{}
  case $state in
    command) _describe command commands ;;
    arguments)
      case $words[1] in
{}      esac
      ;;
  esac
}}
compdef _distill distill
)",
                     descriptions, global, cases);
}

std::string fish_script(const std::vector<CommandWords>& commands) {
  std::string script = "# fish completion of distill\n";
  for (const auto& command : commands) {
    std::string condition;
    if (!command.name.empty()) {
      script += fmt::format("complete -c distill -f -n __fish_use_subcommand -a {} -d {}\n", command.name,
                            quote(escape(command.summary, "\\")));
      condition = fmt::format(" -n '__fish_seen_subcommand_from {}'", command.name);
    }
    for (const auto& option : command.options) {
      script += "complete -c distill" + condition;
      for (const auto& name : option.names) {
        script += name.starts_with("--") ? " -l " + name.substr(2) : " -s " + name.substr(1);
      }
      if (option.takes_value) script += " -r";
      if (!option.choices.empty()) script += fmt::format(" -f -a {}", quote(option.choices));
      script += fmt::format(" -d {}\n", quote(escape(option.description, "\\")));
    }
    if (!command.argument_choices.empty()) {
      script += fmt::format("complete -c distill -f{} -a '{}'\n", condition, fmt::join(command.argument_choices, " "));
    }
  }
  return script;
}

}  // namespace

std::string completion_script(const CLI::App& app, std::string_view shell) {
  const std::vector<CommandWords> commands = commands_of(app);
  if (shell == "bash") return bash_script(commands);
  if (shell == "zsh") return zsh_script(commands);
  if (shell == "fish") return fish_script(commands);
  core::fail_usage("no completion for the shell \"{}\"; known are bash, zsh and fish", shell);
}

std::string summary_of(const CLI::App& command) {
  std::string text = command.get_description();
  if (text.starts_with("Example")) {
    const size_t end = text.find("\n\n");
    text = end == std::string::npos ? std::string() : text.substr(end + 2);
  }
  text = text.substr(0, text.find("\n\n"));
  std::replace(text.begin(), text.end(), '\n', ' ');
  const size_t end = text.find(". ");
  if (end != std::string::npos) text.resize(end);
  if (text.ends_with('.')) text.pop_back();
  return text;
}

}  // namespace distill::cli
