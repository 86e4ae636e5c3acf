// The kernels for NEON, which every AArch64 machine has.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

#if defined(__aarch64__)

#include <arm_neon.h>

#define REGRAFT_NEON
namespace regraft::neon {
namespace {

#include "kernels.inl"

constexpr Kernels kernels = make_kernels("neon");

}  // namespace
}  // namespace regraft::neon

const regraft::Kernels* regraft::neon_kernels() { return &regraft::neon::kernels; }

#else

const regraft::Kernels* regraft::neon_kernels() { return nullptr; }

#endif
