#include "data/safetensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>

#include "core/error.h"
#include "core/text_file.h"
#include "data/safetensors_writer.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string with_length(const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  std::string file(sizeof length, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  return file + header + data;
}

class Safetensors : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& contents, const std::string& name = "x.safetensors") {
    std::ofstream(folder_.path() / name, std::ios::binary) << contents;
    return folder_.path() / name;
  }
  // The message of the error that opening such a file ends in; empty if there is none.
  std::string error_of(const std::string& header, const std::string& data) {
    return error_of_file(write(with_length(header, data)));
  }
  std::string error_of_file(const std::filesystem::path& path) {
    try {
      open_safetensors(path);
      return {};
    } catch (const core::Error& error) {
      return error.what();
    }
  }
  TemporaryFolder folder_;
};

TEST_F(Safetensors, ReadsBackEveryDtypeBitForBit) {
  NamedTensors tensors;
  for (const auto type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar,
                          at::kByte, at::kUInt16, at::kUInt32, at::kUInt64, at::kFloat8_e4m3fn, at::kFloat8_e5m2}) {
    const auto item = static_cast<int64_t>(c10::elementSize(type));
    tensors.emplace_back(c10::toString(type), at::randint(256, {3, 5 * item}, at::kByte).view(type));
  }
  tensors.emplace_back("bool", at::tensor({1, 0, 1}, at::kInt).to(at::kBool));
  tensors.emplace_back("scalar", at::scalar_tensor(2.5, at::kFloat));
  tensors.emplace_back("empty", at::empty({0, 4}, at::kFloat));
  const auto path = folder_.path() / "all.safetensors";
  write_safetensors(path, tensors);

  const auto file = SafetensorsFile::open(path);
  EXPECT_EQ(file->tensors().size(), tensors.size());
  EXPECT_EQ(file->metadata().at("format"), "pt");
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor loaded = file->load(name);
    ASSERT_EQ(loaded.scalar_type(), tensor.scalar_type()) << name;
    ASSERT_EQ(loaded.sizes(), tensor.sizes()) << name;
    if (tensor.nbytes() == 0) continue;  // without elements there may be no address to compare at
    EXPECT_EQ(std::memcmp(loaded.data_ptr(), tensor.data_ptr(), tensor.nbytes()), 0) << name;
  }
}

TEST_F(Safetensors, TensorsAreViewsThatOutliveTheFileObject) {
  const auto path = folder_.path() / "x.safetensors";
  write_safetensors(path, {{"a", at::arange(1000, at::kFloat)}});
  auto file = SafetensorsFile::open(path);
  const at::Tensor first = file->load("a");
  const at::Tensor second = file->load("a");
  EXPECT_EQ(first.data_ptr(), second.data_ptr());
  file.reset();
  EXPECT_TRUE(first.equal(at::arange(1000, at::kFloat)));
}

TEST_F(Safetensors, CopiesATensorThatLiesUnalignedInItsFile) {
  const float value = 1.5F;
  std::string data(5, '\1');
  std::memcpy(data.data() + 1, &value, sizeof value);
  const auto path = write(with_length(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                                      R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})",
                                      data));
  EXPECT_EQ(SafetensorsFile::open(path)->load("b").item<float>(), 1.5F);
}

TEST_F(Safetensors, NamesTheDefectOfEveryUnsoundHeader) {
  const std::string ok = R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})";
  EXPECT_EQ(error_of(ok, "1234"), "");
  EXPECT_THAT(error_of(ok, "123"), HasSubstr("tensor 'a': its data ends at 4, but the file has only 3"));
  EXPECT_THAT(error_of(ok, "12345"), HasSubstr("1 bytes after the last tensor"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"F16","shape":[4],"data_offsets":[0,4]}})", "1234"),
              HasSubstr("F16 of shape [4] takes 8 bytes, but the file gives it 4"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"Q9","shape":[4],"data_offsets":[0,4]}})", "1234"),
              HasSubstr("dtype Q9 is not supported"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[-4],"data_offsets":[0,4]}})", "1234"), HasSubstr("entry -4"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}})", "1234"),
              HasSubstr("before it begins"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0]}})", "1234"), HasSubstr("pair of offsets"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", ""),
              HasSubstr("shape overflows"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", ""),
              HasSubstr("shape overflows"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","data_offsets":[0,0],"shape":)" + std::string(100000, '[') +
                           std::string(100000, ']') + "}}",
                       ""),
              HasSubstr("header: nested deeper than 64 levels"));
  EXPECT_THAT(error_of(R"({"a":{"shape":[4],"data_offsets":[0,4]}})", "1234"), HasSubstr("no \"dtype\""));
  EXPECT_THAT(error_of(R"({"a":7})", ""), HasSubstr("not an object"));
  EXPECT_THAT(error_of(R"([])", ""), HasSubstr("not a JSON object"));
  EXPECT_THAT(error_of(R"({"a":)", ""), HasSubstr("header: "));
  EXPECT_THAT(error_of(R"({"__metadata__":{"k":1}})", ""), HasSubstr("__metadata__ entry 'k'"));
}

