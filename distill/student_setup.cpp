#include "distill/student_setup.h"

#include "core/error.h"
#include "core/text_file.h"
#include "distill/load_model.h"
#include "distill/retokenised_traces.h"
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

void take_tokenizer(Student& student, const data::ModelFiles& source) {
  student.tokenizer = source.tokenizer();
  student.stop_tokens = source.eos_token_ids();
  student.package.files = tokenizer_files(source);
  student.text_source = source.path();
}

// `vocab_size`: the student's.
void check_tokenizer(const Student& student, int64_t vocab_size, const data::TraceReader& traces,
                     OtherTokenizer other_tokenizer) {
  const std::string fingerprint = student.tokenizer->fingerprint();
  if (fingerprint == traces.provenance().tokenizer) return traces.require(fingerprint, vocab_size);
  core::check(other_tokenizer != OtherTokenizer::kRefuse,
              "the traces were made with another tokenizer than the student's (SHA-256 {} against {}); take a student "
              "with the teacher's tokenizer, or say in the recipe what to learn nevertheless: other_tokenizer: aligned "
              "(or text) under objective",
              traces.provenance().tokenizer, fingerprint);
  core::check(student.tokenizer->vocab_size() <= vocab_size,
              "the student's tokenizer has {} tokens, its config a vocab_size of {}", student.tokenizer->vocab_size(),
              vocab_size);
}

Student new_student(const StudentSource& source, const data::TraceReader& traces, const nn::ModelOptions& options,
                    OtherTokenizer other_tokenizer) {
  const data::ModelFiles tokenizer_source =
      source.tokenizer.empty() ? open_teacher(source, traces) : data::ModelFiles::open(source.tokenizer);
  const auto config = student::parse_dense_config(core::read_json_file(source.student), source.student.string());
  Student student;
  take_tokenizer(student, tokenizer_source);
  check_tokenizer(student, config.vocab_size, traces, other_tokenizer);
  student.package.config = student::dense_config_to_json(config);
  student.model = student::make_dense_model(student.package.config, options, source.seed);
  if (source.initialise_from_teacher) {
    if (student.tokenizer->fingerprint() != traces.provenance().tokenizer) {
      core::fail_usage("a student that begins as a piece of its teacher has the teacher's tokenizer");
    }
    student::initialise_from_teacher(*student.model, student.package.config, open_teacher(source, traces));
  }
  add_special_tokens(student.package.config, tokenizer_source);
  return student;
}

Student student_from_model(const StudentSource& source, const data::TraceReader& traces,
                           const nn::ModelOptions& options, OtherTokenizer other_tokenizer) {
  const data::ModelFiles files = data::ModelFiles::open(source.student);
  if (!source.tokenizer.empty()) {
    core::fail_usage("{} has a vocabulary already: --tokenizer is for a student that is a config.json file",
                     source.student.string());
  }
  if (source.initialise_from_teacher) {
    core::fail_usage("{} has weights already: a student that begins as a piece of its teacher is a config.json file",
                     source.student.string());
  }
  const data::ModelFiles tokenizer_source = has_tokenizer(files) ? files : open_teacher(source, traces);
  Student student;
  take_tokenizer(student, tokenizer_source);
  student.model = load_model(files, options);
  check_tokenizer(student, student.model->shape().vocab_size, traces, other_tokenizer);
  student.package.config = files.config();
  return student;
}

}  // namespace

Student make_student(const StudentSource& source, const data::TraceReader& traces, at::ScalarType compute,
                     bool recompute_activations, OtherTokenizer other_tokenizer) {
  const nn::ModelOptions options{.compute = compute, .trainable = true, .recompute = recompute_activations};
  const bool is_config = fs::is_regular_file(source.student) && source.student.extension() == ".json";
  Student student = is_config ? new_student(source, traces, options, other_tokenizer)
                              : student_from_model(source, traces, options, other_tokenizer);
  student.package.config.erase("dtype");
  student.package.config["torch_dtype"] = "float32";
  return student;
}

std::shared_ptr<const data::TraceSource> traces_for(const Student& student, const StudentSource& source,
                                                    std::shared_ptr<const data::TraceReader> traces,
                                                    OtherTokenizer other_tokenizer) {
  if (student.tokenizer->fingerprint() == traces->provenance().tokenizer) return traces;
  const bool conversations = !traces->provenance().chat_template.empty();
  const auto text_tools = [&](const data::ModelFiles& files) {
    return TextTools{.tokenizer = files.tokenizer(),
                     .chat_template = conversations ? files.chat_template() : nullptr,
                     .stop_tokens = files.eos_token_ids()};
  };
  const data::ModelFiles teacher = open_teacher(source, *traces);
  TextTools theirs = text_tools(teacher);
  core::check(theirs.tokenizer->fingerprint() == traces->provenance().tokenizer,
              "{}: the traces were made with another tokenizer than this one", teacher.path().string());
  return std::make_shared<const RetokenisedTraces>(std::move(traces), std::move(theirs),
                                                   text_tools(data::ModelFiles::open(student.text_source)),
                                                   other_tokenizer == OtherTokenizer::kAligned);
}

}  // namespace distill
