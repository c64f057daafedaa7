#include "teacher/event_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"

namespace distill::teacher {
namespace {

using testing::ElementsAre;

std::vector<std::string> events(std::string_view text, size_t piece) {
  EventStream stream;
  std::vector<std::string> result;
  for (size_t at = 0; at < text.size(); at += piece) {
    stream.push(text.substr(at, piece), [&](std::string_view data) { result.emplace_back(data); });
  }
  return result;
}

TEST(EventStream, GivesTheSameEventsHoweverTheTextIsCut) {
  const std::string text =
      ": welcome\n\ndata: {\"a\": 1}\n\nid: 7\r\ndata:two\r\ndata: lines\r\n\r\ndata: [DONE]\n\ndata: cut off";
  for (const size_t piece : {1u, 2u, 3u, 7u, 1000u}) {
    EXPECT_THAT(events(text, piece), ElementsAre("{\"a\": 1}", "two\nlines", "[DONE]"));
  }
}

TEST(EventStream, LeavesOutWhatIsNoEvent) {
  EXPECT_THAT(events("<html>It works!</html>\n\nevent: ping\n\n", 5), ElementsAre());
}

TEST(EventStream, StopsBelievingInAnEventThatNeverEnds) {
  EventStream stream;
  const std::string piece(size_t{1} << 20, 'x');
  const auto push = [&] { stream.push(piece, [](std::string_view) {}); };
  for (size_t i = 0; i < EventStream::kMaxEventBytes >> 20; ++i) push();
  EXPECT_THROW(push(), core::Error);
}

}  // namespace
}  // namespace distill::teacher
