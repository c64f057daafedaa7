#include "core/text_file.h"

#include <cerrno>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <vector>

#include "core/error.h"
#include "core/file_descriptor.h"

namespace distill::core {
namespace {

constexpr int kMaxJsonDepth = 64;

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  check(!std::filesystem::is_directory(path), "cannot read {}: it is a folder", path.string());
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_errno("open", path);
  std::string contents(std::istreambuf_iterator<char>(file), {});
  if (file.bad()) fail_errno("read", path);
  return contents;
}

size_t find_invalid_utf8(std::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto byte = [&](size_t k) { return i + k < text.size() ? static_cast<unsigned char>(text[i + k]) : 0u; };
    const auto continues = [&](size_t k) { return (byte(k) & 0xC0u) == 0x80u; };
    const unsigned lead = byte(0);
    size_t length = 1;
    if (lead >= 0x80) {
      // Excludes overlong forms, surrogates and code points past U+10FFFF (Unicode 15, table 3-7).
      const unsigned second = byte(1);
      if (lead >= 0xC2 && lead <= 0xDF && continues(1)) {
        length = 2;
      } else if (lead >= 0xE0 && lead <= 0xEF && continues(1) && continues(2) && !(lead == 0xE0 && second < 0xA0) &&
                 !(lead == 0xED && second > 0x9F)) {
        length = 3;
      } else if (lead >= 0xF0 && lead <= 0xF4 && continues(1) && continues(2) && continues(3) &&
                 !(lead == 0xF0 && second < 0x90) && !(lead == 0xF4 && second > 0x8F)) {
        length = 4;
      } else {
        return i;
      }
    }
    i += length;
  }
  return std::string_view::npos;
}

nlohmann::json parse_json(std::string_view text, DuplicateKeys duplicates) {
  if (const size_t at = find_invalid_utf8(text); at != std::string_view::npos) fail("not valid UTF-8 at byte {}", at);
  std::vector<std::set<std::string>> keys;
  const auto inspect = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    using Event = nlohmann::json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      check(depth < kMaxJsonDepth, "nested deeper than {} levels", kMaxJsonDepth);
    }
    if (duplicates == DuplicateKeys::kTakeLast) return true;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(parsed.get<std::string>()).second) {
      fail("duplicate key {}", parsed.dump());
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, inspect);
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: ..." without the bracketed name.
    std::string_view message = error.what();
    if (const size_t end = message.find("] "); end != std::string_view::npos) message.remove_prefix(end + 2);
    throw Error(std::string(message));
  }
}

nlohmann::json read_json_file(const std::filesystem::path& path) {
  const std::string text = read_file(path);
  return with_context(path.string(), [&] { return parse_json(text); });
}

void for_each_json_line(const std::filesystem::path& path, const std::function<void(size_t, nlohmann::json&&)>& body) {
  std::ifstream file;
  if (path != "-") {
    check(!std::filesystem::is_directory(path), "cannot read {}: it is a folder", path.string());
    errno = 0;
    file.open(path, std::ios::binary);
    if (!file) fail_errno("open", path);
  }
  std::istream& in = path == "-" ? std::cin : file;
  size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    with_context(fmt::format("{}:{}", path == "-" ? "standard input" : path.string(), number),
                 [&] { body(number, parse_json(line)); });
  }
  if (in.bad()) fail_errno("read", path);
}

}  // namespace distill::core
