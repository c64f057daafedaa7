// Whatever the bytes: SafetensorsFile opens them or throws core::Error, and every tensor of what it opened can be read.
#include <ATen/ATen.h>

#include "core/error.h"
#include "data/safetensors.h"
#include "tests/fuzz/input_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const distill::InputFile input(data, size);
  try {
    const auto file = distill::data::SafetensorsFile::open(input.path());
    for (const auto& tensor : file->tensors()) {
      try {
        file->load(tensor.name).clone();  // touches every byte
      } catch (const distill::core::Error&) {
      }
    }
    file->fingerprint();
  } catch (const distill::core::Error&) {
  }
  return 0;
}
