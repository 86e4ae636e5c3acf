#include "experts.hpp"

namespace regraft {
namespace {

// Finds the runs, once it is known what is taken.
void gather(int count, int rows, Taken& taken) {
  taken.experts.clear(), taken.runs.clear();
  for (int expert = 0; expert < count; ++expert) {
    const int first = static_cast<int>(taken.runs.size());
    for (int row = 0, end = -1; row < rows; ++row) {
      if (!taken.is_taken[static_cast<std::size_t>(row) * count + expert]) continue;
      if (row == end)
        ++taken.runs.back().count;
      else
        taken.runs.push_back({row, 1});
      end = row + 1;
    }
    if (const int last = static_cast<int>(taken.runs.size()); first < last) taken.experts.push_back({expert, first, last});
  }
}

}  // namespace

void take_highest(const Experts& experts, const float* scores, int stride, int rows, Taken& taken) {
  const int count = experts.count;
  taken.is_taken.resize(static_cast<std::size_t>(rows) * count);
  for (int row = 0; row < rows; ++row) {
    const float* score = scores + static_cast<std::size_t>(row) * stride;
    for (int expert = 0; expert < count; ++expert) {  // all pairs: vectors of them are faster than any sorting
      int before = 0;
      for (int other = 0; other < expert; ++other) before += score[other] >= score[expert];
      for (int other = expert + 1; other < count; ++other) before += score[other] > score[expert];
      taken.is_taken[static_cast<std::size_t>(row) * count + expert] = before < experts.active;
    }
  }
  gather(count, rows, taken);
}

void take_above(const Experts& experts, const float* sums, int rows, Taken& taken) {
  taken.is_taken.resize(static_cast<std::size_t>(rows) * experts.count);
  for (std::size_t i = 0; i < taken.is_taken.size(); ++i) taken.is_taken[i] = sums[i] >= experts.threshold;
  gather(experts.count, rows, taken);
}

Linear tiles_of(const Linear& w, int first, int last) {
  Linear part = w;
  const std::size_t groups = static_cast<std::size_t>(first) * w.groups() * kTile;
  part.out = (last - first) * kTile;
  part.data = w.data + first * w.tile_bytes();
  part.scale = w.scale ? w.scale + groups : nullptr;
  part.zero = w.zero ? w.zero + groups : nullptr;
  part.minimum = w.minimum ? w.minimum + groups : nullptr;
  part.bias = nullptr;
  return part;
}

}  // namespace regraft
