// What the targets of a token cost to store, and how far the gradient that a student gets from them lies from that of
// the whole distribution: our modes as shards, everything counted, beside peers' formats.
//   targets_bench TEACHER TRACES STUDENT SCRATCH [tokens of the gradient's batch = 2667] [documents = all]
//   targets_bench synthetic:129280 - - SCRATCH [tokens] [documents]
// TRACES are the teacher's own samples at temperature 1 (`distill generate --targets topk:1`), STUDENT a model with its
// tokenizer (such as the one that `distill quickstart` trains), or "perturbed": the teacher with noise in its head's
// matrix. Prints a table and one JSON object.
//
// The student's logits are moved towards the teacher's until KL(teacher || student) is 1.6 or 0.4 nats. The gradient is
// that of its head's matrix, the sum over the batch of hidden ⊗ (c·q − w), where w are the stored weights, c their sum
// and q the student's distribution: the forward KL over what is stored.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <deque>
#include <exception>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bench/peer_targets.h"
#include "core/error.h"
#include "core/philox.h"
#include "data/model_files.h"
#include "data/target_encoder.h"
#include "data/target_sampler.h"
#include "data/trace_reader.h"
#include "data/trace_shard.h"
#include "data/trace_writer.h"
#include "distill/load_model.h"

namespace distill::bench {
namespace {

namespace fs = std::filesystem;

double cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Documents with hidden states [completion, hidden] of their completion's positions, and what makes logits of those.
class Teacher {
 public:
  virtual ~Teacher() = default;
  virtual data::TraceProvenance provenance() const = 0;
  virtual size_t documents() const = 0;
  virtual std::pair<data::TraceDocument, at::Tensor> document(size_t index) = 0;
  virtual at::Tensor logits(const at::Tensor& hidden) = 0;  // [tokens, vocab] fp32
  // Hidden states and logits of a student at the same positions.
  virtual std::pair<at::Tensor, at::Tensor> student(const data::TraceDocument& document, const at::Tensor& hidden) = 0;
};

at::Tensor completion_states(nn::CausalLM& model, const data::TraceDocument& document) {
  const at::Tensor hidden = model.forward(nn::PackedBatch::from_sequences({document.tokens}));
  return hidden.narrow(0, document.prompt_length - 1, document.completion_length());
}

class RealTeacher final : public Teacher {
 public:
  RealTeacher(const fs::path& model, const fs::path& traces, const fs::path& student)
      : model_(load_model(data::ModelFiles::open(model), {.compute = c10::ScalarType::BFloat16})),
        reader_(data::TraceReader::open(traces)) {
    if (student != "perturbed") {
      student_ = load_model(data::ModelFiles::open(student), {.compute = c10::ScalarType::Float});
      return;
    }
    at::manual_seed(1);
    noise_ = 2 * at::randn({model_->shape().hidden_size, model_->shape().vocab_size});
  }
  data::TraceProvenance provenance() const override { return reader_.provenance(); }
  size_t documents() const override { return reader_.size(); }
  std::pair<data::TraceDocument, at::Tensor> document(size_t index) override {
    data::TraceDocument document = reader_.read_document(index);
    at::Tensor hidden = completion_states(*model_, document).to(at::kFloat);
    return {std::move(document), std::move(hidden)};
  }
  at::Tensor logits(const at::Tensor& hidden) override { return model_->logits(hidden.to(at::kBFloat16)); }
  std::pair<at::Tensor, at::Tensor> student(const data::TraceDocument& document, const at::Tensor& hidden) override {
    if (!student_) return {hidden, logits(hidden) + (hidden / hidden.norm(2, 1, true)).matmul(noise_)};
    const at::Tensor own = completion_states(*student_, document);
    return {own, student_->logits(own)};
  }

