// The kernels for NEON with the dot products of Armv8.2. This file alone is compiled for them.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include <arm_neon.h>

#define REGRAFT_NEON
#define REGRAFT_DOTPROD
namespace regraft::neon_dotprod {
namespace {

#include "kernels.inl"

constexpr Kernels kernels = make_kernels("neon-dotprod");

}  // namespace
}  // namespace regraft::neon_dotprod

const regraft::Kernels* regraft::neon_dotprod_kernels() { return &regraft::neon_dotprod::kernels; }

#else

const regraft::Kernels* regraft::neon_dotprod_kernels() { return nullptr; }

#endif
