#include "data/gguf.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "core/error.h"
#include "tests/data/gguf_builder.h"
#include "tests/temporary_folder.h"

namespace distill::data {
namespace {

using gguf::TensorType;
using gguf::ValueType;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class Gguf : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& contents) {
    std::ofstream(path_, std::ios::binary) << contents;
    return path_;
  }
  std::shared_ptr<const GgufFile> open(const GgufBuilder& builder) { return GgufFile::open(write(builder.build())); }

  // The message of the error that opening such a file and reading everything in it ends in; empty if there is none.
  std::string error_of(const std::string& contents) {
    write(contents);
    try {
      const auto file = GgufFile::open(path_);
      for (const auto& tensor : file->tensors()) file->load(tensor.name);
      for (const auto& [key, value] : file->metadata()) {
        if (value.element_type == ValueType::kString && value.type == ValueType::kArray) file->texts(key);
      }
      return {};
    } catch (const core::Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("x.gguf")) << "an error that does not name the file";
      return error.what();
    }
  }
  std::string error_of(const GgufBuilder& builder) { return error_of(builder.build()); }

  TemporaryFolder folder_;
  std::filesystem::path path_ = folder_.path() / "x.gguf";
};

std::string floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

// One of everything.
GgufBuilder sound_file() {
  GgufBuilder builder;
  builder.text("general.architecture", "llama").u32("count", 7).f32("epsilon", 1e-5F).boolean("flag", true);
  builder.value("u8", ValueType::kUint8, raw<uint8_t>(200)).value("i8", ValueType::kInt8, raw<int8_t>(-3));
  builder.value("u16", ValueType::kUint16, raw<uint16_t>(60000)).value("i16", ValueType::kInt16, raw<int16_t>(-300));
  builder.value("i32", ValueType::kInt32, raw<int32_t>(-70000)).value("i64", ValueType::kInt64, raw<int64_t>(-1));
  builder.value("u64", ValueType::kUint64, raw<uint64_t>(1)).value("f64", ValueType::kFloat64, raw(0.1));
  builder.value("huge", ValueType::kUint64, raw<uint64_t>(UINT64_MAX));
  builder.texts("words", {"a", "", "häuser"});
  builder.value("ints", ValueType::kArray, raw_array(ValueType::kInt32, {raw<int32_t>(5), raw<int32_t>(-6)}));
  builder.value("reals", ValueType::kArray, raw_array(ValueType::kFloat32, {raw(0.5F), raw(-2.F)}));
  builder.value("nested", ValueType::kArray,
                raw_array(ValueType::kArray, {raw_array(ValueType::kUint8, {raw<uint8_t>(1)}),
                                              raw_array(ValueType::kString, {raw_string("deep")})}));
  builder.tensor("weight", {3, 2}, TensorType::kF32, floats({0, 1, 2, 3, 4, 5}));
  builder.tensor("ids", {2}, TensorType::kI32, raw<int32_t>(8) + raw<int32_t>(-9));
  builder.tensor("blocks", {32, 2}, TensorType::kQ8_0,
                 raw<uint16_t>(0x3C00) + std::string(32, '\2') + raw<uint16_t>(0xC000) + std::string(32, '\xff'));
  return builder;
}

