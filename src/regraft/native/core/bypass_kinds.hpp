// The kinds of bypasses that the core runs: y += scale * up f(down x). A new kind is one row.
#pragma once

#include <array>
#include <string_view>

#include "kernels.hpp"

namespace regraft {

struct BypassKind {
  std::string_view name;                                 // as in formats/adapter/kinds.py
  void (*Kernels::*activate)(float* values, int count);  // f, in place; null: the identity
};

inline constexpr std::array<BypassKind, 2> kBypassKinds{{
    {"lora", nullptr},
    {"gelu", &Kernels::gelu},
}};

// The row of that name; null if there is none.
inline const BypassKind* bypass_kind(std::string_view name) {
  for (const BypassKind& kind : kBypassKinds)
    if (kind.name == name) return &kind;
  return nullptr;
}

}  // namespace regraft
