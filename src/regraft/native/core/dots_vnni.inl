// Dot products of codes and activations by VPDPBUSD, which adds four products of unsigned by signed bytes in 32 bits. See
// matmul.inl.

static inline __m256i add_products(__m256i total, __m256i codes, __m256i q) {
#if defined(__AVX512VNNI__)
  return _mm256_dpbusd_epi32(total, codes, q);
#else
  return _mm256_dpbusd_avx_epi32(total, codes, q);
#endif
}

template <class Source, int M>
static inline void dot_block(const std::uint8_t* block, const std::int8_t* q, std::ptrdiff_t stride, int quads, I8* out) {
  const __m256i centre = _mm256_set1_epi8(-128);  // 128, unsigned
  __m256i total[M], excess[M];                    // of code * q, and of 128 * q
  for (int m = 0; m < M; ++m) total[m] = excess[m] = _mm256_setzero_si256();
  for (int i = 0; i < quads; ++i) {
    const __m256i w = Source::quad(block, i).v;
    for (int m = 0; m < M; ++m) {
      const __m256i four = four_columns(q + m * stride + 4 * i);
      total[m] = add_products(total[m], w, four);
      if (Source::is_wide) excess[m] = add_products(excess[m], centre, four);
    }
  }
  for (int m = 0; m < M; ++m) out[m].v = _mm256_sub_epi32(total[m], excess[m]);
}
