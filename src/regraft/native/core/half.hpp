// IEEE half precision in storage; arithmetic is in float.
#pragma once

#include <cstdint>
#include <cstring>

namespace regraft {

struct Half {
  std::uint16_t bits;
};

inline float to_float(Half h) {
  const std::uint32_t magnitude = h.bits & 0x7fffu, sign = static_cast<std::uint32_t>(h.bits & 0x8000u) << 16;
  // A half's bits, shifted to a float's place, read as 2^-112 of its value; subnormals come out right as well.
  std::uint32_t bits = magnitude << 13;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  x *= 5.192296858534828e33f;  // 2^112
  std::memcpy(&bits, &x, sizeof bits);
  if (magnitude >= 0x7c00u) bits = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  bits |= sign;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline Half to_half(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return {static_cast<std::uint16_t>(sign | 0x7e00u)};   // nan
  if (bits >= 0x477ff000u) return {static_cast<std::uint16_t>(sign | 0x7c00u)};  // rounds beyond 65504
  if (bits < 0x38800000u) {  // subnormal: adding 2^-1 leaves the rounded bits at the end of the mantissa
    float m;
    std::memcpy(&m, &bits, sizeof m);
    m += 0.5f;
    std::memcpy(&bits, &m, sizeof bits);
    return {static_cast<std::uint16_t>(sign | (bits - 0x3f000000u))};
  }
  bits += 0xc8000fffu + (bits >> 13 & 1);  // exponent from 127 to 15; round to nearest, ties to even
  return {static_cast<std::uint16_t>(sign | bits >> 13)};
}

}  // namespace regraft
