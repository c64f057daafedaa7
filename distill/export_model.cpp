#include "distill/export_model.h"

#include <ATen/ATen.h>

#include "core/atomic_file.h"
#include "core/error.h"
#include "core/progress.h"
#include "core/text_file.h"
#include "data/model_files.h"
#include "data/safetensors_writer.h"
#include "distill/load_model.h"
#include "distill/model_package.h"

namespace distill {
namespace {

namespace fs = std::filesystem;

std::string_view dtype_name(at::ScalarType type) {
  return type == at::kFloat ? "float32" : type == at::kBFloat16 ? "bfloat16" : "float16";
}

void check_destination(const ExportOptions& options) {
  if (!fs::exists(options.out)) return;
  const std::string out = options.out.string();
  if (fs::is_directory(options.out) && fs::is_empty(options.out)) return;
  if (!options.overwrite) core::fail_usage("{} is there already; --overwrite replaces it", out);
  if (!fs::exists(options.out / "config.json")) {
    core::fail_usage("{} is there already and holds no model, so it is not replaced", out);
  }
  if (fs::equivalent(options.out, options.model)) core::fail_usage("{} would replace the model it is made from", out);
}

data::NamedTensors load_weights(const data::WeightSource& source, at::ScalarType dtype) {
  data::NamedTensors tensors;
  for (const auto& info : source.tensors()) {
    const at::Tensor stored = source.load(info.name);
    const auto type = stored.scalar_type();
    core::check(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble,
                "{}: tensor '{}' is stored as {}; what can be exported is F32, BF16, F16 or F64", source.location(),
                info.name, info.dtype);
    const at::Tensor tensor = stored.to(dtype);
    if (!tensor.isfinite().all().item<bool>()) {
      core::check(stored.isfinite().all().item<bool>(),
                  "{}: tensor '{}' has entries that are not finite numbers; the file is damaged", source.location(),
                  info.name);
      core::fail("{}: tensor '{}' has values that {} cannot hold", source.location(), info.name, dtype_name(dtype));
    }
    tensors.emplace_back(info.name, tensor);
  }
  return tensors;
}

// What the run's own record says about how the model came to be; empty if it was not trained here.
std::string training_story(const fs::path& model) {
  const fs::path path = model / "trainer.json";
  if (!fs::exists(path)) return {};
  const nlohmann::json state = core::read_json_file(path);
  return core::with_context(path.string(), [&] {
    const auto& recipe = state.at("recipe");
    const auto& provenance = state.at("provenance");
    return fmt::format(
        "## How it was made\n\n"
        "Trained for {} steps on {} tokens, {} of which had a target, of traces by `{}` "
        "(weights SHA-256 `{:.16}`), whose distributions were stored as `{}`.\n\n"
        "```json\n{}\n```\n\n",
        state.at("step").get<int64_t>(), core::format_count(state.at("tokens").get<double>()),
        core::format_count(state.at("targets").get<double>()),
        fs::path(provenance.at("teacher").get<std::string>()).filename().string(),
        provenance.at("fingerprints").at("weights").get<std::string>(),
        provenance.at("targets").at("mode").get<std::string>(), recipe.dump(2));
  });
}

std::string model_card(const ExportOptions& options, const data::ModelFiles& files, const ModelPackage& package,
                       uint64_t parameters) {
  const std::string name = fs::absolute(options.out / "").parent_path().filename().string();
  const bool chats = package.files.contains("chat_template.jinja");
  return fmt::format(
      "---\n"
      "library_name: transformers\n"
      "pipeline_tag: text-generation\n"
      "tags:\n- distillation\n"
      "---\n\n"
      "# {}\n\n"
      "A `{}` language model of {} parameters, stored as {}.\n\n"
      "```python\n"
      "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      "tokenizer = AutoTokenizer.from_pretrained(\"{}\")\n"
      "model = AutoModelForCausalLM.from_pretrained(\"{}\")\n"
      "{}"
      "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))\n"
      "```\n\n"
      "{}"
      "Exported with `distill export`.\n",
      name, package.config.value("model_type", "?"), core::format_count(static_cast<double>(parameters)),
      dtype_name(options.dtype), name, name,
      chats ? "messages = [{\"role\": \"user\", \"content\": \"What is the capital of France?\"}]\n"
              "inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, "
              "return_tensors=\"pt\")\n"
            : "inputs = tokenizer(\"Once upon a time\", return_tensors=\"pt\")\n",
      training_story(files.path()));
}

}  // namespace

at::ScalarType parse_export_dtype(std::string_view name) {
  if (name == "fp32") return at::kFloat;
  if (name == "bf16") return at::kBFloat16;
  if (name == "fp16") return at::kHalf;
  core::fail_usage("dtype '{}' is none of fp32, bf16, fp16", name);
}

ExportSummary export_model(const ExportOptions& options) {
  check_destination(options);
  const data::ModelFiles files = data::ModelFiles::open(options.model);
  check_model(files);
  ModelPackage package{.config = files.config(), .files = tokenizer_files(files)};
  package.config.erase("dtype");
  package.config["torch_dtype"] = dtype_name(options.dtype);

  ExportSummary summary{.out = options.out};
  const data::NamedTensors weights = load_weights(*files.weights(), options.dtype);
  for (const auto& [name, tensor] : weights) {
    summary.parameters += static_cast<uint64_t>(tensor.numel());
    summary.bytes += tensor.nbytes();
  }
  package.files["README.md"] = model_card(options, files, package, summary.parameters);
  core::with_context(fmt::format("while writing {}", options.out.string()), [&] {
    core::AtomicDirectory directory(options.out);
    write_model_package(directory.path(), package, weights, options.max_shard_bytes);
    directory.commit();
  });
  return summary;
}

}  // namespace distill
