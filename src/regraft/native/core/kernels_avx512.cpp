// The kernels for AVX-512 with VNNI: x86-64 since Ice Lake and Zen 4. They differ from AVX2's in the dot products of bytes,
// which registers of 256 bits hold, and in what the compiler makes of twice as many registers.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__)

#include <immintrin.h>

#define REGRAFT_AVX2
#define REGRAFT_VNNI
namespace regraft::avx512 {
namespace {

#include "kernels.inl"

constexpr Kernels kernels = make_kernels("avx512");

}  // namespace
}  // namespace regraft::avx512

const regraft::Kernels* regraft::avx512_kernels() { return &regraft::avx512::kernels; }

#else

const regraft::Kernels* regraft::avx512_kernels() { return nullptr; }

#endif