TEST_F(Gguf, ReadsBackValuesOfEveryType) {
  const auto file = open(sound_file());
  EXPECT_EQ(file->version(), 3u);
  EXPECT_EQ(file->text("general.architecture"), "llama");
  EXPECT_EQ(file->integer("count"), 7);
  EXPECT_EQ(file->integer("u8"), 200);
  EXPECT_EQ(file->integer("i8"), -3);
  EXPECT_EQ(file->integer("u16"), 60000);
  EXPECT_EQ(file->integer("i16"), -300);
  EXPECT_EQ(file->integer("i32"), -70000);
  EXPECT_EQ(file->integer("i64"), -1);
  EXPECT_EQ(file->integer("u64"), 1);
  EXPECT_EQ(file->number("epsilon"), 1e-5F);
  EXPECT_EQ(file->number("f64"), 0.1);
  EXPECT_EQ(file->number("i8"), -3);
  EXPECT_TRUE(file->boolean("flag"));
  EXPECT_THAT(file->texts("words"), ElementsAre("a", "", "häuser"));
  EXPECT_THAT(file->integers("ints"), ElementsAre(5, -6));
  EXPECT_THAT(file->numbers("reals"), ElementsAre(0.5, -2.0));
  EXPECT_THAT(file->numbers("ints"), ElementsAre(5.0, -6.0));
  EXPECT_EQ(file->metadata("nested")->count, 2u);
  EXPECT_TRUE(file->has("nested"));
  EXPECT_FALSE(file->has("absent"));
}

TEST_F(Gguf, ReadsTensorsInTheOrderOfTorch) {
  const auto file = open(sound_file());
  const auto& tensors = file->tensors();
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "blocks");
  EXPECT_EQ(tensors[0].dtype, "Q8_0");
  EXPECT_EQ(tensors[0].bytes, 68u);
  EXPECT_THAT(file->find("weight")->shape, ElementsAre(2, 3));
  EXPECT_TRUE(file->load("weight").equal(at::arange(6, at::kFloat).view({2, 3})));
  EXPECT_TRUE(file->load("ids").equal(at::tensor({8, -9}, at::kInt)));
  const at::Tensor blocks = file->load("blocks");
  EXPECT_TRUE(blocks[0].equal(at::full({32}, 2.F)));
  EXPECT_TRUE(blocks[1].equal(at::full({32}, 2.F)));  // -2 times -1
}

TEST_F(Gguf, TensorsAreViewsThatOutliveTheFileObject) {
  auto file = open(sound_file());
  const at::Tensor first = file->load("weight");
  EXPECT_EQ(first.data_ptr(), file->load("weight").data_ptr());
  file.reset();
  EXPECT_EQ(first[1][2].item<float>(), 5.F);
}

TEST_F(Gguf, ReadsVersion2AndOtherAlignments) {
  GgufBuilder builder;
  builder.version = 2;
  builder.alignment = 1;
  builder.u32("general.alignment", 1).text("odd", "x");
  builder.tensor("byte", {1}, TensorType::kI8, "\7").tensor("float", {1}, TensorType::kF32, floats({1.5F}));
  const auto file = open(builder);
  EXPECT_EQ(file->load("float").item<float>(), 1.5F);
  EXPECT_EQ(file->load("byte").item<int64_t>(), 7);

  GgufBuilder wide;
  wide.alignment = 4096;
  wide.u32("general.alignment", 4096);
  wide.tensor("a", {2}, TensorType::kF32, floats({1, 2})).tensor("b", {}, TensorType::kF32, floats({3}));
  EXPECT_EQ(open(wide)->load("b").item<float>(), 3.F);
  EXPECT_EQ(open(wide)->load("b").dim(), 0);
}

