// Which rows of a batch take which experts of a layer, as runs of consecutive rows, so that an expert is read once for all.
#pragma once

#include <cstdint>
#include <vector>

#include "model.hpp"

namespace regraft {

// What a row's experts make of it is added up in so many shares, each of about as many experts in their order, and then the
// shares are: these can be computed side by side, and yet a row's sum does not depend on who does so.
constexpr int kShares = 4;

struct Taken {
  struct Run {
    int first;  // row
    int count;
    int share;
  };
  struct Expert {
    int number;
    int first_run;
    int last_run;
  };
  struct Runs {
    const Run *first, *last;
    const Run* begin() const { return first; }
    const Run* end() const { return last; }
  };
  std::vector<Expert> experts;         // that some row takes, rising
  std::vector<Run> runs;               // of the experts one after the other, rising
  std::vector<std::uint8_t> is_taken;  // [rows][count]; and by which share: one more than its number

  Runs of(const Expert& expert) const { return {runs.data() + expert.first_run, runs.data() + expert.last_run}; }
};

// MoEfication's choice (arXiv 2110.01786): the experts of the highest scores; of equal ones the first.
// `scores` is [rows][stride]. What `taken` was is written over.
void take_highest(const Experts& experts, const float* scores, int stride, int rows, Taken& taken);

// CATS' choice (arXiv 2404.08763): the experts whose sum comes to the threshold; `sums` is [rows][count].
void take_above(const Experts& experts, const float* sums, int rows, Taken& taken);

// All experts, in share 0.
void take_all(const Experts& experts, int rows, Taken& taken);

}  // namespace regraft
