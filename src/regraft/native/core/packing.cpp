#include "packing.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace regraft {
namespace {

constexpr std::size_t kAlignment = 64;

std::size_t up_to(std::size_t size, std::size_t multiple) { return (size + multiple - 1) / multiple * multiple; }

Matrix rows_of(Matrix matrix, int first, int count) {
  const std::ptrdiff_t bytes = first * matrix.row_stride * (matrix.is_half ? sizeof(Half) : sizeof(float));
  matrix.data = static_cast<const std::uint8_t*>(matrix.data) + bytes;
  matrix.rows = count;
  return matrix;
}

Matrix columns_of(Matrix matrix, int first, int count) {
  const std::ptrdiff_t bytes = first * matrix.column_stride * (matrix.is_half ? sizeof(Half) : sizeof(float));
  matrix.data = static_cast<const std::uint8_t*>(matrix.data) + bytes;
  matrix.columns = count;
  return matrix;
}

Linear linear_of(const Matrix& matrix, int bits) {
  Linear linear;
  linear.codes = bits == 8 ? Codes::u8 : Codes::f16;
  linear.out = matrix.rows;
  linear.in = linear.group = static_cast<int>(up_to(matrix.columns, kTile));
  return linear;
}

std::size_t number_bytes(const Linear& linear) { return linear.tiles() * linear.tile_bytes(); }
std::size_t scale_bytes(const Linear& linear) {
  return linear.is_quantized() ? static_cast<std::size_t>(linear.tiles()) * kTile * sizeof(Half) : 0;
}

// Tiles of halves, by column; rows and columns beyond the matrix are 0.
void pack_halves(const Matrix& matrix, const Linear& linear, std::uint8_t* memory) {
  std::memset(memory, 0, number_bytes(linear));
  const float* floats = static_cast<const float*>(matrix.data);
  const Half* halves = static_cast<const Half*>(matrix.data);
  for (int row = 0; row < matrix.rows; ++row) {
    Half* tile = reinterpret_cast<Half*>(memory + row / kTile * linear.tile_bytes()) + row % kTile;
    for (int column = 0; column < matrix.columns; ++column) {
      const std::ptrdiff_t at = row * matrix.row_stride + column * matrix.column_stride;
      tile[column * kTile] = matrix.is_half ? halves[at] : to_half(floats[at]);
    }
  }
}

void pack(const Kernels& kernels, const Matrix& matrix, const Linear& linear, std::vector<float>& row) {
  auto* numbers = const_cast<std::uint8_t*>(linear.data);
  if (!linear.is_quantized()) return pack_halves(matrix, linear, numbers);
  auto* scales = const_cast<Half*>(linear.scale);
  if (matrix.rows % kTile) {  // rows of the last tile stay unwritten
    std::memset(numbers + (linear.tiles() - 1) * linear.tile_bytes(), 0, linear.tile_bytes());
    std::memset(scales + (linear.tiles() - 1) * kTile, 0, kTile * sizeof(Half));
  }
  row.resize(std::max(row.size(), static_cast<std::size_t>(linear.in)));
  kernels.pack_bytes(matrix, linear.in, row.data(), numbers, scales);
}

// Where each slot's bypasses begin, and the most ranks at one.
void index(Adapter& adapter) {
  std::vector<int> ranks(adapter.first.size(), 0);
  for (const Bypass& bypass : adapter.bypasses) {
    const int key = bypass.layer * kSlots + bypass.slot;
    ++adapter.first[key + 1];
    ranks[key] += static_cast<int>(up_to(bypass.down.out, kBlock));
  }
  std::partial_sum(adapter.first.begin(), adapter.first.end(), adapter.first.begin());
  adapter.widest = *std::max_element(ranks.begin(), ranks.end());
}

}  // namespace

void PagedAdapter::point_to(const std::vector<std::uint8_t*>& pages) {
  const auto at = [&](const Place& place) { return pages[place.page] + place.offset; };
  for (std::size_t i = 0; i < places.size(); ++i) {
    Bypass& bypass = adapter.bypasses[i];
    const auto& [down, down_scales, up, up_scales] = places[i];
    bypass.down.data = at(down), bypass.up.data = at(up);
    if (!bypass.down.is_quantized()) continue;
    bypass.down.scale = reinterpret_cast<const Half*>(at(down_scales));
    bypass.up.scale = reinterpret_cast<const Half*>(at(up_scales));
  }
}

