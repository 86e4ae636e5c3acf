// Compares kernel sets with the portable one, bit for bit, on random shapes and numbers.
//
//   compare_kernels          all that this machine runs
//   compare_kernels NAME...  these, whatever the machine says: for emulators
//
// The portable kernels must be built with fused multiply-adds, as all others are. Exit status 1: something differs.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <string>

#include "kernels.hpp"

using namespace regraft;

namespace {

std::mt19937 generator(1);

int draw(int low, int high) { return low + static_cast<int>(generator() % static_cast<unsigned>(high - low + 1)); }
bool coin() { return generator() % 2; }
template <class T, std::size_t N>
T pick(const T (&from)[N]) { return from[generator() % N]; }

// About normal, by twelve uniform numbers.
float number() {
  float x = -6;
  for (int i = 0; i < 12; ++i) x += static_cast<float>(generator() >> 8) / 16777216.0f;
  return x;
}

// So many T, aligned as the kernels want it and no byte longer, so that a sanitizer sees what reads beyond.
template <class T>
class Memory {
 public:
  explicit Memory(std::size_t count) : count_(count), data_(static_cast<T*>(::operator new(bytes() + 1, kAlignment))) {
    std::memset(static_cast<void*>(data_), 0, bytes());
  }
  Memory(const Memory& other) : Memory(other.count_) { std::memcpy(static_cast<void*>(data_), other.data_, bytes()); }
  Memory& operator=(const Memory&) = delete;
  ~Memory() { ::operator delete(data_, kAlignment); }

  template <class Make>
  Memory& fill(const Make& make) {
    for (std::size_t i = 0; i < count_; ++i) data_[i] = static_cast<T>(make());
    return *this;
  }
  T* data() { return data_; }
  std::size_t bytes() const { return count_ * sizeof(T); }
  bool operator==(const Memory& other) const { return std::memcmp(data_, other.data_, bytes()) == 0; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  std::size_t count_;
  T* data_;
};

struct Comparison {
  const Kernels& tested;
  const Kernels& truth;
  int count = 0;
  int failures = 0;

