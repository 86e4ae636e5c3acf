// The lanes as pairs of NEON registers (AArch64). See lanes.hpp.

struct F8 {
  float32x4_t low, high;
};
struct I8 {
  int32x4_t low, high;
};

static inline F8 splat(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
static inline F8 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
static inline void store(float* p, F8 a) { vst1q_f32(p, a.low), vst1q_f32(p + 4, a.high); }
static inline F8 load(const Half* p) {
  const float16x8_t halves = vreinterpretq_f16_u16(vld1q_u16(&p->bits));
  return {vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)};
}
static inline void store(Half* p, F8 a) {
  vst1q_u16(&p->bits, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a.low), a.high)));
}
static inline F8 load(const std::int8_t* p) {
  const int16x8_t v = vmovl_s8(vld1_s8(p));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(v))), vcvtq_f32_s32(vmovl_high_s16(v))};
}
static inline F8 load(const std::uint8_t* p) {
  const uint16x8_t v = vmovl_u8(vld1_u8(p));
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), vcvtq_f32_u32(vmovl_high_u16(v))};
}
static inline void store_bytes(std::uint8_t* p, F8 a) {
  vst1_u8(p, vqmovn_u16(vcombine_u16(vqmovn_u32(vcvtnq_u32_f32(a.low)), vqmovn_u32(vcvtnq_u32_f32(a.high)))));
}
static inline F8 operator+(F8 a, F8 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
static inline F8 operator-(F8 a, F8 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
static inline F8 operator*(F8 a, F8 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
static inline F8 operator/(F8 a, F8 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
static inline F8 fma(F8 a, F8 b, F8 c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
// Chosen by a comparison, for FMAX and FMIN would hand a NaN on where x86 does not.
static inline F8 max(F8 a, F8 b) {
  return {vbslq_f32(vcgtq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcgtq_f32(a.high, b.high), a.high, b.high)};
}
static inline F8 min(F8 a, F8 b) {
  return {vbslq_f32(vcltq_f32(a.low, b.low), a.low, b.low), vbslq_f32(vcltq_f32(a.high, b.high), a.high, b.high)};
}
static inline F8 abs(F8 a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
static inline F8 round(F8 a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
static inline float32x4_t exp2_whole(float32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23));
}
static inline F8 exp2_whole(F8 n) { return {exp2_whole(n.low), exp2_whole(n.high)}; }
static inline F8 to_float(I8 a) { return {vcvtq_f32_s32(a.low), vcvtq_f32_s32(a.high)}; }
static inline I8 splat_word(std::int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
template <int Shift>
static inline I8 shift_right(I8 a) { return {vshlq_s32(a.low, vdupq_n_s32(-Shift)), vshlq_s32(a.high, vdupq_n_s32(-Shift))}; }
static inline I8 load_words(const std::uint8_t* p) {
  return {vreinterpretq_s32_u8(vld1q_u8(p)), vreinterpretq_s32_u8(vld1q_u8(p + 16))};
}
template <int Shift>
static inline int32x4_t field(int32x4_t a, int mask) {
  const uint32x4_t shifted = vshlq_u32(vreinterpretq_u32_s32(a), vdupq_n_s32(-Shift));
  return vandq_s32(vreinterpretq_s32_u32(shifted), vdupq_n_s32(mask));
}
template <int Shift>
static inline I8 field(I8 a, int mask) {
  return {field<Shift>(a.low, mask), field<Shift>(a.high, mask)};
}

struct Quad {
  uint8x16_t low, high;
};
static inline Quad load_quad(const std::uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16)}; }
static inline void store(std::uint8_t* p, Quad a) { vst1q_u8(p, a.low), vst1q_u8(p + 16, a.high); }
static inline uint8x16_t field(uint8x16_t a, int shift, int mask) {
  return vandq_u8(vshlq_u8(a, vdupq_n_s8(static_cast<std::int8_t>(-shift))), vdupq_n_u8(static_cast<std::uint8_t>(mask)));
}
static inline Quad field(Quad a, int shift, int mask) { return {field(a.low, shift, mask), field(a.high, shift, mask)}; }

static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }
