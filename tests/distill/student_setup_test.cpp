#include "distill/student_setup.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "data/safetensors.h"
#include "tests/data/expect_error.h"
#include "tests/distill/tiny_model_folder.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

class StudentSetup : public testing::Test {
 protected:
  data::TraceReader traces() const { return data::TraceReader::open(traces_); }
  fs::path write_config(const nlohmann::json& config) const {
    core::write_file_atomically(folder_.path() / "student.json", config.dump());
    return folder_.path() / "student.json";
  }

  TemporaryFolder folder_;
  fs::path teacher_ = write_model_folder(folder_.path() / "teacher");
  fs::path traces_ = write_traces_of(folder_.path() / "traces", teacher_);
};

TEST_F(StudentSetup, GivesANewStudentItsTeachersTokenizer) {
  const Student student = make_student({.student = write_config(tiny_config(tiny_vocab(), 1))}, traces(), at::kFloat);
  EXPECT_EQ(student.model->shape().num_layers, 1);
  EXPECT_EQ(student.package.config["eos_token_id"], 3);
  EXPECT_EQ(student.package.config["torch_dtype"], "float32");
  EXPECT_THAT(student.package.files, testing::Contains(testing::Key("tokenizer.json")));
  EXPECT_TRUE(student.model->parameters()[0].second.requires_grad());
}

TEST_F(StudentSetup, DrawsFreshWeightsFromTheSeedAlone) {
  const fs::path config = write_config(tiny_config(tiny_vocab()));
  const auto embedding = [&](uint64_t seed) {
    return make_student({.student = config, .seed = seed}, traces(), at::kFloat).model->parameters()[0].second;
  };
  EXPECT_TRUE(embedding(5).equal(embedding(5)));
  EXPECT_FALSE(embedding(5).equal(embedding(6)));
}

TEST_F(StudentSetup, CanBeginAsAPieceOfTheTeacher) {
  const Student student = make_student(
      {.student = write_config(tiny_config(tiny_vocab(), 1)), .initialise_from_teacher = true}, traces(), at::kFloat);
  const auto teacher = data::open_safetensors(teacher_);
  for (const auto& [name, tensor] : student.model->parameters()) {
    if (name != "model.embed_tokens.weight") continue;
    EXPECT_TRUE(tensor.equal(teacher->load(name)));
  }
}

TEST_F(StudentSetup, GoesOnWithTheWeightsOfAModel) {
  const Student student = make_student({.student = teacher_}, traces(), at::kFloat);
  const auto stored = data::open_safetensors(teacher_);
  for (const auto& [name, tensor] : student.model->parameters()) EXPECT_TRUE(tensor.equal(stored->load(name))) << name;
  EXPECT_THROW(make_student({.student = teacher_, .initialise_from_teacher = true}, traces(), at::kFloat),
               core::UsageError);
}

TEST_F(StudentSetup, RefusesAnotherTokenizer) {
  const fs::path other = write_model_folder(folder_.path() / "other");
  fs::copy_file(tokenizer_json().parent_path() / "llama3.json", other / "tokenizer.json",
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(error_of([&] { make_student({.student = other}, traces(), at::kFloat); }),
              AllOf(HasSubstr("another tokenizer"), HasSubstr(traces().provenance().tokenizer),
                    HasSubstr("other_tokenizer: aligned")));
}

TEST_F(StudentSetup, TakesAnotherTokenizerWhereTheRecipeSaysWhatToLearn) {
  const fs::path other = write_model_folder(folder_.path() / "other");
  fs::copy_file(tokenizer_json().parent_path() / "llama3.json", other / "tokenizer.json",
                fs::copy_options::overwrite_existing);
  const StudentSource source{.student = write_config(tiny_config(tiny_vocab(), 1)), .tokenizer = other};
  EXPECT_THAT(error_of([&] { make_student(source, traces(), at::kFloat); }), HasSubstr("other_tokenizer"));
  const Student student = make_student(source, traces(), at::kFloat, false, OtherTokenizer::kText);
  EXPECT_EQ(student.tokenizer->fingerprint(), data::ModelFiles::open(other).tokenizer()->fingerprint());
  EXPECT_EQ(student.text_source, other);
  EXPECT_THROW(make_student({.student = other, .tokenizer = other}, traces(), at::kFloat, false, OtherTokenizer::kText),
               core::UsageError);
  EXPECT_THROW(make_student({.student = source.student, .tokenizer = other, .initialise_from_teacher = true}, traces(),
                            at::kFloat, false, OtherTokenizer::kText),
               core::UsageError);

  // With the teacher's tokenizer there is nothing to be carried over.
  const auto reader = std::make_shared<const data::TraceReader>(traces());
  const Student alike = make_student({.student = teacher_}, *reader, at::kFloat);
  EXPECT_EQ(traces_for(alike, {}, reader, OtherTokenizer::kAligned), reader);
}

TEST_F(StudentSetup, RefusesAVocabularySmallerThanTheTeachers) {
  EXPECT_THAT(
      error_of([&] { make_student({.student = write_config(tiny_config(tiny_vocab() - 1))}, traces(), at::kFloat); }),
      HasSubstr(fmt::format("vocabulary of {} does not fit into the student's of {}", tiny_vocab(), tiny_vocab() - 1)));
}

TEST_F(StudentSetup, AsksForTheTeacherWhereTheTracesNameOneThatMoved) {
  const fs::path moved = folder_.path() / "moved";
  fs::rename(teacher_, moved);
  const fs::path config = write_config(tiny_config(tiny_vocab()));
  EXPECT_THAT(error_of([&] { make_student({.student = config}, traces(), at::kFloat); }),
              AllOf(HasSubstr(teacher_.string()), HasSubstr("--teacher")));
  EXPECT_NO_THROW(make_student({.student = config, .teacher = moved}, traces(), at::kFloat));
}

TEST_F(StudentSetup, NamesTheKeyOfAConfigThatMakesNoSense) {
  auto config = tiny_config(tiny_vocab());
  config["num_attention_heads"] = 5;
  EXPECT_THAT(error_of([&] { make_student({.student = write_config(config)}, traces(), at::kFloat); }),
              AllOf(HasSubstr("student.json"), HasSubstr("num_")));
}

}  // namespace
}  // namespace distill
