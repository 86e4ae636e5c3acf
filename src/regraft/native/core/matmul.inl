// y = W x for quantised and floating-point tiles. Included inside an instruction set's namespace, after lanes.hpp.
//
// Each row's result is the same to the bit whatever other rows stand beside it: rows are only ever taken together to read
// the weights once.

// ---- 8-bit activations -----------------------------------------------------------------------------------------------

// How 32 columns of a tile are stored, and read by fours of columns. Codes of fewer bits may lie unpacked in bytes.
template <int Bits, int Codes = Bits>
struct Packed {
  static constexpr int fields = 8 / Bits;
  static constexpr int block_bytes = 32 * Bits;
  static constexpr int code_bits = Codes;
  static constexpr bool is_wide = Codes == 8;  // whether a code may have its eighth bit set
  static Quad quad(const std::uint8_t* block, int i) {
    const Quad word = load_quad(block + 32 * (i / fields));
    return Bits == 8 ? word : field(word, Bits * (i % fields), (1 << Bits) - 1);
  }
};
using U2 = Packed<2>;
using U4 = Packed<4>;
using U8 = Packed<8>;
template <class Source>
using Unpacked = Packed<8, Source::code_bits>;

// dot_blocks<Source, M, T>(block, tile_bytes, q, stride, quads, dots) adds to dots[t][m] the sums over 4 * `quads` columns,
// at most 32, of code * q, for M rows of activations and T tiles; of (code - 128) * q where codes are wide, if
// kTakesCentreOff.
#if defined(REGRAFT_VNNI)
#include "dots_vnni.inl"
#elif defined(REGRAFT_AVX2)
#include "dots_avx2.inl"
#elif defined(REGRAFT_NEON)
#include "dots_neon.inl"
#else
#include "dots_portable.inl"
#endif

constexpr int kTilesAtOnce = kRegisters == 16 ? 1 : 2;

template <class Source>
static inline void unpack_block(const std::uint8_t* block, std::uint8_t* bytes) {
  for (int i = 0; i < 8; ++i) store(bytes + 32 * i, Source::quad(block, i));
}

// Codes that are symmetric around the middle of their range come to a dot product as code - middle, which is whole;
// the others come as they are, or wide ones as code - 128, and what a group adds for that is added by offset_of.
template <class Source, bool Symmetric>
static inline I8 start_of(std::int32_t centre) {
  if (Source::is_wide) return splat_word(kTakesCentreOff ? 0 : centre);
  return Symmetric ? shift_right<8 - Source::code_bits>(splat_word(centre)) : splat_word(0);
}

// What a group adds for each unit of an activation's sum.
template <class Source>
static inline F8 offset_of(const Linear& w, std::size_t at, F8 scale) {
  const float centre = Source::is_wide ? 128.0f : 0.0f;
  if (w.minimum) return fma(splat(centre), scale, load(w.minimum + at));
  return scale * (splat(centre) - load(w.zero + at));
}

template <int M>
static inline void put(const F8* acc, const Linear& w, int tile, const Out& out, int row) {
  for (int m = 0; m < M; ++m) {
    float* y = out.y + static_cast<std::ptrdiff_t>(out.to ? out.to[row + m] : row + m) * out.stride + kTile * tile;
    F8 value = acc[m];
    if (w.bias) value = value + load(w.bias + kTile * tile);
    store(y, out.add ? load(y) + value : value);
  }
}

// The memory to ask for while codes are read: so far ahead of them, but nothing from `stop` on, since after an expert's last
// tile come the weights of another.
struct Ahead {
  std::ptrdiff_t distance;
  const std::uint8_t* stop;

  void ask(const std::uint8_t* codes) const {
    const std::uint8_t* next = codes + distance;
    prefetch(next < stop ? next : stop - 1);
  }
};

