#include "distill/metrics_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/digest.h"
#include "core/text_file.h"
#include "tests/temporary_folder.h"

namespace distill {
namespace {

// A reader of event files written from the formats' descriptions, not from the writer.
class Cursor {
 public:
  explicit Cursor(std::string_view bytes) : bytes_(bytes) {}
  bool done() const { return bytes_.empty(); }
  std::string_view take(size_t count) {
    EXPECT_LE(count, bytes_.size());
    const auto part = bytes_.substr(0, count);
    bytes_.remove_prefix(part.size());
    return part;
  }
  template <typename T>
  T fixed() {
    T value{};
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
  }

 private:
  std::string_view bytes_;
};

// Fields of a protobuf message by number: length-delimited ones as they are, others as their little-endian bytes.
std::multimap<int, std::string> fields_of(std::string_view message) {
  std::multimap<int, std::string> fields;
  for (Cursor cursor(message); !cursor.done();) {
    const uint64_t tag = cursor.varint();
    std::string value;
    switch (tag & 7) {
      case 0: {
        const uint64_t number = cursor.varint();
        value.assign(reinterpret_cast<const char*>(&number), sizeof number);
        break;
      }
      case 1:
        value = cursor.take(8);
        break;
      case 2:
        value = cursor.take(cursor.varint());
        break;
      case 5:
        value = cursor.take(4);
        break;
      default:
        ADD_FAILURE() << "wire type " << (tag & 7);
        return fields;
    }
    fields.emplace(static_cast<int>(tag >> 3), value);
  }
  return fields;
}

template <typename T>
T as(const std::string& bytes) {
  T value{};
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

uint32_t unmask(uint32_t masked) {
  const uint32_t rotated = masked - 0xa282ead8u;
  return rotated >> 17 | rotated << 15;
}

struct ReadEvent {
  int64_t step = 0;
  std::string file_version;
  bool session_start = false;
  std::map<std::string, float> scalars;
};

std::vector<ReadEvent> read_events(const std::filesystem::path& path) {
  const std::string bytes = core::read_file(path);
  std::vector<ReadEvent> events;
  for (Cursor cursor(bytes); !cursor.done();) {
    const auto length_bytes = cursor.take(8);
    EXPECT_EQ(unmask(cursor.fixed<uint32_t>()), core::crc32c(std::as_bytes(std::span(length_bytes))));
    const auto data = cursor.take(as<uint64_t>(std::string(length_bytes)));
    EXPECT_EQ(unmask(cursor.fixed<uint32_t>()), core::crc32c(std::as_bytes(std::span(data))));
    const auto fields = fields_of(data);
    ReadEvent event;
    EXPECT_GT(as<double>(fields.find(1)->second), 1.7e9);
    event.step = as<int64_t>(fields.find(2)->second);
    if (const auto it = fields.find(3); it != fields.end()) event.file_version = it->second;
    if (const auto it = fields.find(7); it != fields.end()) {
      event.session_start = as<uint64_t>(fields_of(it->second).find(1)->second) == 1;
    }
    if (const auto it = fields.find(5); it != fields.end()) {
      for (const auto& [number, value] : fields_of(it->second)) {
        const auto entry = fields_of(value);
        event.scalars[entry.find(1)->second] = as<float>(entry.find(2)->second);
      }
    }
    events.push_back(event);
  }
  return events;
}

std::filesystem::path only_entry(const std::filesystem::path& folder) {
  return std::filesystem::directory_iterator(folder)->path();
}

TEST(MetricsLog, WritesTheSameFiguresForScriptsAndForTensorboard) {
  const TemporaryFolder folder;
  MetricsLog log(folder.path(), 0);
  log.write(1, "train", {{"loss", 2.5}, {"learning_rate", 1e-3}});
  log.write(300, "validation", {{"loss", 2.25}});
  EXPECT_EQ(core::read_file(folder.path() / "metrics.jsonl"),
            "{\"step\":1,\"kind\":\"train\",\"loss\":2.5,\"learning_rate\":0.001}\n"
            "{\"step\":300,\"kind\":\"validation\",\"loss\":2.25}\n");

  const auto path = only_entry(folder.path() / "tensorboard");
  EXPECT_THAT(path.filename().string(), testing::StartsWith("events.out.tfevents."));
  const auto events = read_events(path);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].file_version, "brain.Event:2");
  EXPECT_TRUE(events[1].session_start);
  EXPECT_EQ(events[1].step, 1);
  EXPECT_EQ(events[2].step, 1);
  EXPECT_THAT(events[2].scalars,
              testing::ElementsAre(testing::Pair("train/learning_rate", 1e-3f), testing::Pair("train/loss", 2.5f)));
  EXPECT_EQ(events[3].step, 300);
  EXPECT_THAT(events[3].scalars, testing::ElementsAre(testing::Pair("validation/loss", 2.25f)));
}

TEST(MetricsLog, ForgetsTheStepsThatAResumedRunRepeats) {
  const TemporaryFolder folder;
  {
    MetricsLog log(folder.path(), 0);
    for (int step = 1; step <= 5; ++step) log.write(step, "train", {{"loss", step}});
  }
  std::ofstream(folder.path() / "metrics.jsonl", std::ios::app) << "{\"step\":6,\"kind\":\"tr";
  MetricsLog log(folder.path(), 3);
  log.write(4, "train", {{"loss", 0.5}});
  std::vector<int> steps;
  core::for_each_json_line(folder.path() / "metrics.jsonl",
                           [&](size_t, nlohmann::json&& line) { steps.push_back(line["step"]); });
  EXPECT_THAT(steps, testing::ElementsAre(1, 2, 3, 4));
}

TEST(MetricsLog, WritesNanAsNull) {
  const TemporaryFolder folder;
  MetricsLog log(folder.path(), 0);
  log.write(1, "train", {{"loss", std::nan("")}});
  EXPECT_EQ(core::read_file(folder.path() / "metrics.jsonl"), "{\"step\":1,\"kind\":\"train\",\"loss\":null}\n");
}

}  // namespace
}  // namespace distill
