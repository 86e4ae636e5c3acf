// A plain read of memory by the threads that run steps: what the memory gives at most.
#pragma once

#include <cstddef>
#include <cstdint>

#include "team.hpp"

namespace regraft {

// The sum of the 8-byte words of `size` bytes, each read once and in order; what is left of a word is not read.
std::uint64_t read_memory(Team& team, const std::uint8_t* data, std::size_t size);

}  // namespace regraft
