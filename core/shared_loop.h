// A loop whose iterations several threads share.
#pragma once

#include <cstddef>
#include <functional>

namespace distill::core {

// Runs body(i) once for each i in [0, count), on at most `threads` threads, the caller's among them; each takes the
// next index when it is done with one. Returns, or throws what a body threw, when all threads have ended.
void for_each_index(size_t count, size_t threads, const std::function<void(size_t)>& body);

}  // namespace distill::core
