// Dot products of codes and activations in plain C++. See matmul.inl.

constexpr bool kTakesCentreOff = true;

template <class Source, int M, int T>
static inline void dot_blocks(const std::uint8_t* block, std::size_t tile_bytes, const std::int8_t* q, std::ptrdiff_t stride,
                              int quads, I8 (*dots)[M]) {
  for (int t = 0; t < T; ++t)
    for (int i = 0; i < quads; ++i) {
      const Quad codes = Source::quad(block + t * tile_bytes, i);
      std::int16_t w[32];
      for (int byte = 0; byte < 32; ++byte) w[byte] = static_cast<std::int16_t>(codes.v[byte] - (Source::is_wide ? 128 : 0));
      for (int m = 0; m < M; ++m)
        for (int r = 0; r < kTile; ++r)
          for (int j = 0; j < 4; ++j) dots[t][m].v[r] += w[4 * r + j] * q[m * stride + 4 * i + j];
    }
}
