// The table of kernels of one instruction set; chosen once, at run time.
#pragma once

#include <vector>

#include "linear.hpp"

namespace regraft {

constexpr int kPageTokens = 16;
constexpr int kChunkPages = 8;  // that attention takes at once
constexpr int kChunkTokens = kChunkPages * kPageTokens;

// One query block's attention over a sequence's pages, for one KV head. Queries are rows of the same sequence, in order,
// each with `group` heads that share the KV head.
struct AttentionTask {
  const float* q = nullptr;  // [rows][q_stride], this KV head's first query head at column 0; rotated
  int q_stride = 0;
  float* out = nullptr;      // like q
  int rows = 0;
  int group = 0;
  int head_dim = 0;
  int first_position = 0;    // of row 0
  int window = 0;            // tokens that a row sees, itself included; 0: all
  float scale = 1;
  const std::uint8_t* arena = nullptr;
  std::size_t page_bytes = 0;
  const std::int32_t* pages = nullptr;  // of the sequence
  std::size_t key_offset = 0;           // of this layer and head within a page: [head_dim][kPageTokens] halves
  std::size_t value_offset = 0;         // [kPageTokens][head_dim] halves
  bool in_bytes = false;                // or signed bytes, each followed by [kPageTokens] halves: a scale per token
};

constexpr int kMostTiles = 2;  // that a kernel takes at once

struct Kernels {
  const char* name;
  // x[count] into 8 bits, by blocks of kBlock; count a multiple of it. What comes is told at Rows.
  void (*quantize)(const float* x, int count, std::int8_t* q, float* scale, float* sum, std::int32_t* centre);
  // Tiles [first, last) of y = W x (+ bias); `scratch` holds kMostTiles of codes, 8 * w.in bytes each.
  void (*matmul)(const Linear& w, const Rows& rows, const Out& out, int first, int last, std::uint8_t* scratch);
  // y = x / rms(x) * w, count numbers; x and y may be one.
  void (*rms_norm)(const float* x, const float* w, int count, float epsilon, float* y);
  void (*silu_mul)(float* gate, const float* up, int count);       // gate = silu(gate) * up
  void (*gelu_tanh_mul)(float* gate, const float* up, int count);  // gate = gelu(gate) * up, by tanh's formula
  void (*gelu)(float* x, int count);                               // x = gelu(x), by the error function
  void (*tanh)(float* x, int count);                               // x = tanh(x)
  void (*add)(float* x, const float* y, int count);                // x += y
  // Tiles of codes around 128 with one scale per row; `columns` is padded, and `row` holds as many floats.
  void (*pack_bytes)(const Matrix& matrix, int columns, float* row, std::uint8_t* codes, Half* scales);
  // `scratch` holds attention_scratch() floats.
  void (*attend)(const AttentionTask& task, float* scratch);
};

inline std::size_t attention_scratch(int rows, int group, int head_dim) {
  return static_cast<std::size_t>(kPageTokens) * head_dim +
         static_cast<std::size_t>(rows) * group * (2 * head_dim + kChunkTokens + 3) + 64;
}

// Each is null where the compiler's target is not the instruction set's.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();
const Kernels* avxvnni_kernels();
const Kernels* neon_kernels();
const Kernels* neon_dotprod_kernels();

struct BuiltKernels {
  const Kernels* kernels;
  bool runs_here;
};

// Those that this build has, the fastest first.
std::vector<BuiltKernels> built_kernels();

// By name, or the fastest that this machine runs; null for a name that is unknown or does not run here.
const Kernels* choose_kernels(const char* name);

}  // namespace regraft
