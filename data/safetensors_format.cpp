#include "data/safetensors_format.h"

#include <array>

#include "core/error.h"

namespace distill::data::safetensors {
namespace {

struct Dtype {
  std::string_view name;
  at::ScalarType type;
};

constexpr std::array<Dtype, 16> kDtypes{{
    {"BF16", at::ScalarType::BFloat16},
    {"BOOL", at::ScalarType::Bool},
    {"F16", at::ScalarType::Half},
    {"F32", at::ScalarType::Float},
    {"F64", at::ScalarType::Double},
    {"F8_E4M3", at::ScalarType::Float8_e4m3fn},
    {"F8_E5M2", at::ScalarType::Float8_e5m2},
    {"F8_E8M0", at::ScalarType::Float8_e8m0fnu},
    {"I16", at::ScalarType::Short},
    {"I32", at::ScalarType::Int},
    {"I64", at::ScalarType::Long},
    {"I8", at::ScalarType::Char},
    {"U16", at::ScalarType::UInt16},
    {"U32", at::ScalarType::UInt32},
    {"U64", at::ScalarType::UInt64},
    {"U8", at::ScalarType::Byte},
}};

}  // namespace

std::optional<at::ScalarType> scalar_type(std::string_view dtype) {
  for (const auto& known : kDtypes) {
    if (known.name == dtype) return known.type;
  }
  return std::nullopt;
}

std::string_view dtype_name(at::ScalarType type) {
  for (const auto& known : kDtypes) {
    if (known.type == type) return known.name;
  }
  core::fail("safetensors files cannot hold tensors of type {}", c10::toString(type));
}

}  // namespace distill::data::safetensors
