#include "distill/load_model.h"

#include "student/dense_model.h"

namespace distill {

std::unique_ptr<nn::CausalLM> load_model(const data::ModelFiles& files, const nn::ModelOptions& options) {
  return student::load_dense_model(files, options);
}

}  // namespace distill
