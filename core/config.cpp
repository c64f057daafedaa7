#include "core/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/text_file.h"

namespace distill::core {
namespace {

constexpr int kMaxYamlDepth = 64;  // aliases and nesting of an untrusted file must not exhaust the stack

nlohmann::json scalar_to_json(const YAML::Node& node) {
  const std::string& text = node.Scalar();
  if (node.Tag() == "!") return text;  // quoted
  if (text.empty() || text == "~" || text == "null") return nullptr;
  if (text == "true") return true;
  if (text == "false") return false;
  if (text == ".inf") return std::numeric_limits<double>::infinity();
  if (text == "-.inf") return -std::numeric_limits<double>::infinity();
  const char* begin = text.data() + (text[0] == '+' ? 1 : 0);
  const char* end = text.data() + text.size();
  int64_t integer = 0;
  if (const auto result = std::from_chars(begin, end, integer); result.ec == std::errc() && result.ptr == end)
    return integer;
  double number = 0;
  if (const auto result = std::from_chars(begin, end, number); result.ec == std::errc() && result.ptr == end)
    return number;
  return text;
}

nlohmann::json yaml_to_json(const YAML::Node& node, int depth) {
  check(depth < kMaxYamlDepth, "line {}: nested deeper than {} levels", node.Mark().line + 1, kMaxYamlDepth);
  if (node.IsScalar()) return scalar_to_json(node);
  if (node.IsSequence()) {
    auto array = nlohmann::json::array();
    for (const auto& item : node) array.push_back(yaml_to_json(item, depth + 1));
    return array;
  }
  if (!node.IsMap()) return nullptr;
  auto object = nlohmann::json::object();
  for (const auto& entry : node) {
    const std::string& key = entry.first.Scalar();
    check(!object.contains(key), "line {}: duplicate key \"{}\"", entry.first.Mark().line + 1, key);
    object[key] = yaml_to_json(entry.second, depth + 1);
  }
  return object;
}

template <typename T>
struct Kind;
template <>
struct Kind<bool> {
  static constexpr const char* kName = "true or false";
  static bool matches(const nlohmann::json& value) { return value.is_boolean(); }
};
template <>
struct Kind<int64_t> {
  static constexpr const char* kName = "an integer";
  static bool matches(const nlohmann::json& value) { return value.is_number_integer(); }
};
template <>
struct Kind<double> {
  static constexpr const char* kName = "a number";
  static bool matches(const nlohmann::json& value) { return value.is_number(); }
};
template <>
struct Kind<std::string> {
  static constexpr const char* kName = "text";
  static bool matches(const nlohmann::json& value) { return value.is_string(); }
};
template <>
struct Kind<nlohmann::json> {
  static constexpr const char* kName = "a value";
  static bool matches(const nlohmann::json&) { return true; }
};
template <typename T>
struct Kind<std::vector<T>> {
  static constexpr const char* kName = "a list";
  static bool matches(const nlohmann::json& value) {
    return value.is_array() && std::ranges::all_of(value, Kind<T>::matches);
  }
};

}  // namespace

nlohmann::json parse_yaml(const std::string& text) {
  try {
    return yaml_to_json(YAML::Load(text), 0);
  } catch (const YAML::Exception& error) {
    fail("line {}, column {}: {}", error.mark.line + 1, error.mark.column + 1, error.msg);
  }
}

ConfigReader ConfigReader::from_file(const std::filesystem::path& path) {
  const auto extension = path.extension();
  if (extension != ".yaml" && extension != ".yml") return {read_json_file(path), path.string()};
  const std::string text = read_file(path);
  return {with_context(path.string(), [&] { return parse_yaml(text); }), path.string()};
}

ConfigReader::ConfigReader(nlohmann::json object, std::string location)
    : object_(std::move(object)), location_(std::move(location)) {
  if (object_.is_null()) object_ = nlohmann::json::object();
  if (!object_.is_object()) fail_usage("{}: expected keys and values, found {}", location_, object_.type_name());
}

std::string ConfigReader::path_of(std::string_view key) const {
  return prefix_ + std::string(key);
}

void ConfigReader::reject(std::string_view key, std::string_view message) const {
  fail_usage("{}: {}: {}", location_, path_of(key), message);
}

const nlohmann::json* ConfigReader::look_up(std::string_view key) {
  known_.emplace_back(key);
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool ConfigReader::contains(std::string_view key) const {
  return object_.contains(key);
}

template <typename T>
std::optional<T> ConfigReader::find(std::string_view key) {
  const nlohmann::json* value = look_up(key);
  if (value == nullptr) return std::nullopt;
  if (!Kind<T>::matches(*value)) reject(key, fmt::format("expected {}, found {}", Kind<T>::kName, value->dump()));
  return value->template get<T>();
}

template <typename T>
T ConfigReader::require(std::string_view key) {
  auto value = find<T>(key);
  if (!value) reject(key, fmt::format("is missing; it must be {}", Kind<T>::kName));
  return *std::move(value);
}

ConfigReader ConfigReader::section(std::string_view key) {
  const nlohmann::json* value = look_up(key);
  if (value != nullptr && !value->is_object()) {
    reject(key, fmt::format("expected keys and values, found {}", value->dump()));
  }
  ConfigReader nested(value == nullptr ? nlohmann::json::object() : *value, location_);
  nested.prefix_ = path_of(key) + ".";
  return nested;
}

void ConfigReader::finish() const {
  for (const auto& [key, value] : object_.items()) {
    if (std::ranges::find(known_, key) != known_.end()) continue;
    const std::string suggestion = nearest(key, known_);
    reject(key, suggestion.empty() ? fmt::format("unknown key; known are {}", fmt::join(known_, ", "))
                                   : fmt::format("unknown key, did you mean \"{}\"?", suggestion));
  }
}

#define DISTILL_CONFIG_TYPE(T)                                           \
  template std::optional<T> ConfigReader::find<T>(std::string_view key); \
  template T ConfigReader::require<T>(std::string_view key);
DISTILL_CONFIG_TYPE(bool)
DISTILL_CONFIG_TYPE(int64_t)
DISTILL_CONFIG_TYPE(double)
DISTILL_CONFIG_TYPE(std::string)
DISTILL_CONFIG_TYPE(nlohmann::json)
DISTILL_CONFIG_TYPE(std::vector<int64_t>)
DISTILL_CONFIG_TYPE(std::vector<double>)
DISTILL_CONFIG_TYPE(std::vector<std::string>)
#undef DISTILL_CONFIG_TYPE

}  // namespace distill::core
