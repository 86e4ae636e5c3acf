// Dot products of codes and activations by VPMADDUBSW, which adds pairs of products in 16 bits. See matmul.inl.

template <class Source, int M>
static inline void dot_block(const std::uint8_t* block, const std::int8_t* q, std::ptrdiff_t stride, int quads,
                             const std::int32_t*, std::ptrdiff_t, I8* out) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[M];
  for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_si256();
  if constexpr (Source::is_wide) {
    for (int i = 0; i < quads; ++i) {
      // One side is to be unsigned: the sign goes over to the activations. 128 * 127 * 2 just fits in 16 bits.
      const __m256i w = _mm256_xor_si256(Source::quad(block, i).v, _mm256_set1_epi8(-128)), magnitude = _mm256_abs_epi8(w);
      for (int m = 0; m < M; ++m) {
        const __m256i signed_q = _mm256_sign_epi8(four_columns(q + m * stride + 4 * i), w);
        total[m] = _mm256_add_epi32(total[m], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_q), ones));
      }
    }
    for (int m = 0; m < M; ++m) out[m].v = total[m];
  } else {
    // Eight sums of pairs, each at most 2 * 15 * 127, add up to less than 2^15: they stay in 16 bits.
    for (int i = 0; i < quads; ++i) {
      const __m256i w = Source::quad(block, i).v;
      for (int m = 0; m < M; ++m)
        total[m] = _mm256_add_epi16(total[m], _mm256_maddubs_epi16(w, four_columns(q + m * stride + 4 * i)));
    }
    for (int m = 0; m < M; ++m) out[m].v = _mm256_madd_epi16(total[m], ones);
  }
}
