// Progress of long work on standard error, with rate and time left: one line that redraws itself on a terminal, a plain
// line every few seconds otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace distill::core {

// Thread-safe.
class Progress {
 public:
  // `total` 0 means unknown: no percentage and no ETA. `unit` is what is counted: "documents", "steps". `done` is what
  // an earlier run had finished; it does not count for the rate.
  Progress(std::string label, uint64_t total, std::string unit, uint64_t done = 0);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void advance(uint64_t count = 1);
  // Shown behind the rate, such as "loss 2.31".
  void set_note(std::string note);
  // Draws the final state and ends the line. The destructor does it too.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  void draw(bool final);

  std::mutex mutex_;
  std::string label_;
  uint64_t total_;
  std::string unit_;
  uint64_t done_;
  uint64_t done_before_;
  std::string note_;
  bool terminal_;
  bool finished_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point drawn_;
};

// "1h02m", "3m10s", "12s".
std::string format_duration(double seconds);
// "812", "12.3k", "4.56M", "7.89G".
std::string format_count(double count);
// "812 B", "12.3 kB", "4.56 MB", "7.89 GB" (powers of 1000).
std::string format_bytes(double bytes);

}  // namespace distill::core