TEST_F(Gguf, AccessOfAbsentOrOtherTypesNamesFileAndKey) {
  const auto file = open(sound_file());
  const auto error = [&](auto&& access) -> std::string {
    try {
      access();
      return {};
    } catch (const core::Error& failure) {
      return failure.what();
    }
  };
  EXPECT_THAT(error([&] { file->integer("absent"); }), AllOf(HasSubstr("x.gguf: key 'absent'"), HasSubstr("not have")));
  EXPECT_THAT(error([&] { file->text("count"); }), HasSubstr("key 'count': it is of type u32, not string"));
  EXPECT_THAT(error([&] { file->integer("flag"); }), HasSubstr("it holds bool, not integers"));
  EXPECT_THAT(error([&] { file->integer("epsilon"); }), HasSubstr("it holds f32, not integers"));
  EXPECT_THAT(error([&] { file->integer("huge"); }), HasSubstr("18446744073709551615 is too large"));
  EXPECT_THAT(error([&] { file->integer("ints"); }), HasSubstr("it is an array"));
  EXPECT_THAT(error([&] { file->integers("count"); }), HasSubstr("it is of type u32, not array"));
  EXPECT_THAT(error([&] { file->integers("words"); }), HasSubstr("it holds string, not integers"));
  EXPECT_THAT(error([&] { file->numbers("nested"); }), HasSubstr("it holds array, not integers"));
  EXPECT_THAT(error([&] { file->texts("ints"); }), HasSubstr("it holds i32, not strings"));
  EXPECT_THAT(error([&] { file->boolean("count"); }), HasSubstr("not bool"));
  EXPECT_THAT(error([&] { file->load("absent"); }), HasSubstr("x.gguf: there is no tensor 'absent'"));
  EXPECT_THAT(error([&] { file->load_fp32("ids"); }), HasSubstr("tensor 'ids': its type I32 is not supported"));
}

TEST_F(Gguf, RefusesTextThatIsNotUtf8) {
  GgufBuilder builder;
  builder.text("bad", "a\xff").texts("words", {"fine", "\xc3"});
  const auto file = open(builder);
  EXPECT_THROW(file->text("bad"), core::Error);
  EXPECT_THAT(error_of(builder), HasSubstr("key 'words': string 1: not valid UTF-8 at its byte 0"));
  EXPECT_THAT(error_of(GgufBuilder{}.u32("k\xff", 1)), HasSubstr("key of a metadata entry at byte 24 is not UTF-8"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor("\xfe", {1}, TensorType::kI8, "1")), HasSubstr("name of a tensor"));
}

TEST_F(Gguf, RefusesOtherFilesVersionsAndByteOrders) {
  EXPECT_THAT(error_of(""), HasSubstr("not a GGUF file"));
  EXPECT_THAT(error_of("GGU"), HasSubstr("not a GGUF file"));
  EXPECT_THAT(error_of("PK\3\4 something else"), HasSubstr("not a GGUF file"));
  GgufBuilder builder = sound_file();
  for (const uint32_t version : {0u, 1u, 4u, 70000u}) {
    builder.version = version;
    EXPECT_THAT(error_of(builder), HasSubstr("is not supported")) << version;
  }
  builder.version = 0x03000000;
  EXPECT_THAT(error_of(builder), HasSubstr("big-endian"));
  EXPECT_THROW(GgufFile::open(folder_.path() / "absent.gguf"), core::Error);
  EXPECT_THROW(GgufFile::open(folder_.path()), core::Error);
}

TEST_F(Gguf, BoundsEveryCountBeforeUsingIt) {
  for (const uint64_t absurd : {uint64_t{1} << 32, uint64_t{1} << 62, UINT64_MAX, UINT64_MAX / 24 + 2}) {
    GgufBuilder builder = sound_file();
    builder.tensor_count = absurd;
    EXPECT_THAT(error_of(builder), HasSubstr("tensors are said to follow"));
    builder = sound_file();
    builder.metadata_count = absurd;
    EXPECT_THAT(error_of(builder), HasSubstr("metadata entries are said to follow"));
    EXPECT_THAT(error_of(GgufBuilder{}.value("k", ValueType::kString, raw(absurd))), HasSubstr("bytes should follow"));
    for (const auto type : {ValueType::kUint8, ValueType::kFloat64, ValueType::kString, ValueType::kArray}) {
      EXPECT_THAT(error_of(GgufBuilder{}.value("k", ValueType::kArray, raw(type) + raw(absurd))),
                  HasSubstr("array elements are said to follow"));
    }
    EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {absurd, absurd}, 0, 0)), HasSubstr("tensor 't': its shape"));
  }
  GgufBuilder builder;
  builder.metadata = raw(UINT64_MAX) + "key and whatever follows it";
  builder.metadata_count = 1;
  EXPECT_THAT(error_of(builder), HasSubstr("bytes should follow"));
}

