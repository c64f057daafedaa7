#include "distill/load_model.h"

#include <nlohmann/json.hpp>
#include <string>

#include "student/dense_model.h"
#include "teacher/deepseek_model.h"

namespace distill {

std::unique_ptr<nn::CausalLM> load_model(const data::ModelFiles& files, const nn::ModelOptions& options) {
  const auto& config = files.config();
  const auto type = config.find("model_type");
  if (type != config.end() && type->is_string() && teacher::is_deepseek_model_type(type->get<std::string>())) {
    return teacher::load_deepseek_model(files, options);
  }
  return student::load_dense_model(files, options);
}

}  // namespace distill
