// Dot products of codes and activations by VPDPBUSD, which adds four products of unsigned by signed bytes in 32 bits. See
// matmul.inl.

static inline __m256i add_products(__m256i total, __m256i codes, __m256i q) {
#if defined(__AVX512VNNI__)
  return _mm256_dpbusd_epi32(total, codes, q);
#else
  return _mm256_dpbusd_avx_epi32(total, codes, q);
#endif
}

constexpr bool kTakesCentreOff = false;

template <class Source, int M, int T>
static inline void dot_blocks(const std::uint8_t* block, std::size_t tile_bytes, const std::int8_t* q, std::ptrdiff_t stride,
                              int quads, I8 (*dots)[M]) {
  if constexpr (M * T == 1) {  // each product waits for the one before it: two sums are twice as fast
    __m256i other = _mm256_setzero_si256();
    for (int i = 0; i < quads; i += 2) {
      dots[0][0].v = add_products(dots[0][0].v, Source::quad(block, i).v, four_columns(q + 4 * i));
      other = add_products(other, Source::quad(block, i + 1).v, four_columns(q + 4 * i + 4));
    }
    dots[0][0].v = _mm256_add_epi32(dots[0][0].v, other);
    return;
  }
  for (int i = 0; i < quads; ++i) {
    __m256i w[T];
    for (int t = 0; t < T; ++t) w[t] = Source::quad(block + t * tile_bytes, i).v;
    for (int m = 0; m < M; ++m) {
      const __m256i four = four_columns(q + m * stride + 4 * i);
      for (int t = 0; t < T; ++t) dots[t][m].v = add_products(dots[t][m].v, w[t], four);
    }
  }
}
