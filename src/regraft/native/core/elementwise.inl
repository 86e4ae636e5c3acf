// Norms and activations. Included inside an instruction set's namespace, after lanes.hpp. Counts are whole eights.

static void rms_norm(const float* x, const float* w, int count, float epsilon, float* y) {
  F8 squares = splat(0);
  for (int i = 0; i < count; i += 8) squares = fma(load(x + i), load(x + i), squares);
  const F8 inverse = splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(count) + epsilon));
  for (int i = 0; i < count; i += 8) store(y + i, load(x + i) * inverse * load(w + i));
}

static inline F8 sigmoid(F8 x) { return splat(1.0f) / (splat(1.0f) + exp(splat(0.0f) - x)); }

static void silu_mul(float* gate, const float* up, int count) {
  for (int i = 0; i < count; i += 8) {
    const F8 g = load(gate + i);
    store(gate + i, g * sigmoid(g) * load(up + i));
  }
}

// 0.5 x (1 + tanh(u)) = x sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3) (Hendrycks and Gimpel 2016, arXiv 1606.08415).
static void gelu_tanh_mul(float* gate, const float* up, int count) {
  for (int i = 0; i < count; i += 8) {
    const F8 g = load(gate + i);
    const F8 u = splat(1.5957691216057308f) * g * fma(splat(0.044715f) * g, g, splat(1.0f));
    store(gate + i, g * sigmoid(u) * load(up + i));
  }
}

// tanh(x) = 2 sigmoid(2x) - 1.
static void tanh(float* x, int count) {
  for (int i = 0; i < count; i += 8) store(x + i, fma(splat(2.0f), sigmoid(splat(2.0f) * load(x + i)), splat(-1.0f)));
}

static void add(float* x, const float* y, int count) {
  for (int i = 0; i < count; i += 8) store(x + i, load(x + i) + load(y + i));
}

// x (1 + erf(x / sqrt 2)) / 2, with erf to 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
static void gelu(float* x, int count) {
  for (int i = 0; i < count; i += 8) {
    const F8 v = load(x + i), z = abs(v) * splat(0.70710678f);
    const F8 t = splat(1.0f) / fma(splat(0.3275911f), z, splat(1.0f));
    F8 p = splat(1.061405429f);
    for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, splat(c));
    const F8 tail = p * t * exp(splat(0.0f) - z * z);  // 1 - erf(z), z >= 0
    store(x + i, splat(0.5f) * (v + abs(v) * (splat(1.0f) - tail)));
  }
}
