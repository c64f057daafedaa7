#include "data/target_fidelity.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/config.h"
#include "core/error.h"
#include "data/little_endian.h"

namespace distill::data {
namespace {

constexpr uint64_t kBatchPositions = 512;  // of the gradient

double mean(double sum, uint64_t count) {
  return count > 0 ? sum / static_cast<double>(count) : 0;
}

}  // namespace

std::vector<std::byte> DocumentFidelity::to_bytes() const {
  std::vector<std::byte> out;
  append_value(out, positions);
  append_value(out, divergence);
  append_value(out, tail_mass);
  for (const CalibrationBin& bin : bins) {
    append_value(out, bin.count);
    append_value(out, bin.weight);
    append_value(out, bin.probability);
  }
  append(out, std::span<const float>(full));
  append(out, std::span<const float>(stored));
  return out;
}

DocumentFidelity DocumentFidelity::from_bytes(std::span<const std::byte> bytes) {
  constexpr size_t kNumbers = 4 + 2 * 8 + kCalibrationBins * 3 * 8, kSketches = 2 * kSketch * sizeof(float);
  core::check(bytes.size() == kNumbers || bytes.size() == kNumbers + kSketches, "a fidelity record of {} bytes",
              bytes.size());
  DocumentFidelity result;
  const std::byte* at = bytes.data();
  const auto take = [&]<typename T>(T& value) {
    value = load<T>(at);
    at += sizeof(T);
    if constexpr (std::is_floating_point_v<T>) core::check(std::isfinite(value), "a fidelity record holds {}", value);
  };
  take(result.positions);
  take(result.divergence);
  take(result.tail_mass);
  for (CalibrationBin& bin : result.bins) {
    take(bin.count);
    take(bin.weight);
    take(bin.probability);
  }
  if (bytes.size() == kNumbers) return result;
  for (auto* sketch : {&result.full, &result.stored}) {
    sketch->resize(kSketch);
    for (float& value : *sketch) take(value);
  }
  return result;
}

CalibrationBin& CalibrationBin::operator+=(const CalibrationBin& other) {
  count += other.count;
  weight += other.weight;
  probability += other.probability;
  return *this;
}

void Fidelity::add(const DocumentFidelity& document) {
  positions_ += document.positions;
  divergence_ += document.divergence;
  tail_mass_ += document.tail_mass;
  for (size_t i = 0; i < bins_.size(); ++i) bins_[i] += document.bins[i];
  for (size_t i = 0; i < document.full.size(); ++i) {
    full_[i] += static_cast<double>(document.full[i]);
    stored_[i] += static_cast<double>(document.stored[i]);
  }
  batch_positions_ += document.positions;
  if (batch_positions_ >= kBatchPositions) finish();
}

void Fidelity::finish() {
  const double full = std::inner_product(full_.begin(), full_.end(), full_.begin(), 0.0);
  const double stored = std::inner_product(stored_.begin(), stored_.end(), stored_.begin(), 0.0);
  const double both = std::inner_product(full_.begin(), full_.end(), stored_.begin(), 0.0);
  if (full > 0 && stored > 0) {
    const double angle = std::acos(std::clamp(both / std::sqrt(full * stored), -1.0, 1.0)) * 180 / std::numbers::pi;
    angle_ += angle * static_cast<double>(batch_positions_);
    norm_ratio_ += std::sqrt(stored / full) * static_cast<double>(batch_positions_);
  } else {
    norm_ratio_ += static_cast<double>(batch_positions_);  // there is no gradient
  }
  batch_positions_ = 0;
  full_ = stored_ = {};
}

Fidelity& Fidelity::operator+=(const Fidelity& other) {
  positions_ += other.positions_;
  divergence_ += other.divergence_;
  tail_mass_ += other.tail_mass_;
  for (size_t i = 0; i < bins_.size(); ++i) bins_[i] += other.bins_[i];
  angle_ += other.angle_;
  norm_ratio_ += other.norm_ratio_;
  return *this;
}

void merge(std::optional<Fidelity>& sum, const std::optional<Fidelity>& more) {
  if (!more) return;
  if (!sum) sum.emplace();
  *sum += *more;
}

double Fidelity::divergence() const {
  return mean(divergence_, positions_);
}

double Fidelity::tail_mass() const {
  return mean(tail_mass_, positions_);
}

double Fidelity::calibration_error() const {
  double sum = 0;
  uint64_t count = 0;
  for (const CalibrationBin& bin : bins_) {
    sum += std::abs(bin.weight - bin.probability);
    count += bin.count;
  }
  return mean(sum, count);
}

double Fidelity::gradient_angle() const {
  return mean(angle_, positions_);
}

double Fidelity::gradient_norm_ratio() const {
  return mean(norm_ratio_, positions_);
}

nlohmann::json Fidelity::to_json() const {
  nlohmann::json calibration = nlohmann::json::array();
  for (const CalibrationBin& bin : bins_) {
    calibration.push_back({bin.count, mean(bin.weight, bin.count), mean(bin.probability, bin.count)});
  }
  return {{"positions", positions_},
          {"kl", divergence()},
          {"tail_mass", tail_mass()},
          {"ece", calibration_error()},
          {"calibration", calibration},
          {"gradient_angle_deg", gradient_angle()},
          {"gradient_norm_ratio", gradient_norm_ratio()}};
}

Fidelity Fidelity::from_json(const nlohmann::json& json) {
  core::ConfigReader reader(json, "fidelity");
  Fidelity result;
  const auto positions = reader.require<int64_t>("positions");
  if (positions < 0) reader.reject("positions", "is below 0");
  result.positions_ = static_cast<uint64_t>(positions);
  const auto sum = [&](const char* key) {
    const auto value = reader.require<double>(key);
    if (!std::isfinite(value)) reader.reject(key, "is not finite");
    return value * static_cast<double>(positions);
  };
  result.divergence_ = sum("kl");
  result.tail_mass_ = sum("tail_mass");
  result.angle_ = sum("gradient_angle_deg");
  result.norm_ratio_ = sum("gradient_norm_ratio");
  sum("ece");  // follows from the bins
  const auto rows = reader.require<nlohmann::json>("calibration");
  const auto is_row = [](const nlohmann::json& row) {
    return row.is_array() && row.size() == 3 && row[0].is_number_unsigned() && row[1].is_number() && row[2].is_number();
  };
  if (!rows.is_array() || rows.size() != kCalibrationBins || !std::ranges::all_of(rows, is_row)) {
    reader.reject("calibration", "is not rows of a count and two means");
  }
  for (size_t i = 0; i < kCalibrationBins; ++i) {
    CalibrationBin& bin = result.bins_[i];
    bin.count = rows[i][0].get<uint64_t>();
    bin.weight = rows[i][1].get<double>() * static_cast<double>(bin.count);
    bin.probability = rows[i][2].get<double>() * static_cast<double>(bin.count);
  }
  reader.finish();
  return result;
}

}  // namespace distill::data
