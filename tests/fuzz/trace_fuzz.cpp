// Fuzzes what a trace shard or a journal holds of a document: its record and the payloads of every codec, behind the
// checksums, which a fuzzer would not get past; and the tables that codecs share. The first byte of the input says
// which. Sets are decoded on every path, with the same outcome.
#include <array>
#include <cmath>
#include <memory>
#include <numeric>

#include "core/error.h"
#include "data/plain_codec.h"
#include "data/set_codec.h"
#include "data/set_decoder.h"
#include "data/set_position.h"
#include "data/set_tables.h"
#include "data/trace_record.h"
#include "data/weight_grid.h"
#include "tests/data/sample_traces.h"

namespace {

using namespace distill::data;

constexpr int64_t kVocab = 40;
constexpr std::array kModes{"threshold:0.05", "threshold:16", "sampled:25", "hybrid:4+6", "topk:12"};

std::vector<std::unique_ptr<const TargetCodec>> codecs() {
  std::vector<std::unique_ptr<const TargetCodec>> result;
  for (const char* mode : kModes) {
    const TraceProvenance provenance = sample_provenance(mode, kVocab);
    result.push_back(trained_codec(sample_traces(40, provenance), provenance));
  }
  result.push_back(std::make_unique<PlainCodec>(kVocab));
  result.push_back(std::make_unique<FullCodec>(kVocab));
  return result;
}

// What decode() promises of any bytes it does not refuse.
void check(const TraceDocument& document, const SparseTargets& targets) {
  if (targets.positions() != static_cast<size_t>(document.completion_length())) __builtin_trap();
  for (size_t i = 0; i < targets.positions(); ++i) {
    const TargetDistribution target = targets[i];
    std::array<bool, kVocab> seen{};
    double sum = static_cast<double>(target.uncovered);
    for (size_t j = 0; j < target.ids.size(); ++j) {
      if (target.ids[j] < 0 || target.ids[j] >= kVocab || std::exchange(seen[target.ids[j]], true)) __builtin_trap();
      if (!(target.weights[j] >= 0)) __builtin_trap();
      sum += static_cast<double>(target.weights[j]);
    }
    if (!(std::abs(sum - 1) < 1e-3)) __builtin_trap();
  }
}

bool decodes(TraceRecord& record, const TargetSpec& spec, const SetTables& tables, DecodePath path,
             SparseTargets& out) {
  try {
    decode_sets(record.document, record.payload, spec, tables, WeightGrid::of(weight_bits(spec)), out, path);
    return true;
  } catch (const distill::core::Error&) {
    return false;
  }
}

void compare_paths(TraceRecord record, const TargetSpec& spec, const SetTables& tables) {
  SparseTargets one_by_one, together;
  const bool valid = decodes(record, spec, tables, DecodePath::kScalar, one_by_one);
  if (decodes(record, spec, tables, DecodePath::kFastest, together) != valid) __builtin_trap();
  if (!valid) return;
  if (one_by_one.ids != together.ids || one_by_one.weights != together.weights ||
      one_by_one.offsets != together.offsets || one_by_one.uncovered != together.uncovered) {
    __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto kCodecs = codecs();
  if (size == 0) return 0;
  const std::span bytes = std::as_bytes(std::span(data + 1, size - 1));
  try {
    if (data[0] == 255) {
      // Tables are read when they are needed first.
      static const TraceProvenance provenance = sample_provenance("threshold:16", kVocab);
      static TraceDocument document = sample_trace("p", 0, provenance).document;
      const SetCodec codec({{"name", "sets"}, {"version", 1 + size % 2}, {"weight_bits", 6}}, bytes, provenance);
      SparseTargets targets;
      codec.decode(document, bytes, targets);
      check(document, targets);
      return 0;
    }
    TraceRecord record = decode_record(bytes, kVocab);
    const size_t codec = data[0] % kCodecs.size();
    if (codec < kModes.size()) {
      static const auto kTables = [] {
        std::vector<std::shared_ptr<const SetTables>> tables;
        for (size_t i = 0; i < kModes.size(); ++i)
          tables.push_back(SetTables::decode(kCodecs[i]->model(), kVocab, true));
        return tables;
      }();
      compare_paths(record, TargetSpec::parse(kModes[codec]), *kTables[codec]);
    }
    SparseTargets targets;
    kCodecs[codec]->decode(record.document, record.payload, targets);
    check(record.document, targets);
  } catch (const distill::core::Error&) {
  }
  return 0;
}
