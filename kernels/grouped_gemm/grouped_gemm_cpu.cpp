#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "kernels/grouped_gemm/grouped_gemm.h"
#include "kernels/storage_type.h"
#include "kernels/stored_linear/row_products.h"
#include "kernels/work_sharing.h"

namespace distill::kernels {
namespace {

// The tokens of one expert, in ascending order, and its weights.
struct Group {
  WeightRows gate, up, down;
  std::vector<int64_t> tokens;
  std::vector<float> gates;
};

// Only experts that have tokens, by ascending number.
std::vector<Group> group_by_expert(const at::Tensor& experts, const at::Tensor& gates, at::TensorList values,
                                   at::TensorList scales, int64_t routed) {
  std::vector<Group> groups(values.size() / 3);
  const int64_t tokens = experts.size(0);
  const int64_t per_token = experts.size(1);
  const auto* expert = experts.const_data_ptr<int32_t>();
  const auto* gate = gates.const_data_ptr<float>();
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = t * per_token; i < (t + 1) * per_token; ++i) {
      TORCH_CHECK(expert[i] >= 0 && expert[i] < routed, "grouped_mlp: token ", t, " goes to expert ", expert[i], " of ",
                  routed);
      Group& group = groups[static_cast<size_t>(expert[i])];
      TORCH_CHECK(group.tokens.empty() || group.tokens.back() != t, "grouped_mlp: token ", t, " goes to expert ",
                  expert[i], " twice");
      group.tokens.push_back(t);
      group.gates.push_back(gate[i]);
    }
  }
  for (size_t e = static_cast<size_t>(routed); e < groups.size(); ++e) {
    for (int64_t t = 0; t < tokens; ++t) groups[e].tokens.push_back(t);
    groups[e].gates.assign(static_cast<size_t>(tokens), 1.0f);
  }
  const auto weight = [&](size_t i) { return WeightRows::of({.values = values[i], .scales = scales[i]}); };
  for (size_t e = 0; e < groups.size(); ++e) {
    if (groups[e].tokens.empty()) continue;
    groups[e].gate = weight(3 * e);
    groups[e].up = weight(3 * e + 1);
    groups[e].down = weight(3 * e + 2);
  }
  std::erase_if(groups, [](const Group& group) { return group.tokens.empty(); });
  return groups;
}

// Tokens of all groups together.
int64_t pairs(const std::vector<Group>& groups) {
  size_t count = 0;
  for (const Group& group : groups) count += group.tokens.size();
  return static_cast<int64_t>(count);
}

DISTILL_MULTIVERSION void gate_sums(const float* gate, const float* up, float* y, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] = gate[i] / (1.0f + vector_exp(-gate[i])) * up[i];
}

DISTILL_MULTIVERSION void add_scaled(float* y, const float* x, float factor, int64_t size) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] += factor * x[i];
}

class GroupedMlp {
 public:
  explicit GroupedMlp(at::ScalarType compute) : compute_(compute) {}

  // Activations of `tokens` to be multiplied with `weight`.
  ActivationRows rows_for(const WeightRows& weight, size_t tokens) const {
    return {static_cast<int64_t>(tokens), weight.in, best_row_isa(compute_, weight.type), weight.type};
  }

  // For each group its tokens' activations, as the first projections read them.
  template <typename T>
  std::vector<ActivationRows> gather(const std::vector<Group>& groups, const T* x, int64_t hidden) const {
    std::vector<ActivationRows> rows;
    rows.reserve(groups.size());
    for (const Group& group : groups) {
      rows.push_back(rows_for(group.gate, group.tokens.size()));
    }
    share_work(static_cast<int64_t>(groups.size()), pairs(groups) * hidden, [&](int64_t g) {
      const auto& tokens = groups[static_cast<size_t>(g)].tokens;
      for (size_t i = 0; i < tokens.size(); ++i) {
        rows[static_cast<size_t>(g)].set(static_cast<int64_t>(i), x + tokens[i] * hidden);
      }
    });
    return rows;
  }

