// The clocks and memory counters of benchmarks, for the process that asks.
#pragma once

#include <chrono>
#include <cstdint>
#include <ctime>
#include <fstream>
#include <string>

namespace distill::bench {

inline double wall_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Processor time of all threads, which other programs on the machine hardly disturb.
inline double processor_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// A line of /proc/self/status that counts kB, such as "VmRSS:", in bytes; 0 if there is none.
inline int64_t status_bytes(const std::string& key) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(key)) return std::stoll(line.substr(key.size())) * 1024;
  }
  return 0;
}

inline int64_t resident_bytes() {
  return status_bytes("VmRSS:");
}

// The most that were resident since the start or the last reset (proc(5), clear_refs).
inline int64_t peak_resident_bytes() {
  return status_bytes("VmHWM:");
}

inline void reset_peak_resident_bytes() {
  std::ofstream("/proc/self/clear_refs") << "5";
}

}  // namespace distill::bench
