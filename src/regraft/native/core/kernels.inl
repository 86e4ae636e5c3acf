// All kernels, included once per instruction set inside its namespace.
#include "lanes.hpp"

#include "attention.inl"
#include "elementwise.inl"
#include "matmul.inl"
#include "pack.inl"

constexpr Kernels make_kernels(const char* name) {
  return {name, quantize, matmul, rms_norm, silu_mul, gelu_tanh_mul, gelu, tanh, add, pack_bytes, attend};
}
