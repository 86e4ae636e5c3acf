// The lanes as arrays that any C++17 compiler turns into what its target has. See lanes.hpp.

struct F8 {
  float v[8];
};
struct I8 {
  std::int32_t v[8];
};

template <class Op>
static inline F8 each(Op op) {
  F8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = op(i);
  return r;
}
static inline F8 splat(float x) { return each([&](int) { return x; }); }
static inline F8 load(const float* p) { return each([&](int i) { return p[i]; }); }
static inline void store(float* p, F8 a) { std::memcpy(p, a.v, sizeof a.v); }
static inline F8 load(const Half* p) { return each([&](int i) { return to_float(p[i]); }); }
static inline void store(Half* p, F8 a) {
  for (int i = 0; i < 8; ++i) p[i] = to_half(a.v[i]);
}
static inline F8 load(const std::int8_t* p) { return each([&](int i) { return static_cast<float>(p[i]); }); }
static inline F8 load(const std::uint8_t* p) { return each([&](int i) { return static_cast<float>(p[i]); }); }
static inline void store_bytes(std::uint8_t* p, F8 a) {
  for (int i = 0; i < 8; ++i) p[i] = static_cast<std::uint8_t>(a.v[i]);
}
static inline F8 operator+(F8 a, F8 b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
static inline F8 operator-(F8 a, F8 b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
static inline F8 operator*(F8 a, F8 b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
static inline F8 operator/(F8 a, F8 b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
static inline F8 fma(F8 a, F8 b, F8 c) {
#if defined(FP_FAST_FMAF)
  return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); });
#else
  return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
#endif
}
static inline F8 max(F8 a, F8 b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F8 min(F8 a, F8 b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
static inline F8 abs(F8 a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
// To the nearest, ties to even, for |a| < 2^22: the sum has no bits left for a fraction.
static inline F8 round(F8 a) {
  return each([&](int i) { return (a.v[i] + 12582912.0f) - 12582912.0f; });
}
static inline F8 exp2_whole(F8 n) {
  return each([&](int i) {
    const std::int32_t bits = (static_cast<std::int32_t>(n.v[i]) + 127) << 23;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  });
}
static inline F8 to_float(I8 a) { return each([&](int i) { return static_cast<float>(a.v[i]); }); }
static inline I8 splat_word(std::int32_t x) {
  I8 r;
  for (std::int32_t& each : r.v) each = x;
  return r;
}
// Of whole multiples of the power of two alone.
template <int Shift>
static inline I8 shift_right(I8 a) {
  for (std::int32_t& each : a.v) each /= 1 << Shift;
  return a;
}
static inline I8 load_words(const std::uint8_t* p) {
  I8 r;
  for (int i = 0; i < 8; ++i)  // little-endian on any machine
    r.v[i] = static_cast<std::int32_t>(p[4 * i] | p[4 * i + 1] << 8 | p[4 * i + 2] << 16 |
                                       static_cast<std::uint32_t>(p[4 * i + 3]) << 24);
  return r;
}
template <int Shift>
static inline I8 field(I8 a, int mask) {
  I8 r;
  for (int i = 0; i < 8; ++i) r.v[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(a.v[i]) >> Shift) & mask;
  return r;
}

struct Quad {
  std::uint8_t v[32];
};
static inline Quad load_quad(const std::uint8_t* p) {
  Quad r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
static inline void store(std::uint8_t* p, Quad a) { std::memcpy(p, a.v, sizeof a.v); }
static inline Quad field(Quad a, int shift, int mask) {
  Quad r;
  for (int i = 0; i < 32; ++i) r.v[i] = static_cast<std::uint8_t>(a.v[i] >> shift & mask);
  return r;
}

static inline void prefetch(const void*) {}