TEST_F(Gguf, RefusesUnknownTypesAndDeepArrays) {
  EXPECT_THAT(error_of(GgufBuilder{}.value("k", static_cast<ValueType>(13), raw<uint64_t>(0))),
              HasSubstr("key 'k': damaged: 13 at byte"));
  EXPECT_THAT(error_of(GgufBuilder{}.value("k", ValueType::kArray, raw<uint32_t>(99) + raw<uint64_t>(0))),
              HasSubstr("99 at byte"));
  EXPECT_THAT(error_of(GgufBuilder{}.value("k", ValueType::kBool, "\2")), HasSubstr("neither 0 nor 1"));
  EXPECT_THAT(error_of(GgufBuilder{}.value("k", ValueType::kArray, raw_array(ValueType::kBool, {"\1", "\3"}))),
              HasSubstr("neither 0 nor 1"));
  std::string nested = raw_array(ValueType::kUint8, {"x"});
  for (int depth = 1; depth < gguf::kMaxArrayDepth; ++depth) nested = raw_array(ValueType::kArray, {nested});
  EXPECT_EQ(error_of(GgufBuilder{}.value("k", ValueType::kArray, nested)), "");
  nested = raw_array(ValueType::kArray, {nested});
  EXPECT_THAT(error_of(GgufBuilder{}.value("k", ValueType::kArray, nested)), HasSubstr("nested deeper than 4"));
  std::string abyss;
  for (int depth = 0; depth < 100000; ++depth) abyss += raw(ValueType::kArray) + raw<uint64_t>(1);
  EXPECT_THAT(error_of(GgufBuilder{}.value("k", ValueType::kArray, abyss)), HasSubstr("nested deeper than 4"));
}

TEST_F(Gguf, RefusesRepeatedNames) {
  EXPECT_THAT(error_of(GgufBuilder{}.u32("k", 1).u32("k", 2)), HasSubstr("key 'k' occurs twice"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor("t", {1}, TensorType::kI8, "1").tensor("t", {1}, TensorType::kI8, "2")),
              HasSubstr("tensor 't' occurs twice"));
}

TEST_F(Gguf, RefusesBadAlignments) {
  for (const uint32_t bad : {0u, 3u, 33u, 0xFFFFFFFFu}) {
    EXPECT_THAT(error_of(GgufBuilder{}.u32("general.alignment", bad)), HasSubstr("is not a power of two"));
  }
  EXPECT_THAT(error_of(GgufBuilder{}.text("general.alignment", "32")), HasSubstr("of type string, not u32"));
  EXPECT_THAT(error_of(GgufBuilder{}.value("general.alignment", ValueType::kUint64, raw<uint64_t>(32))),
              HasSubstr("not u32"));
  // An alignment far beyond the file leaves no data.
  EXPECT_THAT(error_of(sound_file().u32("general.alignment", 1u << 31)), HasSubstr("pass the end of the file"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {1}, 24, 7)), HasSubstr("not a multiple of the alignment 32"));
}

TEST_F(Gguf, RefusesTensorsThatOverlapOrLeaveTheFile) {
  GgufBuilder builder;
  builder.data.resize(64);
  builder.tensor_entry("a", {16}, 0, 0).tensor_entry("b", {1}, 0, 32);
  EXPECT_THAT(error_of(builder), HasSubstr("tensors 'a' and 'b' overlap"));

  for (const uint64_t offset : {uint64_t{64}, uint64_t{1} << 40, UINT64_MAX - 31}) {
    GgufBuilder outside;
    outside.data.resize(64);
    outside.tensor_entry("a", {16}, 0, offset);
    EXPECT_THAT(error_of(outside), HasSubstr("tensor 'a': its 64 bytes at offset")) << offset;
  }
  GgufBuilder empty;
  empty.data.resize(32);
  empty.tensor_entry("a", {0, 5}, 0, 32).tensor_entry("b", {8}, 0, 0).tensor_entry("c", {0}, 0, 0);
  EXPECT_EQ(error_of(empty), "");
}