  template <class T>
  void expect_equal(const Memory<T>& found, const Memory<T>& wanted, const std::string& what) {
    ++count;
    if (found == wanted) return;
    if (++failures <= 10) std::printf("%s differs from %s: %s\n", tested.name, truth.name, what.c_str());
  }
};

// ---- products --------------------------------------------------------------------------------------------------------

enum class Offset { none, zero, minimum };

// A linear map of random codes, and all that it points to.
struct RandomLinear {
  Linear w;
  Memory<std::uint8_t> data{0}, zero{0};
  Memory<Half> scale{0}, minimum{0};
  Memory<float> bias{0};
};

Half half() { return to_half(number()); }

std::unique_ptr<RandomLinear> make_linear(Codes codes, int out, int in, int group, Offset offset, bool biased) {
  Linear w;
  w.codes = codes, w.out = out, w.in = in, w.group = group;
  const std::size_t rows = static_cast<std::size_t>(w.tiles()) * kTile, groups = w.is_quantized() ? rows * w.groups() : 0;
  std::unique_ptr<RandomLinear> made(new RandomLinear{
      w, Memory<std::uint8_t>(w.tiles() * w.tile_bytes()), Memory<std::uint8_t>(groups), Memory<Half>(groups), Memory<Half>(groups), Memory<float>(rows)});
  std::uint8_t* data = made->data.data();
  for (std::size_t at = 0; at < made->data.bytes(); at += codes == Codes::f16 ? 2 : codes == Codes::f32 ? 4 : 1) {
    const float x = number();
    const Half h = to_half(x);
    if (codes == Codes::f32)
      std::memcpy(data + at, &x, sizeof x);
    else if (codes == Codes::f16)
      std::memcpy(data + at, &h, sizeof h);
    else
      data[at] = coin() ? static_cast<std::uint8_t>(generator()) : coin() ? 255 : 0;  // the extremes often
  }
  made->w.data = data;
  if (w.is_quantized()) made->w.scale = made->scale.fill(half).data();
  if (offset == Offset::zero) made->w.zero = made->zero.fill([&] { return draw(0, (1 << bits_of(codes)) - 1); }).data();
  if (offset == Offset::minimum) made->w.minimum = made->minimum.fill(half).data();
  if (biased) made->w.bias = made->bias.fill(number).data();
  return made;
}

void compare_product(Comparison& comparison, Codes codes, int group_width, Offset offset, int count, bool integer) {
  const bool may_end_in_block = codes >= Codes::u8 && group_width == 0;
  const int in = may_end_in_block ? 8 * draw(1, 20) : (group_width ? group_width : kBlock) * draw(1, 5);
  const int out = draw(1, 40), width = (in + kBlock - 1) / kBlock * kBlock;
  const auto linear = make_linear(codes, out, in, group_width ? group_width : in, offset, coin());
  const Linear& w = linear->w;

  Memory<float> x(static_cast<std::size_t>(count) * width);
  for (int row = 0; row < count; ++row)
    for (int k = 0; k < in; ++k) x.data()[row * width + k] = number();
  Rows rows{count, x.data(), width};
  const std::size_t blocks = static_cast<std::size_t>(count) * width / kBlock;
  Memory<std::int8_t> q(blocks * kBlock);
  Memory<float> scale(blocks), sum(blocks);
  Memory<std::int32_t> centre(blocks);
  if (integer) {
    if (coin())  // the extremes often
      for (int row = 0; row < count; ++row)
        for (int k = 0; k < in; ++k) x.data()[row * width + k] = coin() ? 1.0f : -1.0f;
    comparison.truth.quantize(x.data(), count * width, q.data(), scale.data(), sum.data(), centre.data());
    rows.q = q.data(), rows.scale = scale.data(), rows.sum = sum.data(), rows.centre = centre.data();
  }
  Memory<std::int32_t> to(count);
  std::iota(to.data(), to.data() + count, 0);
  std::shuffle(to.data(), to.data() + count, generator);

  const int stride = kTile * w.tiles();
  Memory<float> found(static_cast<std::size_t>(count) * stride);
  found.fill(number);
  Memory<float> wanted = found;
  Memory<std::uint8_t> scratch(static_cast<std::size_t>(kMostTiles) * kTile * width);
  Out target{found.data(), stride, coin() ? to.data() : nullptr, coin()};
  const int first = draw(0, w.tiles() - 1), last = draw(first + 1, w.tiles());
  comparison.tested.matmul(w, rows, target, first, last, scratch.data());
  target.y = wanted.data();
  comparison.truth.matmul(w, rows, target, first, last, scratch.data());
  comparison.expect_equal(found, wanted, std::string(integer ? "integer" : "float") + " product, " + std::to_string(bits_of(codes)) +
                          " bits, group " + std::to_string(group_width) + ", offset " + std::to_string(static_cast<int>(offset)) +
                          ", " + std::to_string(count) + " rows, " + std::to_string(out) + " x " + std::to_string(in));
}

void compare_products(Comparison& comparison) {
  for (int count : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13})
    for (int group : {0, 32, 64, 128}) {
      for (Codes codes : {Codes::u2, Codes::u4, Codes::u8})
        for (Offset offset : {Offset::none, Offset::zero, Offset::minimum})
          for (bool integer : {true, false})
            for (int time = 0; time < 4; ++time) compare_product(comparison, codes, group, offset, count, integer);
      for (Codes codes : {Codes::f16, Codes::f32}) compare_product(comparison, codes, group, Offset::none, count, false);
    }
}

// ---- rows of numbers -------------------------------------------------------------------------------------------------

void compare_quantize(Comparison& comparison) {
  const int count = kBlock * draw(1, 6);
  Memory<float> x(count);
  x.fill(number);
  for (int block = 0; block < count / kBlock; ++block) {
    const float factor = pick({1.0f, 0.0f, -0.0f, 1e-30f, 1e30f, 0.5f});
    for (int i = 0; i < kBlock; ++i) x.data()[kBlock * block + i] *= factor;
    if (coin()) x.data()[kBlock * block] = 127, x.data()[kBlock * block + 1] = 2.5f;  // a tie
  }
  Memory<std::int8_t> q(count), q_wanted(count);
  Memory<float> scale(count / kBlock), scale_wanted = scale, sum = scale, sum_wanted = scale;
  Memory<std::int32_t> centre(count / kBlock), centre_wanted = centre;
  comparison.tested.quantize(x.data(), count, q.data(), scale.data(), sum.data(), centre.data());
  comparison.truth.quantize(x.data(), count, q_wanted.data(), scale_wanted.data(), sum_wanted.data(), centre_wanted.data());
  comparison.expect_equal(q, q_wanted, "codes of activations");
  comparison.expect_equal(scale, scale_wanted, "scales of activations");
  comparison.expect_equal(sum, sum_wanted, "sums of activations");
  comparison.expect_equal(centre, centre_wanted, "centres of activations");
}

void compare_elementwise(Comparison& comparison) {
  const int count = 8 * draw(1, 30);
  const float spread = pick({0.01f, 1.0f, 20.0f});
  Memory<float> x(count), y(count);
  x.fill([&] { return spread * number(); }), y.fill(number);
  const auto both = [&](const char* what, const auto& apply) {
    Memory<float> found = x, wanted = x;
    apply(comparison.tested, found.data());
    apply(comparison.truth, wanted.data());
    comparison.expect_equal(found, wanted, what);
  };
  both("rms_norm", [&](const Kernels& kernels, float* to) { kernels.rms_norm(to, y.data(), count, 1e-6f, to); });
  both("silu_mul", [&](const Kernels& kernels, float* to) { kernels.silu_mul(to, y.data(), count); });
  both("gelu_tanh_mul", [&](const Kernels& kernels, float* to) { kernels.gelu_tanh_mul(to, y.data(), count); });
  both("tanh", [&](const Kernels& kernels, float* to) { kernels.tanh(to, count); });
  both("gelu", [&](const Kernels& kernels, float* to) { kernels.gelu(to, count); });
  both("add", [&](const Kernels& kernels, float* to) { kernels.add(to, y.data(), count); });
}

void compare_pack(Comparison& comparison) {
  const bool is_half = coin();
  const int rows = draw(1, 20), columns = draw(1, 60), padded = (columns + 7) / 8 * 8;
  const bool transposed = coin();
  Memory<float> floats(static_cast<std::size_t>(rows) * columns);
  Memory<Half> halves(static_cast<std::size_t>(rows) * columns);
  floats.fill(number), halves.fill(half);
  const Matrix matrix{is_half ? static_cast<const void*>(halves.data()) : floats.data(), is_half, rows, columns,
                      transposed ? 1 : columns, transposed ? rows : 1};
  const std::size_t tiled_rows = (rows + kTile - 1) / kTile * static_cast<std::size_t>(kTile);
  Memory<std::uint8_t> codes(tiled_rows * padded), codes_wanted = codes;
  Memory<Half> scales(tiled_rows), scales_wanted = scales;
  Memory<float> row(padded);
  comparison.tested.pack_bytes(matrix, padded, row.data(), codes.data(), scales.data());
  comparison.truth.pack_bytes(matrix, padded, row.data(), codes_wanted.data(), scales_wanted.data());
  comparison.expect_equal(codes, codes_wanted, "codes of a factor");
  comparison.expect_equal(scales, scales_wanted, "scales of a factor");
}

// ---- attention -------------------------------------------------------------------------------------------------------

// Pages for one KV head, keys before values; what nobody has written is NaN.
Memory<std::uint8_t> make_pages(const AttentionTask& task, int tokens, int pages) {
  Memory<std::uint8_t> arena(task.page_bytes * pages);
  arena.fill([] { return 255; });
  for (int token = 0; token < tokens; ++token)
    for (const bool is_key : {true, false}) {
      std::uint8_t* memory = arena.data() + token / kPageTokens * task.page_bytes + (is_key ? 0 : task.value_offset);
      const int place = token % kPageTokens, size = task.in_bytes ? 1 : 2;
      for (int d = 0; d < task.head_dim; ++d) {
        const Half number = task.in_bytes ? Half{static_cast<std::uint16_t>(draw(-127, 127))} : half();
        std::memcpy(memory + size * (is_key ? d * kPageTokens + place : place * task.head_dim + d), &number, size);  // little-endian
      }
      const Half scale = to_half(0.01f * static_cast<float>(draw(0, 9)));
      if (task.in_bytes) std::memcpy(memory + kPageTokens * task.head_dim + sizeof scale * place, &scale, sizeof scale);
    }
  return arena;
}

void compare_attention(Comparison& comparison) {
  AttentionTask task;
  task.rows = draw(1, 8), task.group = draw(1, 9), task.head_dim = 8 * draw(1, 17);
  task.first_position = draw(0, 400), task.window = coin() ? draw(1, 300) : 0, task.scale = 0.125f;
  const int tokens = task.first_position + task.rows, pages = (tokens + kPageTokens - 1) / kPageTokens;
  task.in_bytes = coin();
  task.value_offset = kPageTokens * (task.in_bytes ? task.head_dim + sizeof(Half) : task.head_dim * sizeof(Half));
  task.page_bytes = 2 * task.value_offset;
  Memory<std::uint8_t> arena = make_pages(task, tokens, pages);
  task.arena = arena.data();
  Memory<std::int32_t> table(pages);
  std::iota(table.data(), table.data() + pages, 0);
  task.pages = table.data();
  task.q_stride = task.group * task.head_dim;
  Memory<float> q(static_cast<std::size_t>(task.rows) * task.q_stride), found = q, wanted = q;
  task.q = q.fill(number).data();
  Memory<float> scratch(attention_scratch(task.rows, task.group, task.head_dim));
  task.out = found.data();
  comparison.tested.attend(task, scratch.data());
  task.out = wanted.data();
  comparison.truth.attend(task, scratch.data());
  comparison.expect_equal(found, wanted, "attention of " + std::to_string(task.rows) + " rows of " + std::to_string(task.group) +
                          " heads of " + std::to_string(task.head_dim) + " from " + std::to_string(task.first_position));
}

int compare(const Kernels& tested) {
  Comparison comparison{tested, *portable_kernels()};
  compare_products(comparison);
  for (int time = 0; time < 200; ++time) {
    compare_quantize(comparison);
    compare_elementwise(comparison);
    compare_pack(comparison);
    compare_attention(comparison);
  }
  std::printf("%s: %d of %d results are those of %s\n", tested.name, comparison.count - comparison.failures, comparison.count, comparison.truth.name);
  return comparison.failures;
}

}  // namespace

int main(int count, char** names) {
  std::vector<const Kernels*> chosen;  // those that run here, or those that are named
  for (const BuiltKernels& built : built_kernels())
    if (count == 1 ? built.runs_here : std::any_of(names + 1, names + count, [&](const char* name) { return !std::strcmp(name, built.kernels->name); }))
      chosen.push_back(built.kernels);
  if (count > 1 && static_cast<int>(chosen.size()) != count - 1) return std::printf("not all of these kernels are built\n"), 2;
  int failures = 0;
  for (const Kernels* kernels : chosen)
    if (kernels != portable_kernels()) failures += compare(*kernels);
  return failures != 0;
}
