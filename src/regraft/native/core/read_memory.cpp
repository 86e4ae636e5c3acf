#include "read_memory.hpp"

#include <atomic>
#include <cstring>

namespace regraft {
namespace {

constexpr std::size_t kChunk = 1 << 20;  // bytes of a task: long enough for the prefetcher, many enough to share evenly
constexpr int kSums = 16;                // independent ones, so that no addition waits for the one before

std::uint64_t sum(const std::uint8_t* data, std::size_t size) {
  std::uint64_t sums[kSums] = {}, words[kSums];
  std::size_t at = 0;
  for (; at + sizeof words <= size; at += sizeof words) {
    std::memcpy(words, data + at, sizeof words);
    for (int i = 0; i < kSums; ++i) sums[i] += words[i];
  }
  for (; at + sizeof *words <= size; at += sizeof *words) {
    std::memcpy(words, data + at, sizeof *words);
    sums[0] += words[0];
  }
  std::uint64_t total = 0;
  for (std::uint64_t one : sums) total += one;
  return total;
}

}  // namespace

std::uint64_t read_memory(Team& team, const std::uint8_t* data, std::size_t size) {
  std::atomic<std::uint64_t> total{0};
  team.run(static_cast<int>((size + kChunk - 1) / kChunk), [&](int task, int) {
    const std::size_t begin = task * kChunk;
    total += sum(data + begin, size - begin < kChunk ? size - begin : kChunk);
  });
  return total;
}

}  // namespace regraft
