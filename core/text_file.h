// Reading text, JSON and JSON Lines files with errors that name the file and line.
#pragma once

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace distill::core {

// The whole file. Throws Error naming it.
std::string read_file(const std::filesystem::path& path);

// Throws Error naming the file and what is wrong where (line and column), duplicate keys included.
nlohmann::json read_json_file(const std::filesystem::path& path);

// Calls `body(line_number, value)` for each line (numbers from 1); blank lines are skipped. An exception from the body
// and every defect of a line (bad JSON, not UTF-8) carries "<path>:<line>". `path` "-" reads standard input.
void for_each_json_line(const std::filesystem::path& path,
                        const std::function<void(size_t line_number, nlohmann::json&& value)>& body);

enum class DuplicateKeys { kRefuse, kTakeLast };

// Parses one JSON text, which may come from anyone: UTF-8 only, and nested no deeper than recursion over it can bear.
// Throws Error, with the column where there is one.
nlohmann::json parse_json(std::string_view text, DuplicateKeys duplicates = DuplicateKeys::kRefuse);

// Offset of the first byte that is not valid UTF-8, or npos.
size_t find_invalid_utf8(std::string_view text);

}  // namespace distill::core
