// An adapter's factors on their way from a file into pages.
//
// Both factors of a bypass become tiles like any weight, of bytes with one scale per row, or of halves. A page holds whole
// pieces, one after the other: the numbers of a factor, or its scales. Ranks may be cut anywhere, since up f(down x) is a
// sum over ranks; so a bypass one of whose factors is larger than a page becomes several.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "model.hpp"

namespace regraft {

// One bypass as it was read.
struct FactorPair {
  int layer = 0;
  int slot = 0;
  Matrix down;  // [rank, in]
  Matrix up;    // [out, rank]
  float scale = 1;
  const BypassKind* kind = nullptr;
};

struct Place {
  int page = 0;
  std::size_t offset = 0;
};

// An adapter in pages, and where there.
struct PagedAdapter {
  Adapter adapter;
  std::vector<std::array<Place, 4>> places;  // of each bypass: down's numbers and scales, up's numbers and scales

  // Let the adapter read these pages.
  void point_to(const std::vector<std::uint8_t*>& pages);
};

class Packing {
 public:
  // `bits` is 8 or 16; with pages of 0 bytes there is one, as large as it has to be. Eight ranks have to fit in a page.
  Packing(int layers, const std::vector<FactorPair>& pairs, int bits, std::size_t page_bytes);

  int pages() const { return pages_; }
  std::size_t page_bytes() const { return page_bytes_; }

  // Write the factors, which must still be there, into as many pages; between and after the pieces nothing is written.
  PagedAdapter fill(const std::vector<std::uint8_t*>& pages) const;

 private:
  Place place(std::size_t bytes);
  void cut(const FactorPair& pair);

  int bits_;
  std::size_t page_bytes_;
  int pages_ = 0;
  std::size_t used_ = 0;           // of the last page
  std::vector<FactorPair> parts_;  // by layer and slot, each of ranks that fit in a page
  PagedAdapter planned_;           // without memory
};

// Numbers in a row, halves or floats.
struct Numbers {
  const void* data = nullptr;
  bool is_half = false;
  std::size_t count = 0;
};

// The first that has a number which is infinite, or none; as many as there are if all are finite.
std::size_t first_not_finite(const std::vector<Numbers>& all);

}  // namespace regraft
