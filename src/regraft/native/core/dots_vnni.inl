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
static inline void dot_block(const std::uint8_t* block, const std::int8_t* q, std::ptrdiff_t stride, int quads,
                             const std::int32_t* centre, std::ptrdiff_t centre_stride, I8* out) {
  for (int m = 0; m < M; ++m) out[m].v = Source::is_wide ? _mm256_set1_epi32(centre[m * centre_stride]) : _mm256_setzero_si256();
  for (int i = 0; i < quads; ++i) {
    const __m256i w = Source::quad(block, i).v;
    for (int m = 0; m < M; ++m) out[m].v = add_products(out[m].v, w, four_columns(q + m * stride + 4 * i));
  }
}
