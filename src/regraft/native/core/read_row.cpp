#include <cstring>

#include "model.hpp"

namespace regraft {
namespace {

// The code, or the number, at column k of a tile's row r.
float read_at(const Linear& w, const std::uint8_t* tile, int r, int k) {
  switch (w.codes) {
    case Codes::u2: return static_cast<float>(tile[k / 16 * 32 + 4 * r + k % 4] >> (k % 16 / 4 * 2) & 3);
    case Codes::u4: return static_cast<float>(tile[k / 8 * 32 + 4 * r + k % 4] >> (k % 8 / 4 * 4) & 15);
    case Codes::u8: return static_cast<float>(tile[k / 4 * 32 + 4 * r + k % 4]);
    case Codes::f16: {
      Half h;
      std::memcpy(&h, tile + sizeof h * (kTile * static_cast<std::size_t>(k) + r), sizeof h);
      return to_float(h);
    }
    case Codes::f32: {
      float x;
      std::memcpy(&x, tile + sizeof x * (kTile * static_cast<std::size_t>(k) + r), sizeof x);
      return x;
    }
  }
  return 0;
}

}  // namespace

void read_row(const Linear& w, int row, float* out) {
  const int r = row % kTile;
  const std::uint8_t* tile = w.data + row / kTile * w.tile_bytes();
  const std::size_t base = static_cast<std::size_t>(row / kTile) * (w.is_quantized() ? w.groups() : 0) * kTile + r;
  for (int k = 0; k < w.in; ++k) {
    out[k] = read_at(w, tile, r, k);
    if (!w.is_quantized()) continue;
    const std::size_t at = base + static_cast<std::size_t>(k / w.group) * kTile;
    const float scale = to_float(w.scale[at]);
    if (w.minimum) {
      out[k] = scale * out[k] + to_float(w.minimum[at]);
    } else {
      out[k] = scale * (out[k] - static_cast<float>(w.zero ? w.zero[at] : 1 << (bits_of(w.codes) - 1)));
    }
  }
}

}  // namespace regraft