 private:
  std::unique_ptr<nn::CausalLM> model_, student_;
  data::TraceReader reader_;
  at::Tensor noise_;  // [hidden, vocab]; in the perturbed student's head
};

// Random hidden states of different scales, so that some positions are nearly certain and others wide open, half of
// their square common to all; Zipf-distributed ids in a shuffled order. The figures are chosen so that entropy, the
// probability beyond the first 128 and what hidden states have in common are about those of SmolLM2-135M's answers.
class SyntheticTeacher final : public Teacher {
 public:
  explicit SyntheticTeacher(int64_t vocab) {
    at::manual_seed(1);
    head_ = at::randn({vocab, kHidden}) / std::sqrt(static_cast<double>(kHidden));
    bias_ = -at::log(at::arange(1, vocab + 1).to(at::kFloat)).index_select(0, at::randperm(vocab));
    common_ = at::randn({kHidden});
  }
  data::TraceProvenance provenance() const override {
    data::TraceProvenance result;
    result.teacher = "synthetic";
    result.vocab_size = head_.size(0);
    result.weights = result.config = result.tokenizer = std::string(64, '0');
    return result;
  }
  size_t documents() const override { return 300; }
  std::pair<data::TraceDocument, at::Tensor> document(size_t index) override {
    at::manual_seed(100 + index);
    constexpr double kCommon = 0.65;  // of the squares; different scales leave about half
    const at::Tensor direction = std::sqrt(1 - kCommon) * at::randn({kTokens, kHidden}) + std::sqrt(kCommon) * common_;
    const at::Tensor hidden = direction * at::exp(1.9 + 0.5 * at::randn({kTokens, 1}));
    const at::Tensor drawn = at::multinomial(at::softmax(logits(hidden), -1), 1).to(at::kInt).contiguous();
    data::TraceDocument document;
    document.key.prompt_id = fmt::format("synthetic-{:05}", index);
    document.prompt_length = 1;
    document.tokens = {0};
    document.tokens.insert(document.tokens.end(), drawn.const_data_ptr<int32_t>(),
                           drawn.const_data_ptr<int32_t>() + kTokens);
    return {std::move(document), hidden};
  }
  at::Tensor logits(const at::Tensor& hidden) override { return at::addmm(bias_, hidden, head_.t()); }
  // Knows half of what the teacher does.
  std::pair<at::Tensor, at::Tensor> student(const data::TraceDocument&, const at::Tensor& hidden) override {
    const at::Tensor half = hidden * (at::arange(kHidden) < kHidden / 2);
    return {half, logits(half)};
  }

 private:
  static constexpr int64_t kHidden = 128, kTokens = 200;
  at::Tensor head_, bias_, common_;
};

// One way to store targets: what it costs and what it gives back for the batch.
struct Row {
  std::string name;
  double bytes = 0, ids = 0;
  nlohmann::json parts{};         // of the bytes, and times; of our modes only
  data::SparseTargets targets{};  // of the batch
};

// A set of shards of one mode, written while the teacher runs.
class Mode {
 public:
  Mode(const std::string& name, data::TraceProvenance provenance, const fs::path& scratch)
      : name_(name), folder_(scratch / name) {
    fs::remove_all(folder_);
    provenance.targets = data::TargetSpec::parse(name);
    provenance_ = provenance;
    writer_.emplace(folder_, provenance);
  }
  void add(const data::TraceDocument& document, const at::Tensor& logits) {
    data::Trace trace{.document = document, .targets = {}};
    const auto vocab = static_cast<size_t>(logits.size(1));
    const double start = cpu_seconds();
    data::TargetSampler sampler(provenance_.targets, provenance_.sampling.seed, document.key);
    for (size_t i = 0; i < static_cast<size_t>(logits.size(0)); ++i) {
      sampler.add({logits.const_data_ptr<float>() + i * vocab, vocab});
    }
    sampler.finish();
    trace.targets = std::move(sampler.targets());
    reduce_seconds_ += cpu_seconds() - start;
    writer_->append(trace);
    traces_[document.key] = std::move(trace);
  }
  // `batch` are the keys of the documents that make the gradient.
  Row finish(const std::vector<data::TraceKey>& batch) {
    const double start = cpu_seconds();
    writer_->finish();
    const double seal_seconds = cpu_seconds() - start;
    const auto reader = data::TraceReader::open(folder_);
    const auto tokens = static_cast<double>(reader.completion_tokens());
    double bytes = 0, table = 0, encode_seconds = 0, decode_seconds = 0, entries = 0;
    data::TargetCodec::Sizes sizes;
    std::map<data::TraceKey, data::SparseTargets> wanted;
    for (const auto& key : batch) wanted[key];
    for (const auto& shard : reader.shards()) {
      bytes += static_cast<double>(shard->file_bytes());
      table += static_cast<double>(shard->bytes(data::trace_format::kModel));
      std::vector<data::Trace> traces;
      for (size_t i = 0; i < shard->size(); ++i) traces.push_back(std::move(traces_.at(shard->key(i))));
      std::vector<std::byte> payload;
      double before = cpu_seconds();
      for (const auto& trace : traces) {
        payload.clear();
        shard->codec().encode(trace.document, trace.targets, payload);
      }
      encode_seconds += cpu_seconds() - before;
      before = cpu_seconds();
      for (size_t i = 0; i < traces.size(); ++i) {
        shard->codec().decode(traces[i].document, shard->payload(i), traces[i].targets);
      }
      decode_seconds += cpu_seconds() - before;
      for (size_t i = 0; i < traces.size(); ++i) {
        sizes += shard->codec().sizes(traces[i], shard->payload(i));
        entries += static_cast<double>(traces[i].targets.ids.size());
        if (const auto found = wanted.find(traces[i].document.key); found != wanted.end())
          found->second = std::move(traces[i].targets);
      }
    }
    Row row{.name = name_, .bytes = bytes / tokens, .ids = entries / tokens};
    row.parts = {{"ids", sizes.ids / tokens},
                 {"weights", sizes.weights / tokens},
                 {"tokens", sizes.tokens / tokens},
                 {"table", table / tokens},
                 {"overhead", (bytes - table - sizes.tokens - sizes.ids - sizes.weights) / tokens},
                 {"reduced_per_second", tokens / reduce_seconds_},
                 {"sealed_per_second", tokens / seal_seconds},
                 {"encoded_per_second", tokens / encode_seconds},
                 {"decoded_per_second", tokens / decode_seconds}};
    for (const auto& key : batch) row.targets.append(wanted.at(key));
    return row;
  }

