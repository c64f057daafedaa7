// Server-sent events, the way completion APIs stream their answers (WHATWG HTML Living Standard, "Server-sent events"):
// text that arrives in arbitrary pieces, cut into the data of its events.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace distill::teacher {

class EventStream {
 public:
  using OnEvent = std::function<void(std::string_view data)>;

  // Bytes of one event that are still believed.
  static constexpr size_t kMaxEventBytes = size_t{32} << 20;

  // Calls `on_event` with the data of each event that `piece` completes. Other fields and comments are left out. Throws
  // Error if an event is larger than kMaxEventBytes.
  void push(std::string_view piece, const OnEvent& on_event);

 private:
  void end_line(const OnEvent& on_event);

  std::string line_;
  std::string data_;
  bool has_data_ = false;
};

}  // namespace distill::teacher
