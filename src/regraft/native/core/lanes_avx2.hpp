// The lanes as AVX2 registers, with FMA and F16C. See lanes.hpp.

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
static inline void store_bytes(std::uint8_t* p, F8 a) {
  const __m256i words = _mm256_cvtps_epi32(a.v);
  const __m128i halves = _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(halves, halves));
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
static inline I8 splat_word(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
template <int Shift>
static inline I8 shift_right(I8 a) { return {_mm256_srai_epi32(a.v, Shift)}; }
// Bytes 0 to 3 of each of eight 32-bit words; the others likewise.
static inline I8 load_words(const std::uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
template <int Shift>
static inline I8 field(I8 a, int mask) {
  return {_mm256_and_si256(_mm256_srli_epi32(a.v, Shift), _mm256_set1_epi32(mask))};
}

// Four columns of a tile's codes: byte 4r+j is row r's column j. Memory is aligned to 32 bytes.
struct Quad {
  __m256i v;
};
static inline Quad load_quad(const std::uint8_t* p) { return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p))}; }
static inline void store(std::uint8_t* p, Quad a) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), a.v); }
static inline Quad field(Quad a, int shift, int mask) {
  return {_mm256_and_si256(_mm256_srli_epi16(a.v, shift), _mm256_set1_epi8(static_cast<char>(mask)))};
}
// Four activations beside each row's codes.
static inline __m256i four_columns(const std::int8_t* q) {
  std::int32_t word;
  std::memcpy(&word, q, sizeof word);
  return _mm256_set1_epi32(word);
}

// Into the second cache: weights are asked for further ahead than the first one holds, and it waits for few lines at once.
static inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }
