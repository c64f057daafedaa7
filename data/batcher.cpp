#include "data/batcher.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <utility>

#include "core/config.h"
#include "core/cpu_count.h"
#include "core/error.h"
#include "core/philox.h"
#include "data/packing.h"
#include "data/permutation.h"
#include "kernels/head_loss/head_loss.h"

namespace distill::data {
namespace {

// Collects documents and turns them into tensors.
class BatchBuilder {
 public:
  // `hidden` is null unless hidden states of `layers`, which are among its own, are to be read.
  BatchBuilder(const HiddenStatesSpec* hidden, const std::vector<int64_t>& layers)
      : hidden_(hidden), hidden_values_(layers.size()) {
    for (const int64_t layer : layers) hidden_index_.push_back(*hidden->index_of(layer));
  }

  // Takes the first `max_tokens` positions of the trace, whose completion begins with `reasoning` tokens of reasoning.
  void add(size_t index, const Trace& trace, int64_t reasoning, int64_t max_tokens) {
    const std::vector<int32_t>& tokens = trace.document.tokens;
    const int64_t begin = static_cast<int64_t>(tokens_.size());
    const int64_t positions = std::min(static_cast<int64_t>(tokens.size()) - 1, max_tokens);
    const int64_t first_target = trace.document.prompt_length - 1;
    for (int64_t i = 0; i < positions; ++i) {
      const bool completion = i >= first_target;
      tokens_.push_back(tokens[i]);
      positions_.push_back(i);
      labels_.push_back(completion ? tokens[i + 1] : kernels::kIgnoredLabel);
      loss_mask_.push_back(completion);
    }
    for (int64_t i = first_target; i < positions; ++i) {
      const TargetDistribution target = trace.targets[static_cast<size_t>(i - first_target)];
      target_rows_.push_back(begin + i);
      target_ids_.insert(target_ids_.end(), target.ids.begin(), target.ids.end());
      target_weights_.insert(target_weights_.end(), target.weights.begin(), target.weights.end());
      target_offsets_.push_back(static_cast<int64_t>(target_ids_.size()));
      target_uncovered_.push_back(target.uncovered);
    }
    sequence_offsets_.push_back(static_cast<int32_t>(tokens_.size()));
    documents_.push_back(index);
    verdicts_.push_back(trace.document.verdict);
    reasoning_targets_.push_back(reasoning);
  }

  // The hidden states of the document added last: those of its targets in the batch.
  void add_hidden_states(std::span<const std::byte> stored) {
    const auto width = static_cast<size_t>(hidden_->width), bytes = hidden_->position_bytes();
    const size_t before = hidden_values_.front().size() / width, after = target_rows_.size();
    for (size_t i = 0; i < hidden_index_.size(); ++i) {
      hidden_values_[i].resize(after * width);
      for (size_t target = before; target < after; ++target) {
        hidden_->decode(stored.subspan((target - before) * bytes, bytes), hidden_index_[i],
                        std::span(hidden_values_[i]).subspan(target * width, width));
      }
    }
  }

  TrainingBatch finish() {
    return {.tokens = at::tensor(tokens_),
            .positions = at::tensor(positions_),
            .sequence_offsets = at::tensor(sequence_offsets_),
            .labels = at::tensor(labels_),
            .loss_mask = at::tensor(loss_mask_).to(at::kBool),
            .target_rows = at::tensor(target_rows_),
            .target_offsets = at::tensor(target_offsets_),
            .target_ids = at::tensor(target_ids_),
            .target_weights = at::tensor(target_weights_),
            .target_uncovered = at::tensor(target_uncovered_),
            .hidden_states = hidden_tensors(),
            .documents = std::move(documents_),
            .verdicts = std::move(verdicts_),
            .reasoning_targets = std::move(reasoning_targets_)};
  }

 private:
  std::vector<at::Tensor> hidden_tensors() const {
    std::vector<at::Tensor> tensors;
    for (const auto& values : hidden_values_) tensors.push_back(at::tensor(values).view({-1, hidden_->width}));
    return tensors;
  }

