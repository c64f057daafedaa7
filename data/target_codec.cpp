#include "data/target_codec.h"

#include "core/config.h"
#include "core/error.h"
#include "data/plain_codec.h"
#include "data/set_codec.h"

namespace distill::data {

std::unique_ptr<const TargetCodec> TargetCodec::open(const nlohmann::json& description,
                                                     std::span<const std::byte> model,
                                                     const TraceProvenance& provenance) {
  core::ConfigReader reader(description, "codec");
  const auto name = reader.require<std::string>("name");
  const auto version = reader.require<int64_t>("version");
  if ((name == PlainCodec::kName || name == FullCodec::kName) && version == 1) {
    reader.finish();
    core::check(model.empty(), "codec {} has no model, but {} bytes are stored", name, model.size());
    if (name == PlainCodec::kName) return std::make_unique<PlainCodec>(provenance.vocab_size);
    return std::make_unique<FullCodec>(provenance.vocab_size);
  }
  if (name == SetCodec::kName && version >= 1 && version <= SetCodec::kVersion)
    return std::make_unique<SetCodec>(description, model, provenance);
  core::fail("the targets are stored with codec '{}' version {}, which this version of distill does not know", name,
             version);
}

std::unique_ptr<const TargetCodec> TargetCodec::lossless(const TraceProvenance& provenance) {
  if (provenance.targets.mode == TargetMode::kFull) return std::make_unique<FullCodec>(provenance.vocab_size);
  return std::make_unique<PlainCodec>(provenance.vocab_size);
}

}  // namespace distill::data
