// How well stored targets stand for the whole distributions that they were made from, measured while those are at hand.
// Definitions in docs/targets.md, "Fidelity".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <vector>

namespace distill::data {

// Tokens by the weight that their target gives them: how much that is on average, and how probable they are.
struct CalibrationBin {
  uint64_t count = 0;
  double weight = 0;       // sum
  double probability = 0;  // sum
  CalibrationBin& operator+=(const CalibrationBin& other);
};
inline constexpr size_t kCalibrationBins = 10;  // of equal width in weight

// What a capture measures of one document, at every kFidelityStride-th position; sums over those.
struct DocumentFidelity {
  uint32_t positions = 0;
  double divergence = 0;  // KL(stored || full), nats
  double tail_mass = 0;   // probability of the ids that are not kept
  std::array<CalibrationBin, kCalibrationBins> bins{};
  std::vector<float> full, stored;  // sketches of the gradient [kSketch], or empty

  // As a journal keeps it. Reading throws Error unless the bytes are exactly one.
  std::vector<std::byte> to_bytes() const;
  static DocumentFidelity from_bytes(std::span<const std::byte> bytes);
};
inline constexpr size_t kFidelityStride = 4;
inline constexpr size_t kSketch = 512;

// Means over many documents, as a shard keeps them.
class Fidelity {
 public:
  // Documents in the order of their keys.
  void add(const DocumentFidelity& document);
  // Ends the last batch of the gradient; before anything is read.
  void finish();
  // Of other documents.
  Fidelity& operator+=(const Fidelity& other);

  uint64_t positions() const { return positions_; }
  double divergence() const;
  double tail_mass() const;
  // Mean |weight - probability| of the most heavily weighted token of each position, in bins of the weight.
  double calibration_error() const;
  double gradient_angle() const;       // degrees
  double gradient_norm_ratio() const;  // stored / full
  const std::array<CalibrationBin, kCalibrationBins>& bins() const { return bins_; }

  // {"positions", "kl", "tail_mass", "ece", "calibration": [[count, mean weight, mean probability], ...],
  // "gradient_angle_deg", "gradient_norm_ratio"}: means.
  nlohmann::json to_json() const;
  // Throws UsageError naming the key that is missing or of the wrong type or range.
  static Fidelity from_json(const nlohmann::json& json);

 private:
  uint64_t positions_ = 0;
  double divergence_ = 0, tail_mass_ = 0;  // sums
  std::array<CalibrationBin, kCalibrationBins> bins_{};
  // Of complete batches: sums over their positions.
  double angle_ = 0, norm_ratio_ = 0;
  // Of the batch that is being collected.
  uint64_t batch_positions_ = 0;
  std::array<double, kSketch> full_{}, stored_{};
};

// Adds what was measured of other documents, if it was.
void merge(std::optional<Fidelity>& sum, const std::optional<Fidelity>& more);

}  // namespace distill::data
