// Writes the tokenizer.json of a model, or distill's own chat templates as JSON, for the parity tests.
// Usage: dump_tokenizer MODEL OUT.json
//        dump_tokenizer --chat-templates OUT.json
#include <cstdio>
#include <exception>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/atomic_file.h"
#include "data/chat_family.h"
#include "data/model_files.h"
#include "data/tokenizer.h"

namespace {

using namespace distill;

std::string chat_templates() {
  nlohmann::json families = nlohmann::json::object();
  for (const auto& [family, jinja, bos, eos] : data::family_templates()) {
    families[std::string(family)] = {{"jinja", jinja}, {"bos", bos}, {"eos", eos}};
  }
  return families.dump();
}

std::string tokenizer_json(const std::filesystem::path& model) {
  const auto tokenizer =
      model.extension() == ".json" ? data::Tokenizer::from_json_file(model) : data::ModelFiles::open(model).tokenizer();
  return tokenizer->to_json();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: dump_tokenizer MODEL|--chat-templates OUT.json\n");
    return 2;
  }
  try {
    const std::string_view what = argv[1];
    core::write_file_atomically(argv[2], what == "--chat-templates" ? chat_templates() : tokenizer_json(what));
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dump_tokenizer: %s\n", error.what());
    return 1;
  }
}
