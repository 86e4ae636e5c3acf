// The kernels for AVX2 with FMA and F16C: x86-64 since Haswell and Excavator. This file alone is compiled for them.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#define REGRAFT_AVX2
namespace regraft::avx2 {
namespace {

#include "kernels.inl"

constexpr Kernels kernels = make_kernels("avx2");

}  // namespace
}  // namespace regraft::avx2

const regraft::Kernels* regraft::avx2_kernels() { return &regraft::avx2::kernels; }

#else

const regraft::Kernels* regraft::avx2_kernels() { return nullptr; }

#endif
