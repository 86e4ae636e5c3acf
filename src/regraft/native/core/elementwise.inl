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

static void add(float* x, const float* y, int count) {
  for (int i = 0; i < count; i += 8) store(x + i, load(x + i) + load(y + i));
}
