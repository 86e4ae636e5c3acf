// The kernels for AVX-VNNI: x86-64 without AVX-512, since Alder Lake. They differ from AVX2's in the dot products of bytes.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "kernels.hpp"

#if defined(__AVXVNNI__)

#include <immintrin.h>

#define REGRAFT_AVX2
#define REGRAFT_VNNI
namespace regraft::avxvnni {
namespace {

#include "kernels.inl"

constexpr Kernels kernels = make_kernels("avxvnni");

}  // namespace
}  // namespace regraft::avxvnni

const regraft::Kernels* regraft::avxvnni_kernels() { return &regraft::avxvnni::kernels; }

#else

const regraft::Kernels* regraft::avxvnni_kernels() { return nullptr; }

#endif
