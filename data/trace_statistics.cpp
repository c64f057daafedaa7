#include "data/trace_statistics.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <optional>
#include <string>

#include "core/error.h"
#include "data/target_codec.h"
#include "data/trace_shard.h"

namespace distill::data {

nlohmann::json measure_traces(const TraceReader& reader) {
  const auto completion = static_cast<double>(std::max<uint64_t>(1, reader.completion_tokens()));
  double total = 0, hidden = 0, ids = 0, uncovered = 0;
  TargetCodec::Sizes sizes;
  std::array<uint64_t, 2> finished{};
  std::array<uint64_t, 3> verdicts{};
  const std::optional<Fidelity> fidelity = reader.fidelity();
  std::map<uint64_t, uint64_t> lengths, id_counts;
  for (const auto& shard : reader.shards()) {
    total += static_cast<double>(shard->file_bytes());
    sizes.tokens += static_cast<double>(shard->bytes(trace_format::kTokens));
    hidden += static_cast<double>(shard->bytes(trace_format::kHidden));
    sizes.ids += static_cast<double>(shard->bytes(trace_format::kModel));
    for (size_t i = 0; i < shard->size(); ++i) {
      const Trace trace = shard->trace(i);
      sizes += shard->codec().sizes(trace, shard->payload(i));
      ids += static_cast<double>(trace.targets.ids.size());
      ++lengths[std::bit_floor(static_cast<uint64_t>(trace.document.completion_length()))];
      for (size_t j = 0; j < trace.targets.positions(); ++j) ++id_counts[trace.targets[j].ids.size()];
      for (const float mass : trace.targets.uncovered) uncovered += static_cast<double>(mass);
      ++finished[static_cast<size_t>(trace.document.finish_reason)];
      ++verdicts[static_cast<size_t>(trace.document.verdict)];
    }
  }
  return {{"documents", reader.size()},
          {"shards", reader.shards().size()},
          {"tokens", reader.completion_tokens()},
          {"prompt_tokens", reader.prompt_tokens()},
          {"targets", reader.provenance().targets.to_string()},
          {"codec", reader.shards().front()->codec().description()},
          {"ids_per_token", ids / completion},
          {"uncovered", uncovered / completion},
          {"finish_reasons", {{"stop", finished[0]}, {"length", finished[1]}}},
          {"verdicts", {{"unchecked", verdicts[0]}, {"correct", verdicts[1]}, {"incorrect", verdicts[2]}}},
          {"lengths", nlohmann::json(std::vector(lengths.begin(), lengths.end()))},
          {"id_counts", nlohmann::json(std::vector(id_counts.begin(), id_counts.end()))},
          {"fidelity", fidelity ? fidelity->to_json() : nlohmann::json()},
          {"bytes_per_token",
           {{"total", total / completion},
            {"ids", sizes.ids / completion},
            {"weights", sizes.weights / completion},
            {"tokens", sizes.tokens / completion},
            {"hidden", hidden / completion},
            {"overhead", (total - sizes.tokens - hidden - sizes.ids - sizes.weights) / completion}}}};
}

namespace {

// Keys ascend within a shard, so one pass over all shards side by side meets equal keys next to each other.
void check_distinct_keys(const TraceReader& reader) {
  struct Cursor {
    TraceKey key;
    const TraceShard* shard;
    size_t index;
  };
  const auto later = [](const Cursor& a, const Cursor& b) { return b.key < a.key; };
  std::vector<Cursor> heap;
  for (const auto& shard : reader.shards()) heap.push_back({shard->key(0), shard.get(), 0});
  std::ranges::make_heap(heap, later);
  Cursor previous{{}, nullptr, 0};
  while (!heap.empty()) {
    std::ranges::pop_heap(heap, later);
    Cursor& current = heap.back();
    if (previous.shard != nullptr && previous.key == current.key) {
      core::fail("prompt '{}' sample {} is in both {} and {}", current.key.prompt_id, current.key.sample,
                 previous.shard->path().string(), current.shard->path().string());
    }
    previous = current;
    if (++current.index < current.shard->size()) {
      current.key = current.shard->key(current.index);
      std::ranges::push_heap(heap, later);
    } else {
      heap.pop_back();
    }
  }
}

// Decodes them all.
void check_hidden_states(const TraceShard& shard, size_t index) {
  const auto& spec = shard.provenance().hidden_states;
  if (!spec) return;
  auto states = shard.hidden_states(index);
  std::vector<float> values(static_cast<size_t>(spec->width));
  core::with_context(fmt::format("{}, document {}", shard.path().string(), index), [&] {
    for (; !states.empty(); states = states.subspan(spec->position_bytes())) {
      for (size_t i = 0; i < spec->layers.size(); ++i) spec->decode(states.first(spec->position_bytes()), i, values);
    }
  });
}

}  // namespace

void verify_traces(const TraceReader& reader) {
  for (const auto& shard : reader.shards()) {
    shard->verify_hdf5();
    shard->fidelity();
    for (size_t i = 0; i < shard->size(); ++i) {
      shard->trace(i);
      check_hidden_states(*shard, i);
    }
  }
  check_distinct_keys(reader);
}

}  // namespace distill::data
