// Writes every tensor of a GGUF file as fp32 into a safetensors file, for tests/parity/gguf_parity.py.
// Usage: dump_tensors FILE.gguf OUT.safetensors
#include <ATen/ATen.h>

#include <cstdio>
#include <exception>

#include "data/gguf.h"
#include "data/safetensors_writer.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: dump_tensors FILE.gguf OUT.safetensors\n");
    return 2;
  }
  try {
    const auto file = distill::data::GgufFile::open(argv[1]);
    std::vector<distill::data::SafetensorsWriter::Declaration> declarations;
    for (const auto& tensor : file->tensors()) declarations.push_back({tensor.name, at::kFloat, tensor.shape});
    distill::data::SafetensorsWriter writer(argv[2], declarations);
    for (const auto& tensor : file->tensors()) writer.write(file->load_fp32(tensor.name));
    writer.commit();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dump_tensors: %s\n", error.what());
    return 1;
  }
}
