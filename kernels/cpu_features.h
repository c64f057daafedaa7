// Instruction sets that several operators choose their kernels by. Internal to kernels/.
#pragma once

namespace distill::kernels {

// AVX-512 with BW, VL and BF16.
bool has_avx512_bf16();

}  // namespace distill::kernels
