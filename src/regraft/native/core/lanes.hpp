// Eight float lanes, the only vector type of the kernels: registers where the file is compiled for them, else arrays.
// Included once per instruction set, inside its namespace.
//
// Every operation is exact to the last bit, so that all sets compute the same; but for fma, which the portable lanes round
// twice where the compiler's target has none.

// How many of them fit in registers.
#if defined(__AVX512VL__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

#if defined(REGRAFT_AVX2)
#include "lanes_avx2.hpp"
#elif defined(REGRAFT_NEON)
#include "lanes_neon.hpp"
#else
#include "lanes_portable.hpp"
#endif

static inline float sum(F8 a) {
  alignas(32) float p[8];
  store(p, a);
  return ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]));
}
static inline float largest(F8 a) {
  alignas(32) float p[8];
  store(p, a);
  float m = p[0];
  for (int i = 1; i < 8; ++i) m = p[i] > m ? p[i] : m;
  return m;
}

// e^x to 2 ulp: x = n ln 2 + r, and a polynomial of degree 5 in r (Cephes' expf). Below -87 it is 0 as good as.
static inline F8 exp(F8 x) {
  x = max(min(x, splat(88.0f)), splat(-87.0f));
  const F8 n = round(x * splat(1.44269504088896341f));
  F8 r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  F8 p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fma(p, r, splat(c));
  return fma(p, r * r, r + splat(1.0f)) * exp2_whole(n);
}