  // silu(gate_proj x) * up_proj x of every group, as the last projection reads it.
  std::vector<ActivationRows> first_projections(const std::vector<Group>& groups,
                                                const std::vector<ActivationRows>& x) const {
    std::vector<ActivationRows> hidden;
    hidden.reserve(groups.size());
    struct Item {
      size_t group;
      int64_t first, rows;
    };
    std::vector<Item> items;
    int64_t work = 0;
    for (size_t g = 0; g < groups.size(); ++g) {
      const int64_t size = groups[g].down.in;
      const int64_t chunk = rows_per_item(size * static_cast<int64_t>(groups.size()));
      hidden.push_back(rows_for(groups[g].down, groups[g].tokens.size()));
      work += 2 * size * x[g].rows() * groups[g].gate.in;
      for (int64_t r = 0; r < size; r += chunk) items.push_back({g, r, std::min(chunk, size - r)});
    }
    share_work(static_cast<int64_t>(items.size()), work, [&](int64_t i) {
      const auto [g, first, rows] = items[static_cast<size_t>(i)];
      const auto count = static_cast<size_t>(x[g].rows() * rows);
      std::vector<float> gate(count);
      std::vector<float> up(count);
      const Item& next = items[std::min(static_cast<size_t>(i) + 1, items.size() - 1)];
      multiply_rows(groups[g].gate, first, rows, x[g], gate.data(), rows, groups[g].up.values_of(first));
      multiply_rows(groups[g].up, first, rows, x[g], up.data(), rows, groups[next.group].gate.values_of(next.first));
      gate_sums(gate.data(), up.data(), gate.data(), static_cast<int64_t>(count));
      for (int64_t t = 0; t < x[g].rows(); ++t) hidden[g].set_part(t, first, gate.data() + t * rows, rows);
    });
    return hidden;
  }

  // Each work item owns some columns of y and sums all experts into them, in order.
  template <typename T>
  void last_projection(const std::vector<Group>& groups, const std::vector<ActivationRows>& hidden, const T* residual,
                       T* y, int64_t tokens, int64_t size) const {
    const int64_t chunk = rows_per_item(size);
    size_t most_tokens = 0;
    int64_t work = 0;
    for (const Group& group : groups) {
      most_tokens = std::max(most_tokens, group.tokens.size());
      work += size * group.down.in * static_cast<int64_t>(group.tokens.size());
    }
    share_work((size + chunk - 1) / chunk, work, [&](int64_t item) {
      const int64_t first = item * chunk;
      const int64_t rows = std::min(chunk, size - first);
      std::vector<float> totals(static_cast<size_t>(tokens * rows));
      std::vector<float> sums(most_tokens * static_cast<size_t>(rows));
      for (size_t g = 0; g < groups.size(); ++g) {
        const bool last = g + 1 == groups.size();
        const std::byte* next = groups[last ? 0 : g + 1].down.values_of(last ? first + rows : first);
        multiply_rows(groups[g].down, first, rows, hidden[g], sums.data(), rows, next);
        for (size_t i = 0; i < groups[g].tokens.size(); ++i) {
          add_scaled(totals.data() + groups[g].tokens[i] * rows, sums.data() + i * static_cast<size_t>(rows),
                     groups[g].gates[i], rows);
        }
      }
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t at = t * size + first + r;
          const float total = totals[static_cast<size_t>(t * rows + r)];
          y[at] = from_float<T>(residual ? to_float(residual[at]) + total : total);
        }
      }
    });
  }

 private:
  at::ScalarType compute_;
};

at::Tensor grouped_mlp_cpu(const at::Tensor& x, const at::Tensor& experts, const at::Tensor& gates,
                           at::TensorList values, at::TensorList scales, int64_t routed,
                           const std::optional<at::Tensor>& residual) {
  const at::Tensor y = at::empty(x.sizes(), x.options());
  const std::vector<Group> groups = group_by_expert(experts, gates, values, scales, routed);
  const GroupedMlp mlp(x.scalar_type());
  with_storage_type(x, "grouped_mlp", [&]<typename T>(T) {
    const auto gathered = mlp.gather(groups, static_cast<const T*>(x.const_data_ptr()), x.size(1));
    const auto hidden = mlp.first_projections(groups, gathered);
    mlp.last_projection(groups, hidden, residual ? static_cast<const T*>(residual->const_data_ptr()) : nullptr,
                        static_cast<T*>(y.mutable_data_ptr()), x.size(0), x.size(1));
  });
  return y;
}

TORCH_LIBRARY_IMPL(distill, CPU, library) {
  library.impl("grouped_mlp", grouped_mlp_cpu);
}

}  // namespace
}  // namespace distill::kernels
