// Eight float lanes, the only vector type of the kernels: AVX2 registers where the file is compiled for them, else arrays
// that any C++17 compiler turns into what the target has. Included once per instruction set, inside its namespace.
//
// Every operation is exact to the last bit but for fma, which the portable lanes round twice.

#if defined(REGRAFT_AVX2)

struct F8 {
  __m256 v;
};
struct I8 {
  __m256i v;
};

static inline F8 splat(float x) { return {_mm256_set1_ps(x)}; }
static inline F8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline void store(float* p, F8 a) { _mm256_storeu_ps(p, a.v); }
static inline F8 load(const Half* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
static inline void store(Half* p, F8 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline F8 load(const std::int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
static inline F8 load(const std::uint8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
static inline F8 operator+(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline F8 operator-(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline F8 operator*(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline F8 operator/(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline F8 max(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline F8 min(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
static inline F8 abs(F8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
static inline F8 round(F8 a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for whole n in [-126, 127].
static inline F8 exp2_whole(F8 n) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23))};
}
static inline F8 to_float(I8 a) { return {_mm256_cvtepi32_ps(a.v)}; }
// Bytes 0 to 3 of each of eight 32-bit words; the others likewise.
static inline I8 load_words(const std::uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
template <int Shift>
static inline I8 field(I8 a, int mask) {
  return {_mm256_and_si256(_mm256_srli_epi32(a.v, Shift), _mm256_set1_epi32(mask))};
}
static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#else

struct F8 {
  float v[8];
};
struct I8 {
  std::int32_t v[8];
};

template <class Op>
static inline F8 each(Op op) {
  F8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = op(i);
  return r;
}
static inline F8 splat(float x) { return each([&](int) { return x; }); }
static inline F8 load(const float* p) { return each([&](int i) { return p[i]; }); }
static inline void store(float* p, F8 a) { std::memcpy(p, a.v, sizeof a.v); }
static inline F8 load(const Half* p) { return each([&](int i) { return to_float(p[i]); }); }
static inline void store(Half* p, F8 a) {
  for (int i = 0; i < 8; ++i) p[i] = to_half(a.v[i]);
}
static inline F8 load(const std::int8_t* p) { return each([&](int i) { return static_cast<float>(p[i]); }); }
static inline F8 load(const std::uint8_t* p) { return each([&](int i) { return static_cast<float>(p[i]); }); }
static inline F8 operator+(F8 a, F8 b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
static inline F8 operator-(F8 a, F8 b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
static inline F8 operator*(F8 a, F8 b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
static inline F8 operator/(F8 a, F8 b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
static inline F8 fma(F8 a, F8 b, F8 c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
static inline F8 max(F8 a, F8 b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F8 min(F8 a, F8 b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F8 abs(F8 a) { return each([&](int i) { return a.v[i] < 0 ? -a.v[i] : a.v[i]; }); }
// To the nearest, ties to even, for |a| < 2^22: the sum has no bits left for a fraction.
static inline F8 round(F8 a) {
  return each([&](int i) { return (a.v[i] + 12582912.0f) - 12582912.0f; });
}
static inline F8 exp2_whole(F8 n) {
  return each([&](int i) {
    const std::int32_t bits = (static_cast<std::int32_t>(n.v[i]) + 127) << 23;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  });
}
static inline F8 to_float(I8 a) { return each([&](int i) { return static_cast<float>(a.v[i]); }); }
static inline I8 load_words(const std::uint8_t* p) {
  I8 r;
  for (int i = 0; i < 8; ++i)  // little-endian on any machine
    r.v[i] = static_cast<std::int32_t>(p[4 * i] | p[4 * i + 1] << 8 | p[4 * i + 2] << 16 |
                                       static_cast<std::uint32_t>(p[4 * i + 3]) << 24);
  return r;
}
template <int Shift>
static inline I8 field(I8 a, int mask) {
  I8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) >> Shift) & mask;
  return r;
}
static inline void prefetch(const void*) {}

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