// T tiles, whose codes are `tile_bytes` apart, for M rows.
template <class Source, bool Symmetric, int M, int T>
static inline void integer_tile(const Linear& w, const std::uint8_t* codes, const Ahead& ahead, std::size_t tile_bytes, int tile,
                                const Rows& rows, int row, const Out& out) {
  const int blocks = (w.in + kBlock - 1) / kBlock, row_blocks = rows.stride / kBlock;
  const int blocks_per_group = (w.group + kBlock - 1) / kBlock, groups = w.groups();
  const std::int8_t* q = rows.q + static_cast<std::ptrdiff_t>(row) * rows.stride;
  const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(row) * row_blocks;
  const float *scales = rows.scale + first, *sums = rows.sum + first;
  const std::int32_t* centres = rows.centre + first;
  std::size_t at = static_cast<std::size_t>(tile) * groups * kTile;
  F8 acc[T][M];
  for (int t = 0; t < T; ++t)
    for (int m = 0; m < M; ++m) acc[t][m] = splat(0);
  F8 scale[T], offset[T];
  for (int block = 0, left = 0; block < blocks; ++block, --left, codes += Source::block_bytes) {
    if (left == 0) {  // of the group's blocks
      for (int t = 0; t < T; ++t) {
        const std::size_t group = at + static_cast<std::size_t>(t) * groups * kTile;
        scale[t] = load(w.scale + group);
        if (!Symmetric) offset[t] = offset_of<Source>(w, group, scale[t]);
      }
      at += kTile, left = blocks_per_group;
    }
    I8 dots[T][M];
    for (int m = 0; m < M; ++m) {
      const I8 start = start_of<Source, Symmetric>(centres[m * row_blocks + block]);
      for (int t = 0; t < T; ++t) dots[t][m] = start;
    }
    for (int t = 0; t < T; ++t)
      for (int line = 0; line < Source::block_bytes; line += 64) ahead.ask(codes + t * tile_bytes + line);
    const std::int8_t* four = q + kBlock * block;
    if (Source::block_bytes == 256 && w.in - kBlock * block < kBlock)  // only bytes may end within a block
      dot_blocks<Source, M, T>(codes, tile_bytes, four, rows.stride, (w.in - kBlock * block) / 4, dots);
    else
      dot_blocks<Source, M, T>(codes, tile_bytes, four, rows.stride, kBlock / 4, dots);
    for (int m = 0; m < M; ++m) {
      const F8 unit = splat(scales[m * row_blocks + block]);
      for (int t = 0; t < T; ++t) acc[t][m] = fma(to_float(dots[t][m]) * unit, scale[t], acc[t][m]);
      if (!Symmetric)
        for (int t = 0; t < T; ++t) acc[t][m] = fma(offset[t], splat(sums[m * row_blocks + block]), acc[t][m]);
    }
  }
  for (int t = 0; t < T; ++t) put<M>(acc[t], w, tile + t, out, row);
}

// Tiles of one block of columns: the `up` factor of an adapter, or an expert's part of `down`. A step has very many of these,
// and they are very small.
template <class Source, int Quads, bool LooksAhead = false>
static inline void short_tiles(const Linear& w, const Rows& rows, const Out& out, int first, int last) {
  constexpr int kTileBytes = Source::block_bytes / (kBlock / 4) * Quads;
  const std::ptrdiff_t row_blocks = rows.stride / kBlock;
  for (int row = 0; row < rows.count; ++row) {
    const std::int8_t* q = rows.q + static_cast<std::ptrdiff_t>(row) * rows.stride;
    const std::uint8_t* codes = w.data + first * w.tile_bytes();
    const F8 unit = splat(rows.scale[row * row_blocks]);
    const I8 start = start_of<Source, true>(rows.centre[row * row_blocks]);
    for (int tile = first; tile < last; ++tile, codes += kTileBytes) {
      if (LooksAhead)
        for (int line = 0; line < kTileBytes; line += 64) prefetch(codes + w.ahead + line);
      I8 dots[1][1] = {{start}};
      dot_blocks<Source, 1, 1>(codes, 0, q, 0, Quads, dots);
      const F8 value = fma(to_float(dots[0][0]) * unit, load(w.scale + kTile * tile), splat(0));
      put<1>(&value, w, tile, out, row);
    }
  }
}

// ---- floating-point activations --------------------------------------------------------------------------------------

// The columns of a tile one by one as floats: codes as they are, or the weights themselves.
struct FloatU8 {
  static constexpr int columns = 4;
  static constexpr int step_bytes = 32;
  static void read(const std::uint8_t* p, F8* w) {
    const I8 v = load_words(p);
    w[0] = to_float(field<0>(v, 255)), w[1] = to_float(field<8>(v, 255));
    w[2] = to_float(field<16>(v, 255)), w[3] = to_float(field<24>(v, 255));
  }
};
struct FloatU4 {
  static constexpr int columns = 8;
  static constexpr int step_bytes = 32;
  static void read(const std::uint8_t* p, F8* w) {
    const I8 v = load_words(p);
    w[0] = to_float(field<0>(v, 15)), w[1] = to_float(field<8>(v, 15));
    w[2] = to_float(field<16>(v, 15)), w[3] = to_float(field<24>(v, 15));
    w[4] = to_float(field<4>(v, 15)), w[5] = to_float(field<12>(v, 15));
    w[6] = to_float(field<20>(v, 15)), w[7] = to_float(field<28>(v, 15));
  }
};
struct FloatU2 {
  static constexpr int columns = 16;
  static constexpr int step_bytes = 32;
  template <int Pair>
  static void read_four(I8 v, F8* w) {
    w[0] = to_float(field<Pair>(v, 3)), w[1] = to_float(field<8 + Pair>(v, 3));
    w[2] = to_float(field<16 + Pair>(v, 3)), w[3] = to_float(field<24 + Pair>(v, 3));
  }
  static void read(const std::uint8_t* p, F8* w) {
    const I8 v = load_words(p);
    read_four<0>(v, w), read_four<2>(v, w + 4), read_four<4>(v, w + 8), read_four<6>(v, w + 12);
  }
};
template <class T>
struct FloatDense {
  static constexpr int columns = 4;
  static constexpr int step_bytes = 32 * static_cast<int>(sizeof(T));
  static void read(const std::uint8_t* p, F8* w) {
    for (int i = 0; i < 4; ++i) w[i] = load(reinterpret_cast<const T*>(p) + 8 * i);
  }
};

