// Collects the documents of one shard and writes it: an HDF5 file that appears under its name complete and synced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "data/target_codec.h"
#include "data/trace.h"

namespace distill::data {

// Holds the shard in memory. The same documents give the same bytes, whoever writes them and when.
class TraceShardBuilder {
 public:
  // `codec` makes the payloads that add() will be given.
  TraceShardBuilder(const TraceProvenance& provenance, const TargetCodec& codec);

  // Keys ascend from call to call. `hidden_states`: encoded, if the provenance has any. Throws Error if the keys don't
  // ascend or the document cannot be stored.
  void add(const TraceDocument& document, std::span<const std::byte> payload,
           std::span<const std::byte> hidden_states = {});

  // How well the targets stand for the whole distributions, if that is known.
  void set_fidelity(const Fidelity& fidelity) { fidelity_ = fidelity.to_json().dump(); }

  size_t documents() const { return sample_.size(); }

  // Throws Error naming the file (full disk, no permission, ...); then `path` is as it was.
  void write(const std::filesystem::path& path) const;

 private:
  std::vector<std::byte> image(const std::string& name) const;

  int64_t vocab_size_;
  uint32_t version_;
  TraceKey last_key_;
  std::string provenance_, codec_, prompt_ids_, fidelity_;
  std::vector<std::byte> model_;
  bool payload_holds_tokens_;
  std::vector<std::byte> tokens_, payload_, hidden_;
  std::vector<uint64_t> prompt_id_offsets_{0}, token_offsets_{0}, payload_offsets_{0}, hidden_offsets_{0}, seed_;
  std::vector<uint32_t> sample_, prompt_length_, crc_, hidden_crc_;
  std::vector<uint8_t> finish_reason_, verdict_;
  std::vector<double> log_probability_;
};

}  // namespace distill::data
