// y = W x for quantised and floating-point tiles. Included inside an instruction set's namespace, after lanes.hpp.
//
// Each row's result is the same to the bit whatever other rows stand beside it: rows are only ever taken together to read
// the weights once.

// ---- 8-bit activations -----------------------------------------------------------------------------------------------

// How 32 columns of a tile are stored, and read by fours of columns.
template <int Bits, bool Wide = Bits == 8>
struct Packed {
  static constexpr int fields = 8 / Bits;
  static constexpr int block_bytes = 32 * Bits;
  static constexpr bool is_wide = Wide;  // whether a code may have its eighth bit set
  static Quad quad(const std::uint8_t* block, int i) {
    const Quad word = load_quad(block + 32 * (i / fields));
    return Bits == 8 ? word : field(word, Bits * (i % fields), (1 << Bits) - 1);
  }
};
using U2 = Packed<2>;
using U4 = Packed<4>;
template <bool Wide>
using Bytes = Packed<8, Wide>;

// dot_block<Source, M>(block, q, stride, quads, centre, centre_stride, out): the sums over 4 * `quads` columns, at most 32,
// of code * q, or of (code - 128) * q where codes are wide, for M rows of activations.
#if defined(REGRAFT_VNNI)
#include "dots_vnni.inl"
#elif defined(REGRAFT_AVX2)
#include "dots_avx2.inl"
#elif defined(REGRAFT_NEON)
#include "dots_neon.inl"
#else
#include "dots_portable.inl"
#endif

template <class Source>
static inline void unpack_block(const std::uint8_t* block, std::uint8_t* bytes) {
  for (int i = 0; i < 8; ++i) store(bytes + 32 * i, Source::quad(block, i));
}

