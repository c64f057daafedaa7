#include "distill/student_setup.h"

#include "core/error.h"
#include "core/text_file.h"
#include "distill/load_model.h"
#include "student/dense_config.h"
#include "student/dense_model.h"
#include "student/initialise.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

// The model that made the traces, or another one the user names in its place.
data::ModelFiles open_teacher(const StudentSource& source, const data::TraceReader& traces) {
  if (!source.teacher.empty()) return data::ModelFiles::open(source.teacher);
  const fs::path named = traces.provenance().teacher;
  core::check(
      fs::exists(named),
      "the student needs the teacher's tokenizer, but the model that the traces name, {}, is not here: say with "
      "--teacher where it is",
      named.string());
  return data::ModelFiles::open(named);
}

// The special tokens that a model's config names, as those of `tokenizer_source`.
void add_special_tokens(nlohmann::json& config, const data::ModelFiles& tokenizer_source) {
  if (const auto bos = tokenizer_source.bos_token_id()) config["bos_token_id"] = *bos;
  const auto eos = tokenizer_source.eos_token_ids();
  if (eos.size() == 1) config["eos_token_id"] = eos.front();
  if (eos.size() > 1) config["eos_token_id"] = eos;
}

bool has_tokenizer(const data::ModelFiles& files) {
  return files.format() == data::ModelFormat::kGguf || fs::exists(files.path() / "tokenizer.json");
}

Student new_student(const StudentSource& source, const data::TraceReader& traces, const nn::ModelOptions& options) {
  const data::ModelFiles teacher = open_teacher(source, traces);
  const auto config = student::parse_dense_config(core::read_json_file(source.student), source.student.string());
  Student student;
  student.tokenizer = teacher.tokenizer();
  student.stop_tokens = teacher.eos_token_ids();
  traces.require(student.tokenizer->fingerprint(), config.vocab_size);
  student.package.config = student::dense_config_to_json(config);
  student.model = student::make_dense_model(student.package.config, options, source.seed);
  if (source.initialise_from_teacher) {
    student::initialise_from_teacher(*student.model, student.package.config, teacher);
  }
  add_special_tokens(student.package.config, teacher);
  student.package.files = tokenizer_files(teacher);
  return student;
}

Student student_from_model(const StudentSource& source, const data::TraceReader& traces,
                           const nn::ModelOptions& options) {
  const data::ModelFiles files = data::ModelFiles::open(source.student);
  if (source.initialise_from_teacher) {
    core::fail_usage("{} has weights already: a student that begins as a piece of its teacher is a config.json file",
                     source.student.string());
  }
  const data::ModelFiles tokenizer_source = has_tokenizer(files) ? files : open_teacher(source, traces);
  Student student;
  student.tokenizer = tokenizer_source.tokenizer();
  student.stop_tokens = tokenizer_source.eos_token_ids();
  student.model = load_model(files, options);
  traces.require(student.tokenizer->fingerprint(), student.model->shape().vocab_size);
  student.package.config = files.config();
  student.package.files = tokenizer_files(tokenizer_source);
  return student;
}

}  // namespace

Student make_student(const StudentSource& source, const data::TraceReader& traces, at::ScalarType compute,
                     bool recompute_activations) {
  const nn::ModelOptions options{.compute = compute, .trainable = true, .recompute = recompute_activations};
  const bool is_config = fs::is_regular_file(source.student) && source.student.extension() == ".json";
  Student student = is_config ? new_student(source, traces, options) : student_from_model(source, traces, options);
  student.package.config.erase("dtype");
  student.package.config["torch_dtype"] = "float32";
  return student;
}

}  // namespace distill