  std::vector<int64_t> tokens_, positions_, labels_, target_rows_, target_offsets_{0}, target_ids_;
  std::vector<int32_t> sequence_offsets_{0};
  std::vector<uint8_t> loss_mask_;
  std::vector<float> target_weights_, target_uncovered_;
  std::vector<size_t> documents_;
  std::vector<Verdict> verdicts_;
  std::vector<int64_t> reasoning_targets_;
  const HiddenStatesSpec* hidden_;
  std::vector<size_t> hidden_index_;               // of each layer, among those stored at a position
  std::vector<std::vector<float>> hidden_values_;  // of each layer, [targets, width]
};

// The documents that are shuffled together and how they are cut into batches.
struct Window {
  uint64_t epoch = 0;
  uint64_t number = 0;
  std::vector<std::vector<size_t>> batches;  // documents of each
};

}  // namespace

nlohmann::json BatcherState::to_json() const {
  return {{"epoch", epoch}, {"window", window}, {"batch", batch}};
}

BatcherState BatcherState::from_json(const nlohmann::json& json) {
  core::ConfigReader reader(json, "batcher state");
  BatcherState state;
  for (const auto& [key, value] :
       {std::pair{"epoch", &state.epoch}, {"window", &state.window}, {"batch", &state.batch}}) {
    const auto number = reader.require<int64_t>(key);
    if (number < 0) reader.reject(key, "is below 0");
    *value = static_cast<uint64_t>(number);
  }
  reader.finish();
  return state;
}

// All batches of all windows and epochs form one endless stream. `position` is where the next step of all ranks begins
// in it: rank r takes the batch r places later. So every rank is in the same state.
struct Batcher::State {
  std::shared_ptr<const TraceSource> reader;
  BatcherOptions options;
  BatcherState position;
  std::vector<size_t> by_key;  // all documents in an order that does not depend on which shards they came to lie in
  uint64_t documents = 0;
  uint64_t targets = 0;
  uint64_t window_documents = 0;  // before those of the other side of the split are taken out
  uint64_t windows = 0;           // in an epoch
  std::array<Window, 2> recent;   // the last windows used: a step may reach from one into the next
  size_t oldest = 0;
  // A few threads ahead of the one that trains; on a small machine they would only take its place.
  size_t threads = std::clamp<size_t>(static_cast<size_t>(core::available_cpus()) / 4, 1, 8);