Packing::Packing(int layers, const std::vector<FactorPair>& pairs, int bits, std::size_t page_bytes)
    : bits_(bits), page_bytes_(page_bytes) {
  planned_.adapter.first.assign(static_cast<std::size_t>(layers) * kSlots + 1, 0);
  for (const FactorPair& pair : pairs) cut(pair);
  if (page_bytes == 0) page_bytes_ = used_;
  // In the order of slots; the pages keep the order of the pairs.
  std::vector<std::size_t> order(parts_.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](std::size_t i) { return parts_[i].layer * kSlots + parts_[i].slot; };
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return key(a) < key(b); });
  std::vector<FactorPair> parts;
  PagedAdapter sorted;
  sorted.adapter.first = planned_.adapter.first;
  for (std::size_t i : order) {
    parts.push_back(parts_[i]);
    sorted.adapter.bypasses.push_back(planned_.adapter.bypasses[i]), sorted.places.push_back(planned_.places[i]);
  }
  index(sorted.adapter);
  parts_ = std::move(parts), planned_ = std::move(sorted);
}

void Packing::cut(const FactorPair& pair) {
  const std::size_t row = up_to(std::max(pair.down.columns, pair.up.rows), kTile) * bits_ / 8;
  const int rank = pair.down.rows;
  const int most = page_bytes_ ? static_cast<int>(std::min<std::size_t>(page_bytes_ / row / kTile * kTile, rank)) : rank;
  if (most == 0 && rank > 0) throw std::invalid_argument("eight ranks are more than a page");
  for (int first = 0; first < rank; first += most) {
    FactorPair part = pair;
    const int count = std::min(most, rank - first);
    part.down = rows_of(pair.down, first, count), part.up = columns_of(pair.up, first, count);
    const Bypass bypass{pair.layer, pair.slot, linear_of(part.down, bits_), linear_of(part.up, bits_), pair.scale, pair.kind};
    // One after the other: the order of places is the order in the pages.
    const Place down = place(number_bytes(bypass.down)), down_scales = place(scale_bytes(bypass.down));
    const Place up = place(number_bytes(bypass.up)), up_scales = place(scale_bytes(bypass.up));
    planned_.places.push_back({down, down_scales, up, up_scales});
    planned_.adapter.bypasses.push_back(bypass);
    parts_.push_back(part);
  }
}

Place Packing::place(std::size_t bytes) {
  if (bytes == 0) return {};
  if (pages_ == 0 || (page_bytes_ && used_ + bytes > page_bytes_)) ++pages_, used_ = 0;
  const Place found{pages_ - 1, used_};
  used_ += up_to(bytes, kAlignment);
  return found;
}

PagedAdapter Packing::fill(const std::vector<std::uint8_t*>& pages) const {
  static const Kernels* const kernels = choose_kernels("");  // asking the processor is slow in a virtual machine
  PagedAdapter filled = planned_;
  filled.point_to(pages);
  std::vector<float> row;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    pack(*kernels, parts_[i].down, filled.adapter.bypasses[i].down, row);
    pack(*kernels, parts_[i].up, filled.adapter.bypasses[i].up, row);
  }
  return filled;
}

std::size_t first_not_finite(const std::vector<Numbers>& all) {
  // A number is none, or infinite, if all bits of its exponent are ones.
  const auto is_finite = [](const auto* bits, std::size_t count, auto exponent) {
    decltype(exponent) found = 0;  // as wide as the numbers, so that a vector takes as many
    for (std::size_t i = 0; i < count; ++i) found |= (bits[i] & exponent) == exponent ? exponent : decltype(exponent){0};
    return found == 0;
  };
  const auto one = std::find_if_not(all.begin(), all.end(), [&](const Numbers& n) {
    return n.is_half ? is_finite(static_cast<const std::uint16_t*>(n.data), n.count, std::uint16_t{0x7c00})
                     : is_finite(static_cast<const std::uint32_t*>(n.data), n.count, std::uint32_t{0x7f800000});
  });
  return one - all.begin();
}

}  // namespace regraft
