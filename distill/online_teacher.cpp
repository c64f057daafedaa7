#include "distill/online_teacher.h"

#include <fmt/format.h>

#include "core/json_difference.h"

namespace distill {

nlohmann::json describe_teachers(std::span<const OnlineTeacher> teachers) {
  auto json = nlohmann::json::array();
  for (const OnlineTeacher& teacher : teachers) {
    json.push_back(
        {{"teacher", teacher.path},
         {"fingerprints", {{"weights", teacher.weights_fingerprint}, {"config", teacher.config_fingerprint}}},
         {"weight", teacher.weight}});
  }
  return json;
}

std::string teachers_difference(const nlohmann::json& there, const nlohmann::json& here) {
  if (there.size() != here.size()) {
    return fmt::format("number of --online teachers: {} against {}", there.size(), here.size());
  }
  for (size_t i = 0; i < there.size(); ++i) {
    nlohmann::json one = there[i], other = here[i];
    const std::string names = fmt::format("{} against {}", one["teacher"].dump(), other["teacher"].dump());
    one.erase("teacher");
    other.erase("teacher");
    const std::string difference = core::first_difference(one, other);
    if (!difference.empty()) return fmt::format("--online teacher {} ({}), {}", i + 1, names, difference);
  }
  return {};
}

}  // namespace distill
