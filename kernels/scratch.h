// Working memory of one thread of one operator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace distill::kernels {

// `count` uninitialised values in whole cache lines, so that no aligned vector crosses one.
template <typename T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : lines_(std::make_unique_for_overwrite<Line[]>(static_cast<size_t>(count) * sizeof(T) / sizeof(Line) + 1)) {}
  T* data() { return reinterpret_cast<T*>(lines_.get()); }

 private:
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::unique_ptr<Line[]> lines_;
};

}  // namespace distill::kernels