TEST_F(Safetensors, RefusesOverlapsGapsAndRepeatedNames) {
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},)"
                       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                       "1234"),
              HasSubstr("tensor 'b' overlaps"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                       R"("b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                       "1234"),
              HasSubstr("1 bytes before tensor 'b'"));
  EXPECT_THAT(error_of(R"({"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
                       R"("a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                       "1234"),
              HasSubstr("duplicate key"));
}

TEST_F(Safetensors, BoundsTheHeaderBeforeReadingIt) {
  EXPECT_THAT(error_of_file(write("")), HasSubstr("too few"));
  EXPECT_THAT(error_of_file(write(std::string(8, '\xff'))), HasSubstr("not a safetensors file"));
  EXPECT_THAT(error_of_file(write(std::string("\x10\0\0\0\0\0\0\0{}", 10))), HasSubstr("truncated"));
  EXPECT_THAT(error_of_file(folder_.path() / "absent.safetensors"), HasSubstr("absent.safetensors"));
}

TEST_F(Safetensors, EveryTruncationAndEveryChangedHeaderByteIsAnErrorOrAReadableFile) {
  const auto path = folder_.path() / "tiny.safetensors";
  write_safetensors(path, {{"a", at::arange(6, at::kFloat).view({2, 3})}, {"b", at::arange(3, at::kByte)}});
  const std::string good = core::read_file(path);
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(error_of_file(write(good.substr(0, size))), "") << "truncated to " << size;
  }
  for (size_t at = 0; at < good.size() - 27; ++at) {
    for (const int flip : {0x01, 0x02, 0x10, 0x20, 0x80, 0xff}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      const auto damaged = write(bad);
      if (!error_of_file(damaged).empty()) continue;
      const auto file = SafetensorsFile::open(damaged);
      for (const auto& tensor : file->tensors()) EXPECT_LE(file->load(tensor.name).nbytes(), 24u);
    }
  }
}

TEST_F(Safetensors, RefusesBoolsThatAreNeither) {
  const auto path = write(with_length(R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", "\1\2"));
  EXPECT_THROW(SafetensorsFile::open(path)->load("a"), core::Error);
}

TEST_F(Safetensors, ShardsReadBackAsOneSourceWithTheSameFingerprint) {
  NamedTensors tensors;
  for (int i = 0; i < 7; ++i) tensors.emplace_back(fmt::format("layer.{}", i), at::randn({10, 10}));
  std::filesystem::create_directory(folder_.path() / "one");
  std::filesystem::create_directory(folder_.path() / "many");
  write_safetensors_shards(folder_.path() / "one", tensors, 1 << 20);
  write_safetensors_shards(folder_.path() / "many", tensors, 1000);
  EXPECT_TRUE(std::filesystem::exists(folder_.path() / "many/model-00004-of-00004.safetensors"));
  const auto one = open_safetensors(folder_.path() / "one");
  const auto many = open_safetensors(folder_.path() / "many");
  EXPECT_EQ(one->fingerprint(), many->fingerprint());
  for (const auto& [name, tensor] : tensors) EXPECT_TRUE(many->load(name).equal(tensor)) << name;
  EXPECT_EQ(many->find("layer.7"), nullptr);

  tensors[3].second = tensors[3].second + 1;
  write_safetensors_shards(folder_.path() / "one", tensors, 1 << 20);
  EXPECT_NE(open_safetensors(folder_.path() / "one")->fingerprint(), many->fingerprint());
}

// A hole of more bytes than are read whole.
TEST_F(Safetensors, FingerprintsOfLargeFilesReadTheMiddleOfEachTensor) {
  constexpr uint64_t kBytes = WeightSource::kReadWhole + 4;
  const auto path = write(with_length(fmt::format(R"({{"a":{{"dtype":"U8","shape":[{0}],"data_offsets":[0,{0}]}},)"
                                                  R"("b":{{"dtype":"U8","shape":[8192],"data_offsets":[{0},{1}]}}}})",
                                                  kBytes, kBytes + 8192),
                                      ""));
  const uint64_t header = std::filesystem::file_size(path);
  std::filesystem::resize_file(path, header + kBytes + 8192);
  const auto fingerprint = [&] { return SafetensorsFile::open(path)->fingerprint(); };
  const auto put = [&](uint64_t at, char value) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(header + at)).put(value);
  };
  const std::string before = fingerprint();
  EXPECT_EQ(fingerprint(), before);
  for (const uint64_t middle : {kBytes / 2, kBytes + 4096}) {
    put(middle, 1);
    EXPECT_NE(fingerprint(), before) << middle;
    put(middle, 0);
    EXPECT_EQ(fingerprint(), before) << middle;
  }
}

