// A set of traces by number: what a batcher cuts into batches, whether it is read from shards (trace_reader.h) or made
// of one that is (distill/retokenised_traces.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "data/trace.h"

namespace distill::data {

// Immutable and safe to use from several threads at once.
class TraceSource {
 public:
  virtual ~TraceSource() = default;

  virtual const TraceProvenance& provenance() const = 0;
  virtual size_t size() const = 0;

  // Of document `index` below size(), without reading it.
  struct Lengths {
    int32_t prompt = 0;
    int32_t completion = 0;
  };
  virtual Lengths lengths(size_t index) const = 0;
  virtual std::string prompt_id(size_t index) const = 0;
  virtual TraceKey key(size_t index) const = 0;

  // Without its hidden states.
  virtual Trace read(size_t index) const = 0;
  // Without its targets too.
  virtual TraceDocument read_document(size_t index) const = 0;
  // Several in the order given, on up to `threads` threads.
  std::vector<Trace> read(std::span<const size_t> indices, size_t threads) const;
  // The hidden states of a document as provenance() says they are stored, a position after the other, valid as long as
  // the source; empty if there are none.
  virtual std::span<const std::byte> hidden_states(size_t /*index*/) const { return {}; }

  // By how much a divergence measured from the stored distributions is too great on average, in nats per token: the
  // mean KL(stored || whole) that the captures measured (docs/targets.md, "Fidelity"); 0 where they did not.
  virtual double divergence_excess() const { return 0; }

  // Whether the targets are those of another tokenizer's tokens, carried over (token_alignment.h).
  virtual bool carried_over() const { return false; }
};

}  // namespace distill::data
