#include "core/heap.h"

#include <climits>  // defines __GLIBC__ too

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace distill::core {

void keep_freed_memory() {
#ifdef __GLIBC__
  ::mallopt(M_MMAP_MAX, 0);
  ::mallopt(M_TRIM_THRESHOLD, INT_MAX);
#endif
}

void return_freed_memory() {
#ifdef __GLIBC__
  ::malloc_trim(0);
#endif
}

}  // namespace distill::core
