#include "experts.hpp"

namespace regraft {
namespace {

// Gives each row's experts their shares.
void share_out(std::uint8_t* is_taken, int count) {
  int all = 0, number = 0;
  for (int expert = 0; expert < count; ++expert) all += is_taken[expert];
  for (int expert = 0; expert < count; ++expert)
    if (is_taken[expert]) is_taken[expert] = static_cast<std::uint8_t>(1 + number++ * kShares / all);
}

// Finds the runs, once it is known what is taken.
void gather(int count, int rows, Taken& taken) {
  taken.experts.clear(), taken.runs.clear();
  for (int expert = 0; expert < count; ++expert) {
    const int first = static_cast<int>(taken.runs.size());
    for (int row = 0, end = -1; row < rows; ++row) {
      const int share = taken.is_taken[static_cast<std::size_t>(row) * count + expert] - 1;
      if (share < 0) continue;
      if (row == end && taken.runs.back().share == share)
        ++taken.runs.back().count;
      else
        taken.runs.push_back({row, 1, share});
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
    share_out(taken.is_taken.data() + static_cast<std::size_t>(row) * count, count);
  }
  gather(count, rows, taken);
}

void take_above(const Experts& experts, const float* sums, int rows, Taken& taken) {
  taken.is_taken.resize(static_cast<std::size_t>(rows) * experts.count);
  for (std::size_t i = 0; i < taken.is_taken.size(); ++i) taken.is_taken[i] = sums[i] >= experts.threshold;
  for (int row = 0; row < rows; ++row) share_out(taken.is_taken.data() + static_cast<std::size_t>(row) * experts.count, experts.count);
  gather(experts.count, rows, taken);
}

void take_all(const Experts& experts, int rows, Taken& taken) {
  taken.is_taken.assign(static_cast<std::size_t>(rows) * experts.count, 1);
  gather(experts.count, rows, taken);
}

}  // namespace regraft
