#include "teacher/event_stream.h"

#include "core/error.h"

namespace distill::teacher {

void EventStream::push(std::string_view piece, const OnEvent& on_event) {
  while (!piece.empty()) {
    const size_t end = piece.find('\n');
    line_ += piece.substr(0, end);
    core::check(line_.size() + data_.size() <= kMaxEventBytes, "an event of the stream is larger than {} bytes",
                kMaxEventBytes);
    if (end == std::string_view::npos) return;
    piece.remove_prefix(end + 1);
    end_line(on_event);
  }
}

void EventStream::end_line(const OnEvent& on_event) {
  std::string_view line = line_;
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (line.starts_with("data:")) {
    line.remove_prefix(5);
    if (line.starts_with(' ')) line.remove_prefix(1);
    if (has_data_) data_ += '\n';
    data_ += line;
    has_data_ = true;
  } else if (line.empty() && has_data_) {
    const std::string data = std::move(data_);
    data_.clear();
    has_data_ = false;
    line_.clear();
    on_event(data);
  }
  line_.clear();
}

}  // namespace distill::teacher
