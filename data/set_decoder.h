// Reads back the targets that SetCodec coded. Layout in docs/trace-format.md, "sets".
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "data/rans.h"
#include "data/set_tables.h"
#include "data/target_distribution.h"
#include "data/target_spec.h"
#include "data/trace.h"
#include "data/weight_grid.h"

namespace distill::data {

inline constexpr unsigned kLevelSymbolBits = 6;  // further bits of a level are raw

// A group of positions is coded in a lane each.
inline unsigned lanes_of(size_t positions) {
  return static_cast<unsigned>(std::min<size_t>(positions, rans::kLanes));
}

// The lanes of a group one after the other, or together with AVX2 where the processor has it. The results are the same.
enum class DecodePath { kScalar, kFastest };

// What SetCodec's decode() and decode_tokens() do. `payload` is untrusted: throws Error if it is not exactly what
// encoding makes of some document and its targets.
void decode_set_tokens(TraceDocument& document, std::span<const std::byte> payload, const SetTables& tables);
void decode_sets(TraceDocument& document, std::span<const std::byte> payload, const TargetSpec& spec,
                 const SetTables& tables, const WeightGrid& grid, SparseTargets& out, DecodePath path);

}  // namespace distill::data
