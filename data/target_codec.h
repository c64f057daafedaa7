// How the target distributions of a document become bytes. Codecs are named and versioned; a shard stores the
// description of its codec and what the codec shares between documents. Layouts in docs/trace-format.md, "Payloads".
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "data/trace.h"

namespace distill::data {

// Immutable; safe to use from several threads at once.
class TargetCodec {
 public:
  virtual ~TargetCodec() = default;

  // {"name", "version", parameters ...}: what open() needs besides the model.
  virtual nlohmann::json description() const = 0;
  // Bytes that all documents of a shard share; empty if none.
  virtual std::vector<std::byte> model() const { return {}; }

  // Whether a document's payload holds its tokens too. A document is then decoded into one that has as many tokens, of
  // whatever value, and the right prompt length.
  virtual bool holds_tokens() const { return false; }

  // Appends the payload of the targets of `document`, one per completion token. Throws Error naming the position of a
  // target that the codec cannot hold.
  virtual void encode(const TraceDocument& document, const SparseTargets& targets,
                      std::vector<std::byte>& out) const = 0;

  // Replaces `out` and, if the payload holds them, the document's tokens. The payload is untrusted: throws Error if it
  // is not exactly the targets of this document, with ids distinct and inside the vocabulary and weights that are
  // finite and sum to 1 with what they leave uncovered.
  virtual void decode(TraceDocument& document, std::span<const std::byte> payload, SparseTargets& out) const = 0;
  // The tokens alone, if the payload holds them; they are inside the vocabulary.
  virtual void decode_tokens(TraceDocument&, std::span<const std::byte>) const {}

  // What of a document's payload, in bytes, is spent on which ids a target has, on how much they weigh, and on the
  // document's tokens; the rest is overhead.
  struct Sizes {
    double ids = 0;
    double weights = 0;
    double tokens = 0;
    Sizes& operator+=(const Sizes& other) {
      ids += other.ids;
      weights += other.weights;
      tokens += other.tokens;
      return *this;
    }
  };
  virtual Sizes sizes(const Trace& trace, std::span<const std::byte> payload) const = 0;

  // The codec of a shard. Throws Error for an unknown name or version, bad parameters or a damaged model.
  static std::unique_ptr<const TargetCodec> open(const nlohmann::json& description, std::span<const std::byte> model,
                                                 const TraceProvenance& provenance);

  // The codec that keeps everything as it was encoded and shares nothing, for journals.
  static std::unique_ptr<const TargetCodec> lossless(const TraceProvenance& provenance);
};

}  // namespace distill::data