template <class Source, int M>
static inline void float_tile(const Linear& w, int tile, const Rows& rows, int row, const Out& out) {
  const std::uint8_t* codes = w.data + tile * w.tile_bytes();
  const float* x = rows.x + static_cast<std::ptrdiff_t>(row) * rows.stride;
  std::size_t at = static_cast<std::size_t>(tile) * w.groups() * kTile;
  const bool quantized = w.is_quantized();
  F8 acc[M], group_acc[M];
  for (int m = 0; m < M; ++m) acc[m] = splat(0);
  for (int k = 0; k < w.in; at += kTile) {
    const int end = k + w.group < w.in ? k + w.group : w.in;
    F8 centre = splat(0);
    if (quantized && !w.minimum) centre = w.zero ? load(w.zero + at) : splat(static_cast<float>(1 << (bits_of(w.codes) - 1)));
    F8 total[M];
    for (int m = 0; m < M; ++m) group_acc[m] = total[m] = splat(0);
    for (; k < end; k += Source::columns, codes += Source::step_bytes) {
      F8 columns[Source::columns];
      Source::read(codes, columns);
      for (int i = 0; i < Source::columns; ++i) {
        const F8 weight = columns[i] - centre;
        for (int m = 0; m < M; ++m) {
          const F8 value = splat(x[m * rows.stride + k + i]);
          group_acc[m] = fma(weight, value, group_acc[m]);
          if (w.minimum) total[m] = total[m] + value;
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      if (!quantized) {
        acc[m] = acc[m] + group_acc[m];
        continue;
      }
      acc[m] = fma(group_acc[m], load(w.scale + at), acc[m]);
      if (w.minimum) acc[m] = fma(total[m], load(w.minimum + at), acc[m]);
    }
  }
  put<M>(acc, w, tile, out, row);
}

// ---- rows by fours, tiles one by one -----------------------------------------------------------------------------------

template <template <int> class Kernel, class... Args>
static inline void all_rows(const Rows& rows, Args&&... args) {
  int row = 0;
  for (; row + 4 <= rows.count; row += 4) Kernel<4>::run(row, args...);
  switch (rows.count - row) {
    case 3: return Kernel<3>::run(row, args...);
    case 2: return Kernel<2>::run(row, args...);
    case 1: return Kernel<1>::run(row, args...);
    default: return;
  }
}
template <class Source, bool Symmetric, int T>
struct IntegerTiles {
  template <int M>
  struct For {
    static void run(int row, const Linear& w, const std::uint8_t* codes, const Ahead& ahead, std::size_t tile_bytes, int tile,
                    const Rows& rows, const Out& out) {
      integer_tile<Source, Symmetric, M, T>(w, codes, ahead, tile_bytes, tile, rows, row, out);
    }
  };
};
template <class Source>
struct FloatTiles {
  template <int M>
  struct For {
    static void run(int row, const Linear& w, int tile, const Rows& rows, const Out& out) {
      float_tile<Source, M>(w, tile, rows, row, out);
    }
  };
};

constexpr int kUnpackFrom = 12;  // rows from which a tile is better unpacked once than in every pass over it
static_assert(kTilesAtOnce <= kMostTiles, "the scratch is too small");

// T tiles, of those up to `last`, for all rows.
template <class Source, bool Symmetric, int T>
static void integer_tiles_for(const Linear& w, const Rows& rows, const Out& out, int tile, int last, std::uint8_t* scratch) {
  constexpr std::ptrdiff_t kOneTile = 1024;  // ahead; tiles that are taken at once are streams side by side
  const std::uint8_t* codes = w.data + tile * w.tile_bytes();
  const std::ptrdiff_t near = T == 1 ? kOneTile : static_cast<std::ptrdiff_t>(T * w.tile_bytes());
  const Ahead ahead{w.ahead ? w.ahead : near, w.data + last * w.tile_bytes() + w.ahead};
  if (Source::block_bytes == 256 || rows.count < kUnpackFrom)
    return all_rows<IntegerTiles<Source, Symmetric, T>::template For>(rows, w, codes, ahead, w.tile_bytes(), tile, rows, out);
  const int blocks = T * w.in / kBlock;
  for (int block = 0; block < blocks; ++block) unpack_block<Source>(codes + block * Source::block_bytes, scratch + 256 * block);
  all_rows<IntegerTiles<Unpacked<Source>, Symmetric, T>::template For>(
      rows, w, static_cast<const std::uint8_t*>(scratch), Ahead{near, scratch + 256 * blocks}, std::size_t{8} * w.in, tile, rows, out);
}

template <class Source, bool Symmetric>
static void integer_tiles(const Linear& w, const Rows& rows, const Out& out, int first, int last, std::uint8_t* scratch) {
  if (Source::is_wide && Symmetric) switch (w.in / 4) {
      case 2: return short_tiles<Source, 2>(w, rows, out, first, last);
      case 4: return short_tiles<Source, 4>(w, rows, out, first, last);
      case 6: return short_tiles<Source, 6>(w, rows, out, first, last);
      case 8: return short_tiles<Source, 8>(w, rows, out, first, last);
    }
  if (!Source::is_wide && Symmetric && w.in == kBlock && rows.count == 1) return short_tiles<Source, kBlock / 4, true>(w, rows, out, first, last);
  int tile = first;
  // One row alone waits for memory, which is best read straight on; but a factor's few tiles are in the caches by now.
  if (rows.count > 1 || last - first <= kTilesAtOnce)
    for (; tile + kTilesAtOnce <= last; tile += kTilesAtOnce) integer_tiles_for<Source, Symmetric, kTilesAtOnce>(w, rows, out, tile, last, scratch);
  for (; tile < last; ++tile) integer_tiles_for<Source, Symmetric, 1>(w, rows, out, tile, last, scratch);
}

template <class Source>
static void float_tiles(const Linear& w, const Rows& rows, const Out& out, int first, int last) {
  for (int tile = first; tile < last; ++tile) all_rows<FloatTiles<Source>::template For>(rows, w, tile, rows, out);
}

template <class Source, class Dense>
static void code_tiles(const Linear& w, const Rows& rows, const Out& out, int first, int last, std::uint8_t* scratch) {
  if (!rows.q) return float_tiles<Dense>(w, rows, out, first, last);
  if (w.zero || w.minimum) return integer_tiles<Source, false>(w, rows, out, first, last, scratch);
  return integer_tiles<Source, true>(w, rows, out, first, last, scratch);
}

static void matmul(const Linear& w, const Rows& rows, const Out& out, int first, int last, std::uint8_t* scratch) {
  switch (w.codes) {
    case Codes::u2: return code_tiles<U2, FloatU2>(w, rows, out, first, last, scratch);
    case Codes::u4: return code_tiles<U4, FloatU4>(w, rows, out, first, last, scratch);
    case Codes::u8: return code_tiles<U8, FloatU8>(w, rows, out, first, last, scratch);
    case Codes::f16: return float_tiles<FloatDense<Half>>(w, rows, out, first, last);
    case Codes::f32: return float_tiles<FloatDense<float>>(w, rows, out, first, last);
  }
}

static void quantize(const float* x, int count, std::int8_t* q, float* scale, float* sums, std::int32_t* centres) {
  for (int block = 0; block < count / kBlock; ++block, x += kBlock, q += kBlock) {
    F8 v[4], top = splat(0);
    for (int i = 0; i < 4; ++i) v[i] = load(x + 8 * i), top = max(top, abs(v[i]));
    const float peak = largest(top), unit = peak / 127.0f, inverse = peak > 0 ? 127.0f / peak : 0.0f;
    alignas(32) float whole[kBlock];
    F8 total = splat(0);
    for (int i = 0; i < 4; ++i) {
      const F8 n = round(v[i] * splat(inverse));
      total = total + n;
      store(whole + 8 * i, n);
    }
    for (int i = 0; i < kBlock; ++i) q[i] = static_cast<std::int8_t>(whole[i]);
    scale[block] = unit;
    const float whole_sum = sum(total);
    sums[block] = unit * whole_sum;
    centres[block] = -128 * static_cast<std::int32_t>(whole_sum);
  }
}