TEST_F(Safetensors, IndexErrorsNameTensorAndShard) {
  write_safetensors(folder_.path() / "s1.safetensors", {{"a", at::zeros({1})}});
  const auto error_of_index = [&](const std::string& json) {
    return error_of_file(write(json, "model.safetensors.index.json"));
  };
  EXPECT_EQ(error_of_index(R"({"weight_map":{"a":"s1.safetensors"}})"), "");
  EXPECT_THAT(error_of_index(R"({"weight_map":{"b":"s1.safetensors"}})"),
              HasSubstr("tensor 'b' is not in s1.safetensors"));
  EXPECT_THAT(error_of_index(R"({"weight_map":{"a":"../s1.safetensors"}})"), HasSubstr("not a file beside the index"));
  EXPECT_THAT(error_of_index(R"({"weight_map":{"a":"/etc/passwd"}})"), HasSubstr("not a file beside the index"));
  EXPECT_THAT(error_of_index(R"({"weight_map":{"a":".."}})"), HasSubstr("not a file beside the index"));
  EXPECT_THAT(error_of_index(R"({"weight_map":{"a":"s2.safetensors"}})"), HasSubstr("s2.safetensors"));
  EXPECT_THAT(error_of_index(R"({"weight_map":{"a":1}})"), HasSubstr("not a file name"));
  EXPECT_THAT(error_of_index(R"({})"), HasSubstr("weight_map"));

  NamedTensors forgotten;
  for (const char* name : {"a", "b", "c", "d", "e"}) forgotten.emplace_back(name, at::zeros({1}));
  write_safetensors(folder_.path() / "s1.safetensors", forgotten);
  write_safetensors(folder_.path() / "s2.safetensors", {{"b", at::zeros({1})}});
  EXPECT_THAT(error_of_index(R"({"weight_map":{"a":"s1.safetensors","b":"s2.safetensors","d":"s1.safetensors"}})"),
              AllOf(HasSubstr("'b' in s1.safetensors"), HasSubstr("'c' in s1.safetensors"),
                    HasSubstr("'e' in s1.safetensors"), Not(HasSubstr("'a'")), Not(HasSubstr("'d'"))));
  EXPECT_THAT(error_of_index(R"({"weight_map":{"a":"s1.safetensors"}})"), HasSubstr("and 1 more"));
}

TEST_F(Safetensors, AWriterLeavesNothingUnlessEveryDeclaredTensorCame) {
  const auto path = folder_.path() / "x.safetensors";
  {
    SafetensorsWriter writer(path, {{"a", at::kFloat, {2}}, {"b", at::kHalf, {2}}});
    writer.write(at::zeros({2}));
    EXPECT_THROW(writer.commit(), core::Error);
    EXPECT_THROW(writer.write(at::zeros({2})), core::Error);  // declared as half
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  EXPECT_THROW(SafetensorsWriter(path, {{"a", at::kHalf, {2}}, {"b", at::kFloat, {2}}}), core::Error);
  EXPECT_THROW(SafetensorsWriter(path, {{"a", at::kHalf, {2}}, {"a", at::kHalf, {2}}}), core::Error);
}

}  // namespace
}  // namespace distill::data
