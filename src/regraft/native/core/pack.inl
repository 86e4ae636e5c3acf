// A factor in floating point into tiles of 8-bit codes, on its way into a page. Included inside an instruction set's
// namespace, after lanes.hpp.

// `row` has room for whole eights; what is beyond the matrix is 0 there.
static inline void read_floats(const Matrix& matrix, int number, float* row) {
  const std::ptrdiff_t begin = number * matrix.row_stride;
  const float* floats = static_cast<const float*>(matrix.data) + begin;
  const Half* halves = static_cast<const Half*>(matrix.data) + begin;
  int column = 0;
  if (matrix.column_stride == 1)
    for (; column + 8 <= matrix.columns; column += 8)
      store(row + column, matrix.is_half ? load(halves + column) : load(floats + column));
  for (; column < matrix.columns; ++column) {
    const std::ptrdiff_t at = column * matrix.column_stride;
    row[column] = matrix.is_half ? to_float(halves[at]) : floats[at];
  }
}

static void pack_bytes(const Matrix& matrix, int columns, float* row, std::uint8_t* codes, Half* scales) {
  for (int column = 0; column < columns; ++column) row[column] = 0;
  for (int number = 0; number < matrix.rows; ++number) {
    read_floats(matrix, number, row);
    F8 top = splat(0);
    for (int column = 0; column < columns; column += 8) top = max(top, abs(load(row + column)));
    scales[number] = to_half(largest(top) / 127);
    const float scale = to_float(scales[number]), unit = scale > 0 ? scale : 1;
    std::uint8_t* tile = codes + static_cast<std::size_t>(number / kTile) * columns * kTile + number % kTile * 4;
    for (int column = 0; column < columns; column += 8, tile += 64) {
      std::uint8_t code[8];
      const F8 whole = round(load(row + column) / splat(unit));
      store_bytes(code, max(min(whole, splat(127)), splat(-127)) + splat(128));
      std::memcpy(tile, code, 4), std::memcpy(tile + 32, code + 4, 4);
    }
  }
}
