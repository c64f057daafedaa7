#include "distill/load_model.h"

#include <nlohmann/json.hpp>
#include <string>

#include "student/dense_config.h"
#include "student/dense_model.h"
#include "student/dense_weights.h"
#include "teacher/deepseek_config.h"
#include "teacher/deepseek_model.h"
#include "teacher/deepseek_weights.h"

namespace distill {
namespace {

bool is_deepseek(const data::ModelFiles& files) {
  const auto& config = files.config();
  const auto type = config.find("model_type");
  return type != config.end() && type->is_string() && teacher::is_deepseek_model_type(type->get<std::string>());
}

}  // namespace

std::unique_ptr<nn::CausalLM> load_model(const data::ModelFiles& files, const nn::ModelOptions& options) {
  if (is_deepseek(files)) return teacher::load_deepseek_model(files, options);
  return student::load_dense_model(files, options);
}

void check_model(const data::ModelFiles& files) {
  const std::string location = files.config_location();
  if (is_deepseek(files)) {
    const teacher::DeepseekWeights checked(teacher::parse_deepseek_config(files.config(), location), files.weights());
  } else {
    const auto config = student::parse_dense_config(files.config(), location);
    const student::DenseWeightReader checked(config, *files.weights());
  }
}

}  // namespace distill
