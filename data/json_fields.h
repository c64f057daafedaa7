// Typed access to the members of a JSON object read from a file, with errors that name the member.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace distill::data {

// Throw Error unless `object` is an object with a member `key` of the type asked for.
const nlohmann::json& json_member(const nlohmann::json& object, std::string_view key);
std::string json_text(const nlohmann::json& object, std::string_view key);

// Absent or null gives the fallback; another type throws.
bool json_bool(const nlohmann::json& object, std::string_view key, bool fallback);

}  // namespace distill::data