 private:
  std::string name_;
  fs::path folder_;
  data::TraceProvenance provenance_;
  std::optional<data::TraceWriter> writer_;
  std::map<data::TraceKey, data::Trace> traces_;  // as they were before they were encoded
  double reduce_seconds_ = 0;
};

// The student's side of the gradient for one batch: hidden states [tokens, hidden], its logits and the teacher's
// log-probabilities [tokens, vocab].
class Student {
 public:
  Student(const at::Tensor& hidden, const at::Tensor& logits, const at::Tensor& log_p, double distance)
      : hidden_(hidden) {
    const int64_t probe = std::min<int64_t>(512, hidden.size(0));
    const at::Tensor some_log_p = log_p.narrow(0, 0, probe), some_logits = logits.narrow(0, 0, probe);
    const auto divergence = [&](double share) {
      const at::Tensor log_q = at::log_softmax(at::lerp(some_log_p, some_logits, share), -1);
      return (some_log_p.exp() * (some_log_p - log_q)).sum().item<double>() / static_cast<double>(probe);
    };
    double low = 0, high = 4;
    for (int step = 0; step < 12; ++step) (divergence((low + high) / 2) < distance ? low : high) = (low + high) / 2;
    q_ = at::softmax(at::lerp(log_p, logits, low), -1);
    pull_ = hidden_.t().matmul(q_);  // [hidden, vocab]
    full_ = pull_ - hidden_.t().matmul(log_p.exp());
    norm_ = full_.to(at::kDouble).norm().item<double>();
  }
  // Angle in degrees and ratio of the norms of the gradient from `targets` to the full one.
  std::pair<double, double> compare(const data::SparseTargets& targets) const {
    const int64_t tokens = hidden_.size(0);
    const auto lengths = at::diff(at::tensor(targets.offsets));
    const at::Tensor rows = at::repeat_interleave(at::arange(tokens), lengths);
    const at::Tensor indices = at::stack({rows, at::tensor(targets.ids).to(at::kLong)});
    const at::Tensor w = at::zeros({tokens, q_.size(1)}).index_put_({rows, indices[1]}, at::tensor(targets.weights));
    const at::Tensor covered = w.sum(1, true);
    const bool whole = (covered - 1).abs().max().item<float>() < 1e-4;
    const at::Tensor gradient = (whole ? pull_ : (hidden_ * covered).t().matmul(q_)) - hidden_.t().matmul(w);
    const double norm = gradient.to(at::kDouble).norm().item<double>();
    const double cosine = (gradient * full_).sum(at::kDouble).item<double>() / norm / norm_;
    return {std::acos(std::min(1.0, cosine)) * 180 / M_PI, norm / norm_};
  }

