// The kernels for whatever the compiler targets.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"


namespace regraft::portable {
namespace {

#include "lanes.hpp"

#include "attention.inl"
#include "elementwise.inl"
#include "matmul.inl"
#include "pack.inl"

constexpr Kernels kernels = {"portable", quantize, matmul, rms_norm, silu_mul, gelu_tanh_mul, gelu, add, pack_bytes, attend};

}  // namespace
}  // namespace regraft::portable

const regraft::Kernels* regraft::portable_kernels() { return &regraft::portable::kernels; }

