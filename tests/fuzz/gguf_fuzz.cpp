// Whatever the bytes: GgufFile opens them or throws core::Error, and everything in what it opened can be read.
#include <ATen/ATen.h>

#include "core/error.h"
#include "data/gguf.h"
#include "data/gguf_config.h"
#include "data/gguf_weights.h"
#include "tests/fuzz/input_file.h"

namespace distill::data {
namespace {

void read_value(const GgufFile& file, const std::string& key) {
  try {
    file.texts(key);
  } catch (const core::Error&) {
  }
  try {
    file.numbers(key);
  } catch (const core::Error&) {
  }
  try {
    file.text(key);
  } catch (const core::Error&) {
  }
  try {
    file.number(key);
  } catch (const core::Error&) {
  }
}

void read_tensor(const WeightSource& source, const std::string& name) {
  try {
    const at::Tensor tensor = source.load(name);
    // Touches every byte.
    if (tensor.numel() > 0) tensor.to(at::kDouble).sum();
    source.load_blocks(name);
  } catch (const core::Error&) {
  }
}

void read_model(const std::shared_ptr<const GgufFile>& file) {
  try {
    const auto weights = open_gguf_weights(file, gguf_config(*file));
    for (const auto& tensor : weights->tensors()) read_tensor(*weights, tensor.name);
  } catch (const core::Error&) {
  }
}

}  // namespace
}  // namespace distill::data

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const distill::InputFile input(data, size);
  try {
    const auto file = distill::data::GgufFile::open(input.path());
    for (const auto& [key, value] : file->metadata()) distill::data::read_value(*file, key);
    for (const auto& tensor : file->tensors()) distill::data::read_tensor(*file, tensor.name);
    distill::data::read_model(file);
  } catch (const distill::core::Error&) {
  }
  return 0;
}
