// What differs between two sets of settings, for messages that refuse to mix them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace distill::core {

// "optimizer learning_rate: 0.001 against 0.002" for the first value that is another one, or that only one of the two
// objects has (null stands for the other's); empty if there is none.
std::string first_difference(const nlohmann::json& mine, const nlohmann::json& theirs);

}  // namespace distill::core