TEST_F(Gguf, RefusesShapesThatDoNotFitTheirType) {
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {33, 2}, 8, 0)), HasSubstr("not made of whole Q8_0 blocks"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {}, 8, 0)), HasSubstr("not made of whole Q8_0 blocks"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {32}, 12, 0)), HasSubstr("whole Q4_K blocks of 256"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {1, 1, 1, 1, 1}, 0, 0)), HasSubstr("5 dimensions (limit 4)"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {uint64_t{1} << 62, 4, 0}, 0, 0)), HasSubstr("overflows"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {32}, 4, 0)), HasSubstr("its type 4 is unknown"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor_entry("t", {32}, 4000000000u, 0)), HasSubstr("is unknown"));
  EXPECT_THAT(error_of(GgufBuilder{}.tensor("t", {256}, TensorType::kIQ2_XXS, std::string(66, '\0'))),
              HasSubstr("tensor 't': its type IQ2_XXS is not supported"));
}

TEST_F(Gguf, EveryTruncationIsAnError) {
  const std::string good = sound_file().build();
  ASSERT_EQ(error_of(good), "");
  for (size_t size = 0; size < good.size(); ++size) {
    EXPECT_NE(error_of(good.substr(0, size)), "") << "truncated to " << size;
  }
}

TEST_F(Gguf, EveryChangedHeaderByteIsAnErrorOrAReadableFile) {
  const std::string good = sound_file().build();
  const size_t header = sound_file().header().size();
  size_t errors = 0;
  for (size_t at = 0; at < header; ++at) {
    for (const int flip : {0x01, 0x80, 0xff}) {
      std::string bad = good;
      bad[at] = static_cast<char>(bad[at] ^ flip);
      errors += error_of(bad).empty() ? 0 : 1;
    }
  }
  EXPECT_GT(errors, header);  // of 3 * header; the rest changed only names and values
}

TEST_F(Gguf, InfiniteAndNanScalesFollowIeee) {
  const uint16_t infinity = 0x7C00;
  GgufBuilder builder;
  std::string nibbles(16, '\x88');  // 8: zero after the offset of Q4_0
  nibbles[0] = '\x9f';              // 15 and 9
  builder.tensor("inf", {32}, TensorType::kQ4_0, raw(infinity) + nibbles);
  builder.tensor("nan", {32}, TensorType::kQ4_0, raw<uint16_t>(0x7E01) + nibbles);
  const auto file = open(builder);
  const at::Tensor inf = file->load("inf");
  EXPECT_EQ(inf[0].item<float>(), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(inf[1].item<float>()));  // infinity times zero
  EXPECT_EQ(inf[16].item<float>(), std::numeric_limits<float>::infinity());
  EXPECT_TRUE(file->load("nan").isnan().all().item<bool>());
}

TEST_F(Gguf, TheFingerprintIsThatOfTheTensorsNotOfTheirPlaces) {
  GgufBuilder one;
  one.tensor("a", {1}, TensorType::kF32, floats({1})).tensor("b", {1}, TensorType::kF32, floats({2}));
  GgufBuilder other;
  other.text("general.name", "x").tensor("b", {1}, TensorType::kF32, floats({2}));
  other.tensor("a", {1}, TensorType::kF32, floats({1}));
  const std::string fingerprint = open(one)->fingerprint();
  EXPECT_EQ(open(other)->fingerprint(), fingerprint);
  one.tensor("c", {1}, TensorType::kF32, floats({3}));
  EXPECT_NE(open(one)->fingerprint(), fingerprint);
}

}  // namespace
}  // namespace distill::data
