// Dot products of codes and activations in plain C++. See matmul.inl.

template <class Source, int M>
static inline void dot_block(const std::uint8_t* block, const std::int8_t* q, std::ptrdiff_t stride, int quads,
                             const std::int32_t*, std::ptrdiff_t, I8* out) {
  for (int m = 0; m < M; ++m)
    for (int r = 0; r < kTile; ++r) out[m].v[r] = 0;
  for (int i = 0; i < quads; ++i) {
    const Quad codes = Source::quad(block, i);
    std::int16_t w[32];
    for (int byte = 0; byte < 32; ++byte) w[byte] = static_cast<std::int16_t>(codes.v[byte] - (Source::is_wide ? 128 : 0));
    for (int m = 0; m < M; ++m)
      for (int r = 0; r < kTile; ++r)
        for (int j = 0; j < 4; ++j) out[m].v[r] += w[4 * r + j] * q[m * stride + 4 * i + j];
  }
}
