// Typed reading of configuration (YAML recipes, JSON): every key is asked for by name and type, and whatever nobody
// asked for is an error that suggests the nearest key.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace distill::core {

class ConfigReader {
 public:
  // By extension: .yaml and .yml are YAML (1.2 core scalars), everything else JSON. Throws Error naming file and line.
  static ConfigReader from_file(const std::filesystem::path& path);
  // An object already parsed; `location` names it in messages.
  ConfigReader(nlohmann::json object, std::string location);

  // The value under `key`, or nothing. Throws UsageError "<location>: <key>: expected a number, found \"fast\"".
  // T: bool, int64_t, double, std::string, std::vector of these; nlohmann::json takes any value.
  template <typename T>
  std::optional<T> find(std::string_view key);
  template <typename T>
  T get(std::string_view key, T fallback) {
    return find<T>(key).value_or(std::move(fallback));
  }
  // Throws UsageError if the key is missing.
  template <typename T>
  T require(std::string_view key);

  bool contains(std::string_view key) const;
  // A nested object; empty if the key is missing. Call finish() on it too.
  ConfigReader section(std::string_view key);

  // Throws UsageError if the object has a key that was never asked for.
  void finish() const;

  // Fails with the location and key in front of `message`, for values that are of the right type but make no sense.
  [[noreturn]] void reject(std::string_view key, std::string_view message) const;

  const std::string& location() const { return location_; }

 private:
  const nlohmann::json* look_up(std::string_view key);
  std::string path_of(std::string_view key) const;

  nlohmann::json object_;
  std::string location_;
  std::string prefix_;
  std::vector<std::string> known_;
};

// A YAML text as JSON: plain scalars become null, booleans, numbers or strings as in YAML's core schema. Throws Error
// with line and column.
nlohmann::json parse_yaml(const std::string& text);

}  // namespace distill::core
