#include "kernels/amx_tiles.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/cpu_features.h"

namespace distill::kernels {
namespace {

// Linux lends the tile registers' state to a process that asks (Documentation/arch/x86/xstate.rst).
bool request_tile_state() {
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;               // XFEATURE_XTILEDATA
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool cpu_has_amx_bf16() {
  constexpr uint32_t kAmxBf16 = 1u << 22;
  constexpr uint32_t kAmxTile = 1u << 24;
  uint32_t a = 7;
  uint32_t b = 0;
  uint32_t c = 0;
  uint32_t d = 0;
  __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (d & kAmxBf16) != 0 && (d & kAmxTile) != 0;
}

}  // namespace

bool has_amx_bf16() {
  static const bool available = has_avx512_bf16() && cpu_has_amx_bf16() && request_tile_state();
  return available;
}

}  // namespace distill::kernels

#else

namespace distill::kernels {

bool has_amx_bf16() {
  return false;
}

}  // namespace distill::kernels

#endif
