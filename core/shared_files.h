// Files that come with the program: prompts and recipes.
#pragma once

#include <filesystem>
#include <string_view>

namespace distill::core {

// `name` below share/distill, found beside the program's own folder both where it was built and where it is installed:
// shared_file("recipes/prompts/quickstart.jsonl"). Throws Error naming the place that was looked at.
std::filesystem::path shared_file(std::string_view name);

}  // namespace distill::core