  bool on_this_side(size_t index) const {
    if (options.validation_share <= 0) return !options.validation;
    constexpr uint64_t kSplit = 0x76616C69646174;  // so that the split has nothing to do with other uses of the hash
    const uint64_t hash = core::stream_id(reader->prompt_id(index), options.seed ^ kSplit);
    return (static_cast<double>(hash >> 11) * 0x1.0p-53 < options.validation_share) == options.validation;
  }
  // Positions a document takes in a batch, and those of them with a target; no positions if it would have no target.
  std::pair<int64_t, int64_t> positions(size_t index) const {
    const auto [prompt, completion] = reader->lengths(index);
    const int64_t all = std::min<int64_t>(int64_t{prompt} + completion - 1, options.max_tokens);
    const int64_t with_target = std::max<int64_t>(0, all - (prompt - 1));
    return {with_target > 0 ? all : 0, with_target};
  }
  void sort();
  void measure();
  const Window& window(uint64_t epoch, uint64_t number);
  // Moves a position on until it lies in its window. False if the epoch ends first and may not be left.
  bool settle(BatcherState& at, bool leave_epoch);
  // Where this rank's next batch lies; the position moves on.
  BatcherState advance();
  TrainingBatch build(const BatcherState& at);
};

void Batcher::State::sort() {
  std::vector<std::pair<uint64_t, size_t>> hashes(reader->size());
  for (size_t i = 0; i < hashes.size(); ++i) {
    const TraceKey key = reader->key(i);
    hashes[i] = {core::stream_id(key.prompt_id, key.sample), i};
  }
  std::ranges::sort(hashes, [&](const auto& a, const auto& b) {
    return a.first != b.first ? a.first < b.first : reader->key(a.second) < reader->key(b.second);
  });
  by_key.reserve(hashes.size());
  for (const auto& [hash, index] : hashes) by_key.push_back(index);
}

void Batcher::State::measure() {
  uint64_t all_positions = 0;
  for (size_t i = 0; i < reader->size(); ++i) {
    const auto [all, with_target] = positions(i);
    if (with_target == 0 || !on_this_side(i)) continue;
    ++documents;
    all_positions += static_cast<uint64_t>(all);
    targets += static_cast<uint64_t>(with_target);
  }
  core::check(documents > 0, "none of the {} documents is for {}: validation share {}, at most {} tokens per document",
              reader->size(), options.validation ? "validation" : "training", options.validation_share,
              options.max_tokens);
  // Enough that the last, partly filled batch of a window is less than one in a hundred.
  constexpr uint64_t kBatchesPerWindow = 128, kMinDocuments = 4096;
  const uint64_t mean = std::max<uint64_t>(1, all_positions / documents);
  window_documents = std::max(kMinDocuments, kBatchesPerWindow * static_cast<uint64_t>(options.max_tokens) / mean);
  windows = (reader->size() + window_documents - 1) / window_documents;
}

const Window& Batcher::State::window(uint64_t epoch, uint64_t number) {
  for (const Window& known : recent) {
    if (!known.batches.empty() && known.epoch == epoch && known.number == number) return known;
  }
  const Permutation order(reader->size(), core::stream_id("epoch", options.seed ^ (epoch << 32 | epoch >> 32)));
  std::vector<size_t> indices;
  std::vector<int64_t> lengths;
  const uint64_t end = std::min<uint64_t>(reader->size(), (number + 1) * window_documents);
  for (uint64_t i = number * window_documents; i < end; ++i) {
    const auto index = by_key[static_cast<size_t>(order(i))];
    const int64_t length = positions(index).first;
    if (length == 0 || !on_this_side(index)) continue;
    indices.push_back(index);
    lengths.push_back(length);
  }
  Window& result = recent[std::exchange(oldest, 1 - oldest)];
  result = {.epoch = epoch, .number = number, .batches = {}};
  for (const auto& bin : pack(lengths, options.max_tokens)) {
    auto& batch = result.batches.emplace_back();
    for (const uint32_t piece : bin) batch.push_back(indices[piece]);
  }
  // Packing put the longest documents first.
  core::Philox random(options.seed, core::stream_id("window", number), epoch);
  for (size_t i = result.batches.size(); i > 1; --i) {
    std::swap(result.batches[i - 1], result.batches[random.next_below(static_cast<uint32_t>(i))]);
  }
  return result;
}

bool Batcher::State::settle(BatcherState& at, bool leave_epoch) {
  while (true) {
    const size_t batches = window(at.epoch, at.window).batches.size();
    if (at.batch < batches) return true;
    at.batch -= batches;
    if (++at.window < windows) continue;
    if (!leave_epoch) return false;
    at.window = 0;
    ++at.epoch;
  }
}

BatcherState Batcher::State::advance() {
  settle(position, true);
  BatcherState own = position;
  own.batch += static_cast<uint64_t>(options.rank);
  settle(own, true);
  position.batch += static_cast<uint64_t>(options.world);
  return own;
}

TrainingBatch Batcher::State::build(const BatcherState& at) {
  const TraceProvenance& provenance = reader->provenance();
  BatchBuilder builder(provenance.hidden_states ? &*provenance.hidden_states : nullptr, options.hidden_layers);
  const std::vector<size_t>& indices = window(at.epoch, at.window).batches[at.batch];
  const std::vector<Trace> traces = reader->read(indices, threads);
  for (size_t i = 0; i < indices.size(); ++i) {
    const TraceDocument& document = traces[i].document;
    builder.add(indices[i], traces[i], provenance.reasoning_length(document), options.max_tokens);
    if (options.hidden_layers.empty()) continue;
    core::with_context(fmt::format("prompt '{}' sample {}", document.key.prompt_id, document.key.sample),
                       [&] { builder.add_hidden_states(reader->hidden_states(indices[i])); });
  }
  return builder.finish();
}

Batcher::Batcher(std::shared_ptr<const TraceSource> reader, BatcherOptions options)
    : state_(std::make_unique<State>()) {
  core::check(options.max_tokens > 0 && options.max_tokens < INT32_MAX, "batches of {} tokens", options.max_tokens);
  core::check(options.world > 0 && options.rank >= 0 && options.rank < options.world, "rank {} of {}", options.rank,
              options.world);
  core::check(options.validation_share >= 0 && options.validation_share <= 1, "a validation share of {}",
              options.validation_share);
  const auto& hidden = reader->provenance().hidden_states;
  for (const int64_t layer : options.hidden_layers) {
    core::check(hidden && hidden->index_of(layer), "the traces hold no hidden states of layer {}", layer);
  }
  state_->reader = std::move(reader);
  state_->options = options;
  state_->sort();
  state_->measure();
}

Batcher::~Batcher() = default;

TrainingBatch Batcher::next() {
  return state_->build(state_->advance());
}

BatchSize Batcher::skip() {
  State& state = *state_;
  const BatcherState own = state.advance();
  BatchSize size;
  for (const size_t index : state.window(own.epoch, own.window).batches[own.batch]) {
    const auto [all, with_target] = state.positions(index);
    size.tokens += all;
    size.targets += with_target;
  }
  return size;
}

std::optional<TrainingBatch> Batcher::next_in_epoch() {
  State& state = *state_;
  BatcherState own = state.position;
  own.batch += static_cast<uint64_t>(state.options.rank);
  if (!state.settle(own, false)) {
    state.position = {.epoch = state.position.epoch + 1};
    return {};
  }
  TrainingBatch batch = state.build(own);
  state.position.batch += static_cast<uint64_t>(state.options.world);
  return batch;
}

BatcherState Batcher::state() const {
  return state_->position;
}

void Batcher::restore(const BatcherState& state) {
  core::check(state.window < state_->windows, "the data position is window {} of an epoch, but these traces make {}",
              state.window, state_->windows);
  state_->position = state;
}

uint64_t Batcher::documents() const {
  return state_->documents;
}

uint64_t Batcher::targets() const {
  return state_->targets;
}

}  // namespace distill::data
