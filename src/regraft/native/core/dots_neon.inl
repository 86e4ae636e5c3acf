// Dot products of codes and activations on NEON: by SDOT, which adds four products of bytes in 32 bits, where the file is
// compiled for it. See matmul.inl.

// Codes as signed bytes: narrow ones are, and wide ones become so by taking 128 off.
template <class Source>
static inline void signed_quad(const std::uint8_t* block, int i, int8x16_t* rows) {
  const Quad w = Source::quad(block, i);
  const uint8x16_t flip = vdupq_n_u8(Source::is_wide ? 128 : 0);
  rows[0] = vreinterpretq_s8_u8(veorq_u8(w.low, flip)), rows[1] = vreinterpretq_s8_u8(veorq_u8(w.high, flip));
}
static inline int8x16_t four_columns(const std::int8_t* q) {
  std::int32_t word;
  std::memcpy(&word, q, sizeof word);
  return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

constexpr bool kTakesCentreOff = true;

#if defined(REGRAFT_DOTPROD)

template <class Source, int M>
static inline void dot_block(const std::uint8_t* block, const std::int8_t* q, std::ptrdiff_t stride, int quads, I8* dots) {
  for (int i = 0; i < quads; ++i) {
    int8x16_t w[2];
    signed_quad<Source>(block, i, w);
    for (int m = 0; m < M; ++m) {
      const int8x16_t four = four_columns(q + m * stride + 4 * i);
      dots[m].low = vdotq_s32(dots[m].low, w[0], four), dots[m].high = vdotq_s32(dots[m].high, w[1], four);
    }
  }
}

#else

template <class Source, int M>
static inline void dot_block(const std::uint8_t* block, const std::int8_t* q, std::ptrdiff_t stride, int quads, I8* dots) {
  int16x8_t narrow[M][4];  // of rows 2p and 2p+1, by columns: eight products of at most 15 * 127 stay in 16 bits
  int32x4_t wide[M][4];    // the same by pairs of columns
  for (int m = 0; m < M; ++m)
    for (int p = 0; p < 4; ++p) narrow[m][p] = vdupq_n_s16(0), wide[m][p] = vdupq_n_s32(0);
  for (int i = 0; i < quads; ++i) {
    int8x16_t w[2];
    signed_quad<Source>(block, i, w);
    const int8x8_t rows[4] = {vget_low_s8(w[0]), vget_high_s8(w[0]), vget_low_s8(w[1]), vget_high_s8(w[1])};
    for (int m = 0; m < M; ++m) {
      const int8x8_t four = vget_low_s8(four_columns(q + m * stride + 4 * i));
      for (int p = 0; p < 4; ++p)
        if (Source::is_wide)
          wide[m][p] = vpadalq_s16(wide[m][p], vmull_s8(rows[p], four));
        else
          narrow[m][p] = vmlal_s8(narrow[m][p], rows[p], four);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int p = 0; p < 4; ++p) wide[m][p] = vpadalq_s16(wide[m][p], narrow[m][p]);
    dots[m].low = vaddq_s32(dots[m].low, vpaddq_s32(wide[m][0], wide[m][1]));
    dots[m].high = vaddq_s32(dots[m].high, vpaddq_s32(wide[m][2], wide[m][3]));
  }
}

#endif

template <class Source, int M, int T>
static inline void dot_blocks(const std::uint8_t* block, std::size_t tile_bytes, const std::int8_t* q, std::ptrdiff_t stride,
                              int quads, I8 (*dots)[M]) {
  for (int t = 0; t < T; ++t) dot_block<Source, M>(block + t * tile_bytes, q, stride, quads, dots[t]);
}
