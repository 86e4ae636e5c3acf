// The linear maps of one step with their bypasses: the base's product for all rows at once, and beside it what each adapter
// adds to its own rows (S-LoRA, arXiv 2311.03285, section 5).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model.hpp"

namespace regraft {

// Ask for memory that is read soon: factors are short pieces here and there, which the hardware does not foresee.
void prefetch_tiles(const Linear& w, int first, int last);
// The same for their scales and zeros alone, which no kernel asks for.
void prefetch_scales(const Linear& w, int first, int last);

inline int padded(int width, int to) { return (width + to - 1) / to * to; }

// Tasks of a loop for each thread: few, since each waits once for its first weights, which no prefetcher foresees; more than
// one, so that a core that is held up leaves some of its work to the others.
constexpr int kTasksPerThread = 2;

// Activations in 8 bits, by blocks of kBlock.
struct Quantized {
  std::vector<std::int8_t> codes;
  std::vector<float> scales, sums;
  std::vector<std::int32_t> centres;

  explicit Quantized(std::size_t count = 0)
      : codes(count), scales(count / kBlock), sums(count / kBlock), centres(count / kBlock) {}

  void put(const Kernels& kernels, const float* x, std::size_t begin, int count) {
    const std::size_t block = begin / kBlock;
    kernels.quantize(x, count, codes.data() + begin, scales.data() + block, sums.data() + block, centres.data() + block);
  }
  // `count` rows of `x`, which begin there.
  Rows rows(const float* x, std::size_t begin, int count, int stride) const {
    const std::size_t block = begin / kBlock;
    return {count, x, stride, codes.data() + begin, scales.data() + block, sums.data() + block, centres.data() + block};
  }
};

// The rows of the batch that an adapter acts on, and what its `down` factors make of them. Those that it alone acts on
// come first: their `up` products are done for all at once, while a mix is added up in its own order, row by row.
struct Group {
  const Adapter* adapter;
  std::vector<std::int32_t> rows;
  int alone = 0;
  std::vector<float> hidden;  // [linears of one input][rows][stride]
  Quantized quantized;        // the same
  int stride;

  std::size_t begin(int part, int row) const { return (static_cast<std::size_t>(part) * rows.size() + row) * stride; }
};

// Consecutive rows of the batch with one mix of adapters.
struct Run {
  struct Member {
    int group;
    int first;  // of the group's rows
    float weight;
  };
  int first;
  int count;
  std::vector<Member> mix;
};

class Linears {
 public:
  // One of the linears of an input, and where its result goes.
  struct Part {
    int slot;
    float* y;
    int stride;
  };

  // `widest` is that of any input.
  Linears(const Model& model, const Batch& batch, const Kernels& kernels, Team& team, int widest);

  // The linears of one input: `prepare` makes a row of it, then all parts read it.
  template <class Prepare>
  void apply(int layer, const float* x, int width, const std::vector<Part>& parts, const Prepare& prepare) {
    enter(layer, x, width, parts, prepare);
    leave(layer, x, width, parts);
  }

  // An input's rows, in 8 bits where these are wanted, and what the parts' `down` factors make of them; then
  // finish(first row, rows, thread), which sees them so.
  template <class Prepare, class Finish>
  void enter(int layer, const float* x, int width, const std::vector<Part>& parts, const Prepare& prepare, const Finish& finish) {
    team_.run(static_cast<int>(runs_.size()), [&](int number, int thread) {
      const Run& run = runs_[number];
      for (int row = run.first; row < run.first + run.count; ++row) prepare(row);
      const std::size_t begin = static_cast<std::size_t>(run.first) * width;
      quantize(x + begin, begin, run.count * width);
      for (const Run::Member& member : run.mix)
        shrink(layer, rows(x + begin, begin, run.count, width), parts, member, scratch(thread));
      finish(run.first, run.count, thread);
    });
  }
  template <class Prepare>
  void enter(int layer, const float* x, int width, const std::vector<Part>& parts, const Prepare& prepare) {
    enter(layer, x, width, parts, prepare, [](int, int, int) {});
  }

  // What the parts make of the input that was entered.
  void leave(int layer, const float* x, int width, const std::vector<Part>& parts);

  // y += up hidden, for the tiles [first, last) of part number `p`; for all rows, or for one.
  void expand(int layer, const Part& part, int p, int first, int last, std::uint8_t* scratch) const;
  void expand_row(int layer, int row, const Part& part, int p, int first, int last, std::uint8_t* scratch) const;

  // Whether an adapter of the batch has a bypass there.
  bool acts_on(int layer, int slot) const;

  // Rows of an input that was entered, which begin at `begin` there; with their codes, where these are wanted.
  Rows rows(const float* x, std::size_t begin, int count, int stride) const { return rows_of(quantized_, x, begin, count, stride); }
  Rows rows_of(const Quantized& quantized, const float* x, std::size_t begin, int count, int stride) const {
    return batch_.float_activations ? Rows{count, x, stride} : quantized.rows(x, begin, count, stride);
  }

  // The codes of an input's part, where they are wanted; or of numbers that are kept elsewhere.
  void quantize(const float* x, std::size_t begin, int count) { quantize_to(quantized_, x, begin, count); }
  void quantize_to(Quantized& quantized, const float* x, std::size_t begin, int count) const {
    if (!batch_.float_activations) quantized.put(kernels_, x, begin, count);
  }

  // Memory of a thread, for what kernels unpack.
  std::uint8_t* scratch(int thread) {
    const auto address = reinterpret_cast<std::uintptr_t>(scratch_[thread].data());
    return reinterpret_cast<std::uint8_t*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Stretch {
    int rows;
    int first, last;  // tiles
  };

  void make_groups();
  void make_runs(int s);
  std::vector<const Linear*> next_downs(int layer, int slot) const;
  void shrink(int layer, const Rows& x, const std::vector<Part>& parts, const Run::Member& member, std::uint8_t* scratch);
  void activate(const Bypass& bypass, float weight, Group& group, std::size_t begin) const;
  void expand(int layer, const Group& group, const Part& part, int p, int row, Stretch stretch, const Out& out, std::uint8_t* scratch) const;

  const Model& model_;
  const Batch& batch_;
  const Kernels& kernels_;
  Team& team_;
  Quantized quantized_;
  std::vector<Group> groups_;
  std::vector<Run> runs_;      // first those with one adapter or none
  std::size_t num_alone_ = 0;  // how many these are
  std::vector<int> run_of_;    // of each row
  std::vector<std::vector<std::uint8_t>> scratch_;
};

}  // namespace regraft
