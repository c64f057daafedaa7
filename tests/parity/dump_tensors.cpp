// Writes every tensor of a GGUF file as fp32 into a safetensors file, for tests/parity/gguf_parity.py: under the file's
// own names, or with --model as the Hugging Face model it is.
// Usage: dump_tensors [--model] FILE.gguf OUT.safetensors
#include <ATen/ATen.h>

#include <cstdio>
#include <exception>
#include <functional>
#include <string_view>

#include "data/gguf.h"
#include "data/model_files.h"
#include "data/safetensors_writer.h"

namespace {

using distill::data::SafetensorsWriter;
using distill::data::WeightSource;

void dump(const WeightSource& source, const char* path, const std::function<at::Tensor(const std::string&)>& load) {
  std::vector<SafetensorsWriter::Declaration> declarations;
  for (const auto& tensor : source.tensors()) declarations.push_back({tensor.name, at::kFloat, tensor.shape});
  SafetensorsWriter writer(path, declarations);
  for (const auto& tensor : source.tensors()) writer.write(load(tensor.name));
  writer.commit();
}

}  // namespace

int main(int argc, char** argv) {
  const bool model = argc == 4 && std::string_view(argv[1]) == "--model";
  if (argc != 3 && !model) {
    std::fprintf(stderr, "usage: dump_tensors [--model] FILE.gguf OUT.safetensors\n");
    return 2;
  }
  try {
    if (model) {
      const auto weights = distill::data::ModelFiles::open(argv[2]).weights();
      dump(*weights, argv[3], [&](const std::string& name) { return weights->load(name).to(at::kFloat); });
    } else {
      const auto file = distill::data::GgufFile::open(argv[1]);
      dump(*file, argv[2], [&](const std::string& name) { return file->load_fp32(name); });
    }
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dump_tensors: %s\n", error.what());
    return 1;
  }
}
