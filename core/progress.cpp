#include "core/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "core/error.h"

namespace distill::core {
namespace {

using namespace std::chrono_literals;
constexpr auto kTerminalInterval = 100ms;
constexpr auto kPlainInterval = 10s;

size_t terminal_width() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string with_unit_prefix(double value, const char* separator) {
  constexpr const char* kPrefixes[] = {"", "k", "M", "G", "T", "P"};
  size_t i = 0;
  for (; value >= 999.5 && i + 1 < std::size(kPrefixes); ++i) value /= 1000;
  const int decimals = i == 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return fmt::format("{:.{}f}{}{}", value, decimals, separator, kPrefixes[i]);
}

}  // namespace

std::string format_duration(double seconds) {
  const auto whole = std::llround(seconds);
  if (whole >= 3600) return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
  if (whole >= 60) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}s", whole);
}

std::string format_count(double count) {
  return with_unit_prefix(count, "");
}

std::string format_bytes(double bytes) {
  return with_unit_prefix(bytes, " ") + "B";
}

Progress::Progress(std::string label, uint64_t total, std::string unit, uint64_t done)
    : label_(std::move(label)),
      total_(total),
      unit_(std::move(unit)),
      done_(done),
      done_before_(done),
      terminal_(::isatty(STDERR_FILENO) != 0),
      drawn_(start_) {}

Progress::~Progress() {
  finish();
}

void Progress::advance(uint64_t count) {
  const std::lock_guard lock(mutex_);
  done_ += count;
  const auto now = Clock::now();
  if (now - drawn_ < (terminal_ ? Clock::duration(kTerminalInterval) : Clock::duration(kPlainInterval))) return;
  drawn_ = now;
  draw(false);
}

void Progress::set_note(std::string note) {
  const std::lock_guard lock(mutex_);
  note_ = std::move(note);
}

void Progress::finish() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(finished_, true)) return;
  draw(true);
}

void Progress::draw(bool final) {
  const double elapsed = std::chrono::duration<double>(Clock::now() - start_).count();
  const double rate = elapsed > 0 ? static_cast<double>(done_ - done_before_) / elapsed : 0;
  std::string line = label_ + " ";
  if (total_ > 0) {
    const double fraction = std::min(1.0, static_cast<double>(done_) / static_cast<double>(total_));
    if (terminal_ && !final) {
      constexpr int kWidth = 24;
      const int filled = static_cast<int>(fraction * kWidth);
      line += fmt::format("[{:#>{}}{:.>{}}] ", "", filled, "", kWidth - filled);
    }
    line += fmt::format("{}/{} {} ({:.0f} %)", done_, total_, unit_, fraction * 100);
  } else {
    line += fmt::format("{} {}", done_, unit_);
  }
  line += fmt::format(", {}/s", rate < 9.95 ? fmt::format("{:.2g}", rate) : format_count(rate));
  if (final) {
    line += fmt::format(", took {}", format_duration(elapsed));
  } else if (total_ > done_ && rate > 0) {
    line += fmt::format(", {} left", format_duration(static_cast<double>(total_ - done_) / rate));
  }
  if (!note_.empty()) line += ", " + note_;
  if (terminal_) {
    line.resize(std::min(line.size(), terminal_width() - 1));
    std::fprintf(stderr, "\r\033[K%s%s", line.c_str(), final ? "\n" : "");
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

}  // namespace distill::core
