#include "experts.hpp"

#include <algorithm>
#include <numeric>

namespace regraft {
namespace {

Taken gathered(int count, int rows, std::vector<std::uint8_t> is_taken) {
  Taken taken;
  for (int expert = 0; expert < count; ++expert) {
    std::vector<Taken::Run> runs;
    for (int row = 0; row < rows; ++row) {
      if (!is_taken[static_cast<std::size_t>(row) * count + expert]) continue;
      if (!runs.empty() && runs.back().first + runs.back().count == row)
        ++runs.back().count;
      else
        runs.push_back({row, 1});
    }
    if (!runs.empty()) taken.experts.push_back({expert, std::move(runs)});
  }
  taken.is_taken = std::move(is_taken);
  return taken;
}

}  // namespace

Taken take_highest(const Experts& experts, const float* scores, int stride, int rows) {
  std::vector<std::uint8_t> is_taken(static_cast<std::size_t>(rows) * experts.count);
  std::vector<int> order(experts.count);
  for (int row = 0; row < rows; ++row) {
    const float* score = scores + static_cast<std::size_t>(row) * stride;
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + experts.active, order.end(),
                      [&](int a, int b) { return score[a] > score[b] || (score[a] == score[b] && a < b); });
    for (int i = 0; i < experts.active; ++i) is_taken[static_cast<std::size_t>(row) * experts.count + order[i]] = 1;
  }
  return gathered(experts.count, rows, std::move(is_taken));
}

Taken take_above(const Experts& experts, const float* sums, int rows) {
  std::vector<std::uint8_t> is_taken(static_cast<std::size_t>(rows) * experts.count);
  for (std::size_t i = 0; i < is_taken.size(); ++i) is_taken[i] = sums[i] >= experts.threshold;
  return gathered(experts.count, rows, std::move(is_taken));
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