 private:
  at::Tensor hidden_, q_, pull_, full_;
  double norm_ = 0;
};

void run(const std::string& model, const fs::path& traces, const fs::path& student, const fs::path& scratch,
         int64_t batch_tokens, size_t documents) {
  const c10::InferenceMode no_gradients;
  std::unique_ptr<Teacher> teacher;
  if (model.starts_with("synthetic:")) {
    teacher = std::make_unique<SyntheticTeacher>(std::stoll(model.substr(10)));
  } else {
    teacher = std::make_unique<RealTeacher>(model, traces, student);
  }
  std::deque<Mode> modes;
  for (const char* name : {"threshold:0.03", "threshold:0.04", "threshold:0.05", "threshold:0.1", "threshold:0.12",
                           "threshold:0.15", "threshold:8", "threshold:16", "sampled:50", "hybrid:8+8"}) {
    modes.emplace_back(name, teacher->provenance(), scratch);
  }
  std::vector<data::TraceKey> batch;
  std::vector<at::Tensor> hidden_rows, logit_rows, p_rows;
  int64_t collected = 0, tokens = 0;
  for (size_t i = 0; i < std::min(documents, teacher->documents()); ++i) {
    const auto [document, hidden] = teacher->document(i);
    const at::Tensor logits = teacher->logits(hidden).contiguous();
    tokens += hidden.size(0);
    for (Mode& mode : modes) mode.add(document, logits);
    if (collected >= batch_tokens) continue;
    batch.push_back(document.key);
    const auto [own_hidden, own_logits] = teacher->student(document, hidden);
    hidden_rows.push_back(own_hidden.to(at::kFloat));
    logit_rows.push_back(own_logits);
    p_rows.push_back(at::log_softmax(logits, -1));
    collected += hidden.size(0);
  }
  const at::Tensor hidden = at::cat(hidden_rows), logits = at::cat(logit_rows), log_p = at::cat(p_rows);
  logit_rows.clear();
  p_rows.clear();
  std::vector<Row> rows;
  rows.reserve(modes.size());
  for (Mode& mode : modes) rows.push_back(mode.finish(batch));
  for (PeerTargets& peer : peer_targets(log_p.exp())) {
    rows.push_back({peer.name, peer.bytes_per_token, 128, {}, std::move(peer.targets)});
  }
  // RS-KD packs a 17-bit id and a 7-bit count into three bytes for each distinct token of its draws.
  for (const char* draws : {"sampled:12", "sampled:50"}) {
    Row row{.name = fmt::format("RS-KD {} draws", draws + 8)};
    for (int64_t i = 0; i < log_p.size(0); ++i) {
      core::Philox random(2, static_cast<uint64_t>(i), 0);
      data::encode_target({log_p[i].const_data_ptr<float>(), static_cast<size_t>(log_p.size(1))},
                          data::TargetSpec::parse(draws), random, row.targets);
    }
    row.ids = static_cast<double>(row.targets.ids.size()) / static_cast<double>(log_p.size(0));
    row.bytes = 3 * row.ids;
    rows.push_back(std::move(row));
  }

  const Student far(hidden, logits, log_p, 1.6), near(hidden, logits, log_p, 0.4);
  const double entropy =
      -(log_p.exp() * log_p).sum(at::kDouble).item<double>() / static_cast<double>(log_p.size(0)) / M_LN2;
  const double beyond = 1 - std::get<0>(log_p.topk(128)).exp().sum(-1).mean().item<double>();
  const double common = (hidden.mean(0).square().sum() / hidden.square().sum(1).mean()).item<double>();
  fmt::print(
      "{} tokens, {:.2f} bits of entropy each, {:.1f} % of the probability beyond the first 128, {:.0f} % of the "
      "hidden states in common; gradient over {} tokens, student 1.6 nats (0.4 nats) away\n\n",
      tokens, entropy, 100 * beyond, 100 * common, collected);
  fmt::print("{:<28} {:>6} {:>8} {:>16} {:>18} {:>9} {:>9}\n", "targets", "ids", "B/token", "angle", "norm ratio",
             "enc M/s", "dec M/s");
  nlohmann::json json{
      {"model", model}, {"tokens", tokens}, {"entropy_bits", entropy}, {"rows", nlohmann::json::array()}};
  for (const Row& row : rows) {
    const auto [angle, ratio] = far.compare(row.targets);
    const auto [near_angle, near_ratio] = near.compare(row.targets);
    std::string speed;
    if (!row.parts.is_null()) {
      speed = fmt::format(" {:>9.2f} {:>9.2f}", row.parts["encoded_per_second"].get<double>() / 1e6,
                          row.parts["decoded_per_second"].get<double>() / 1e6);
    }
    fmt::print("{:<28} {:>6.1f} {:>8.2f} {:>6.2f}° ({:>5.2f}°) {:>9.3f} ({:.3f}){}\n", row.name, row.ids, row.bytes,
               angle, near_angle, ratio, near_ratio, speed);
    json["rows"].push_back({{"targets", row.name},
                            {"ids", row.ids},
                            {"bytes_per_token", row.bytes},
                            {"angle_deg", {angle, near_angle}},
                            {"norm_ratio", {ratio, near_ratio}},
                            {"parts", row.parts}});
  }
  fmt::print("\n{}\n", json.dump());
}

}  // namespace
}  // namespace distill::bench

int main(int argc, char** argv) {
  if (argc < 5 || argc > 7) {
    std::fprintf(stderr,
                 "usage: targets_bench TEACHER|synthetic:VOCAB TRACES STUDENT SCRATCH [batch tokens] [documents]\n");
    return 2;
  }
  try {
    distill::bench::run(argv[1], argv[2], argv[3], argv[4], argc > 5 ? std::stoll(argv[5]) : 2667,
                        argc > 6 ? std::stoull(argv[6]) : SIZE_MAX);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
