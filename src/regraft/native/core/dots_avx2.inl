// Dot products of codes and activations by VPMADDUBSW, which adds pairs of products in 16 bits. See matmul.inl.

constexpr bool kTakesCentreOff = true;

template <class Source, int M>
static inline void dot_block(const std::uint8_t* block, const std::int8_t* q, std::ptrdiff_t stride, int quads, I8* dots) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (Source::is_wide) {
    for (int i = 0; i < quads; ++i) {
      // One side is to be unsigned: the sign goes over to the activations. 128 * 127 * 2 just fits in 16 bits.
      const __m256i w = _mm256_xor_si256(Source::quad(block, i).v, _mm256_set1_epi8(-128)), magnitude = _mm256_abs_epi8(w);
      for (int m = 0; m < M; ++m) {
        const __m256i signed_q = _mm256_sign_epi8(four_columns(q + m * stride + 4 * i), w);
        dots[m].v = _mm256_add_epi32(dots[m].v, _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_q), ones));
      }
    }
  } else {
    // Eight sums of pairs, each at most 2 * 15 * 127, add up to less than 2^15: they stay in 16 bits.
    __m256i total[M];
    for (int m = 0; m < M; ++m) total[m] = _mm256_setzero_si256();
    for (int i = 0; i < quads; ++i) {
      const __m256i w = Source::quad(block, i).v;
      for (int m = 0; m < M; ++m)
        total[m] = _mm256_add_epi16(total[m], _mm256_maddubs_epi16(w, four_columns(q + m * stride + 4 * i)));
    }
    for (int m = 0; m < M; ++m) dots[m].v = _mm256_add_epi32(dots[m].v, _mm256_madd_epi16(total[m], ones));
  }
}

template <class Source, int M, int T>
static inline void dot_blocks(const std::uint8_t* block, std::size_t tile_bytes, const std::int8_t* q, std::ptrdiff_t stride,
                              int quads, I8 (*dots)[M]) {
  for (int t = 0; t < T; ++t) dot_block<Source, M>(block + t * tile_bytes, q, stride, quads, dots[t]);
}
