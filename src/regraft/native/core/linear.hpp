// A linear map as the kernels read it, and the rows that it is applied to.
//
// Output rows are cut in tiles of 8, and a tile's numbers are interleaved so that each of a vector's eight lanes belongs to
// one output row: no kernel ever sums across lanes. With w[r][k] the tile's rows, `in` columns padded by zeros:
//
//   u8   per 4 columns, 32 bytes: byte 4r+j is w[r][k+j]
//   u4   per 8 columns, 32 bytes: byte 4r+j is w[r][k+j] in its low half, w[r][k+4+j] in its high half
//   u2   per 16 columns, 32 bytes: byte 4r+j is w[r][k+4i+j] in its bits 2i and 2i+1
//   f16, f32   per column, 8 numbers
//
// and weight = scale * (code - zero) or scale * code + minimum, by tile, group of columns, and row. The layout is written
// by regraft.native.layout, and only read here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "half.hpp"

namespace regraft {

constexpr int kTile = 8;    // output rows
constexpr int kBlock = 32;  // input columns that share an activation's scale

enum class Codes : std::uint8_t { u2, u4, u8, f16, f32 };

constexpr int bits_of(Codes codes) {
  switch (codes) {
    case Codes::u2: return 2;
    case Codes::u4: return 4;
    case Codes::u8: return 8;
    case Codes::f16: return 16;
    case Codes::f32: return 32;
  }
  return 0;
}

struct Linear {
  Codes codes = Codes::f32;
  int out = 0;
  int in = 0;                          // columns as stored: a multiple of 8; of kBlock where u2 or u4 meet 8-bit activations
  int group = 0;                       // columns that share a scale: a multiple of kBlock, or `in`
  const std::uint8_t* data = nullptr;  // [tiles][in * bits]
  const Half* scale = nullptr;         // [tiles][groups][8]; null for f16 and f32
  const std::uint8_t* zero = nullptr;  // [tiles][groups][8]; or
  const Half* minimum = nullptr;       // [tiles][groups][8]; or both null: the zero is half the codes' range
  const float* bias = nullptr;         // [out padded to whole tiles]; or null
  std::ptrdiff_t ahead = 0;            // from codes that are read to those to ask for meanwhile; 0: a little further on

  bool is_quantized() const { return codes < Codes::f16; }
  int tiles() const { return (out + kTile - 1) / kTile; }
  int groups() const { return (in + group - 1) / group; }
  std::size_t tile_bytes() const { return static_cast<std::size_t>(in) * bits_of(codes); }
  std::size_t nbytes() const {  // of all arrays
    const std::size_t rows = static_cast<std::size_t>(tiles()) * kTile;
    const std::size_t per_group = is_quantized() ? sizeof(Half) + (zero ? 1 : 0) + (minimum ? sizeof(Half) : 0) : 0;
    return tiles() * tile_bytes() + rows * (groups() * per_group + (bias ? sizeof(float) : 0));
  }
};

// Linear maps of one shape, one after the other in memory, maybe with others between them: those of an MLP's experts.
struct Pieces {
  Linear first;
  int count = 0;
  std::ptrdiff_t data = 0, scale = 0, zero = 0, minimum = 0, bias = 0;  // bytes from an array of one to that of the next

  Linear operator[](int i) const {
    const auto moved = [i](auto* array, std::ptrdiff_t stride) {
      return array ? reinterpret_cast<decltype(array)>(reinterpret_cast<const std::uint8_t*>(array) + i * stride) : nullptr;
    };
    Linear linear = first;
    linear.data = moved(first.data, data), linear.bias = moved(first.bias, bias);
    linear.scale = moved(first.scale, scale), linear.zero = moved(first.zero, zero), linear.minimum = moved(first.minimum, minimum);
    return linear;
  }
  std::size_t nbytes() const { return count ? count * first.nbytes() : 0; }
};

// Rows of activations: floats, and where `q` is set the same ones in 8 bits, x = scale * q by blocks of kBlock columns.
struct Rows {
  int count = 0;
  const float* x = nullptr;        // [count][stride]
  int stride = 0;
  const std::int8_t* q = nullptr;  // [count][stride]
  const float* scale = nullptr;    // [count][stride / kBlock]
  const float* sum = nullptr;      // [count][stride / kBlock], scale * sum of q
  const std::int32_t* centre = nullptr;  // [count][stride / kBlock], -128 * sum of q: what centres products with bytes
};

// Where a result goes: row i to y[to ? to[i] : i], added to what is there or not.
struct Out {
  float* y = nullptr;
  int stride = 0;
  const std::int32_t* to = nullptr;
  bool add = false;
};

// A matrix anywhere in memory, of halves or of floats; strides in elements.
struct Matrix {
  const void* data = nullptr;
  bool is_half = false;
  int rows = 0;
  int columns = 0;
  std::ptrdiff_t row_stride = 0;
  std::ptrdiff_t column_stride = 0;
};

}  // namespace regraft
