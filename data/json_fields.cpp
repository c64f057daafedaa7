#include "data/json_fields.h"

#include "core/error.h"

namespace distill::data {

using nlohmann::json;

const json& json_member(const json& object, std::string_view key) {
  core::check(object.is_object(), "expected an object with \"{}\", found {}", key, object.type_name());
  const auto it = object.find(key);
  core::check(it != object.end(), "there is no \"{}\"", key);
  return *it;
}

std::string json_text(const json& object, std::string_view key) {
  const json& value = json_member(object, key);
  core::check(value.is_string(), "\"{}\" is not a string but {}", key, value.type_name());
  return value.get<std::string>();
}

bool json_bool(const json& object, std::string_view key, bool fallback) {
  core::check(object.is_object(), "expected an object, found {}", object.type_name());
  const auto it = object.find(key);
  if (it == object.end() || it->is_null()) return fallback;
  core::check(it->is_boolean(), "\"{}\" is not true or false but {}", key, it->type_name());
  return it->get<bool>();
}

}  // namespace distill::data