// What a group adds for each unit of an activation's sum, in the codes as the dot product sees them.
template <class Source>
static inline F8 offset_of(const Linear& w, std::size_t at, F8 scale) {
  const float centre = Source::is_wide ? 128.0f : 0.0f;
  if (w.minimum) return fma(splat(centre), scale, load(w.minimum + at));
  if (w.zero) return scale * (splat(centre) - load(w.zero + at));
  return scale * splat(centre - static_cast<float>(1 << (bits_of(w.codes) - 1)));
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

template <class Source, int M>
static inline void integer_tile(const Linear& w, const std::uint8_t* codes, int tile, const Rows& rows, int row,
                                const Out& out) {
  const int blocks = (w.in + kBlock - 1) / kBlock, row_blocks = rows.stride / kBlock;
  const int blocks_per_group = (w.group + kBlock - 1) / kBlock;
  const std::int8_t* q = rows.q + static_cast<std::ptrdiff_t>(row) * rows.stride;
  const float* scales = rows.scale + static_cast<std::ptrdiff_t>(row) * row_blocks;
  const float* sums = rows.sum + static_cast<std::ptrdiff_t>(row) * row_blocks;
  const std::int32_t* centres = rows.centre + static_cast<std::ptrdiff_t>(row) * row_blocks;
  std::size_t at = static_cast<std::size_t>(tile) * w.groups() * kTile;
  F8 acc[M];
  for (int m = 0; m < M; ++m) acc[m] = splat(0);
  for (int block = 0; block < blocks; at += kTile) {
    const F8 scale = load(w.scale + at), offset = offset_of<Source>(w, at, scale);
    const int end = block + blocks_per_group < blocks ? block + blocks_per_group : blocks;
    for (; block < end; ++block) {
      I8 dots[M];
      prefetch(codes + 1024);
      prefetch(codes + 1024 + 64);
      if (Source::block_bytes == 256 && w.in - kBlock * block < kBlock)  // only bytes may end within a block
        dot_block<Source, M>(codes, q + kBlock * block, rows.stride, (w.in - kBlock * block) / 4, centres + block, row_blocks, dots);
      else
        dot_block<Source, M>(codes, q + kBlock * block, rows.stride, kBlock / 4, centres + block, row_blocks, dots);
      codes += Source::block_bytes;
      for (int m = 0; m < M; ++m) {
        acc[m] = fma(to_float(dots[m]) * splat(scales[m * row_blocks + block]), scale, acc[m]);
        acc[m] = fma(offset, splat(sums[m * row_blocks + block]), acc[m]);
      }
    }
  }
  put<M>(acc, w, tile, out, row);
}

// Tiles of one block of columns: the `up` factor of an adapter, of which a step has very many that are very small.
template <class Source, int Quads>
static inline void short_tiles(const Linear& w, const Rows& rows, const Out& out, int first, int last) {
  const std::ptrdiff_t row_blocks = rows.stride / kBlock;
  for (int row = 0; row < rows.count; ++row) {
    const std::int8_t* q = rows.q + static_cast<std::ptrdiff_t>(row) * rows.stride;
    const std::uint8_t* codes = w.data + first * w.tile_bytes();
    const F8 scale = splat(rows.scale[row * row_blocks]), sum = splat(rows.sum[row * row_blocks]);
    for (int tile = first; tile < last; ++tile, codes += 32 * Quads) {
      const F8 unit = load(w.scale + kTile * tile);
      I8 dots;
      dot_block<Source, 1>(codes, q, 0, Quads, rows.centre + row * row_blocks, 0, &dots);
      F8 value = fma(to_float(dots) * scale, unit, splat(0));
      value = fma(offset_of<Source>(w, kTile * tile, unit), sum, value);
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

template <template <class, int> class Kernel, class Source, class... Args>
static inline void all_rows(const Rows& rows, Args&&... args) {
  int row = 0;
  for (; row + 4 <= rows.count; row += 4) Kernel<Source, 4>::run(row, args...);
  switch (rows.count - row) {
    case 3: return Kernel<Source, 3>::run(row, args...);
    case 2: return Kernel<Source, 2>::run(row, args...);
    case 1: return Kernel<Source, 1>::run(row, args...);
    default: return;
  }
}
template <class Source, int M>
struct IntegerTile {
  static void run(int row, const Linear& w, const std::uint8_t* codes, int tile, const Rows& rows, const Out& out) {
    integer_tile<Source, M>(w, codes, tile, rows, row, out);
  }
};
template <class Source, int M>
struct FloatTile {
  static void run(int row, const Linear& w, int tile, const Rows& rows, const Out& out) {
    float_tile<Source, M>(w, tile, rows, row, out);
  }
};

constexpr int kUnpackFrom = 12;  // rows from which a tile is better unpacked once than in every pass over it

template <class Source>
static void integer_tiles(const Linear& w, const Rows& rows, const Out& out, int first, int last, std::uint8_t* scratch) {
  if constexpr (Source::block_bytes == 256) switch (w.in / 4) {
      case 2: return short_tiles<Source, 2>(w, rows, out, first, last);
      case 4: return short_tiles<Source, 4>(w, rows, out, first, last);
      case 6: return short_tiles<Source, 6>(w, rows, out, first, last);
      case 8: return short_tiles<Source, 8>(w, rows, out, first, last);
    }
  for (int tile = first; tile < last; ++tile) {
    const std::uint8_t* codes = w.data + tile * w.tile_bytes();
    if (Source::block_bytes == 256 || rows.count < kUnpackFrom) {
      all_rows<IntegerTile, Source>(rows, w, codes, tile, rows, out);
      continue;
    }
    for (int block = 0; block < w.in / kBlock; ++block)
      unpack_block<Source>(codes + block * Source::block_bytes, scratch + 256 * block);
    all_rows<IntegerTile, Bytes<false>>(rows, w, static_cast<const std::uint8_t*>(scratch), tile, rows, out);
  }
}

template <class Source>
static void float_tiles(const Linear& w, const Rows& rows, const Out& out, int first, int last) {
  for (int tile = first; tile < last; ++tile) all_rows<FloatTile, Source>(rows, w, tile, rows, out);
}

static void matmul(const Linear& w, const Rows& rows, const Out& out, int first, int last, std::uint8_t* scratch) {
  const bool integer = rows.q != nullptr;
  switch (w.codes) {
    case Codes::u2:
      return integer ? integer_tiles<U2>(w, rows, out, first, last, scratch) : float_tiles<FloatU2>(w, rows, out, first, last);
    case Codes::u4:
      return integer ? integer_tiles<U4>(w, rows, out, first, last, scratch) : float_tiles<FloatU4>(w, rows, out, first, last);
    case Codes::u8:
      return integer ? integer_tiles<Bytes<true>>(w, rows, out, first, last, scratch)
                     : float_tiles<FloatU8>(w, rows, out, first, last);
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
