// Attention of a few query rows over the pages of their sequence, by running maximum and sum (Milakov and Gimelshein 2018,
// arXiv 1805.02867), page by page. Included inside an instruction set's namespace, after lanes.hpp.
//
// A query's result depends on its own position alone, not on the rows beside it: pages are taken in the same order, and
// what a row may not see has the weight 0.

constexpr int kPageLanes = kPageTokens / 8;

// A page's keys [head_dim][kPageTokens] or values [kPageTokens][head_dim] as floats.
static inline void widen(const std::uint8_t* halves, float* floats, int count) {
  for (int i = 0; i < count; i += 8) store(floats + i, load(reinterpret_cast<const Half*>(halves) + i));
}

// q . k of N queries with all tokens of a page.
template <int N>
static inline void page_scores(const float* queries, const float* keys, int head_dim, float* scores) {
  F8 acc[N][kPageLanes];
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < kPageLanes; ++j) acc[n][j] = splat(0);
  for (int d = 0; d < head_dim; ++d) {
    for (int n = 0; n < N; ++n) {
      const F8 q = splat(queries[n * head_dim + d]);
      for (int j = 0; j < kPageLanes; ++j) acc[n][j] = fma(q, load(keys + kPageTokens * d + 8 * j), acc[n][j]);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < kPageLanes; ++j) store(scores + kPageTokens * n + 8 * j, acc[n][j]);
}

// out = out * keep + weights . values, for the tokens [first, last) of the page.
static inline void page_values(const float* weights, const float* values, int head_dim, int first, int last, float keep,
                               float* out) {
  const F8 old = splat(keep);
  int d = 0;
  for (; d + 32 <= head_dim; d += 32) {
    F8 acc[4];
    for (int j = 0; j < 4; ++j) acc[j] = load(out + d + 8 * j) * old;
    for (int t = first; t < last; ++t) {
      const F8 weight = splat(weights[t]);
      for (int j = 0; j < 4; ++j) acc[j] = fma(weight, load(values + head_dim * t + d + 8 * j), acc[j]);
    }
    for (int j = 0; j < 4; ++j) store(out + d + 8 * j, acc[j]);
  }
  for (; d < head_dim; d += 8) {
    F8 acc = load(out + d) * old;
    for (int t = first; t < last; ++t) acc = fma(splat(weights[t]), load(values + head_dim * t + d), acc);
    store(out + d, acc);
  }
}

static void attend(const AttentionTask& task, float* scratch) {
  const int head_dim = task.head_dim, count = task.rows * task.group, last_position = task.first_position + task.rows - 1;
  float* keys = scratch;
  float* values = keys + kPageTokens * head_dim;
  float* queries = values + kPageTokens * head_dim;
  float* out = queries + count * head_dim;
  float* scores = out + count * head_dim;
  float* peak = scores + count * kPageTokens;
  float* total = peak + count;
  for (int n = 0; n < count; ++n) {
    const float* q = task.q + n / task.group * static_cast<std::ptrdiff_t>(task.q_stride) + n % task.group * head_dim;
    for (int d = 0; d < head_dim; ++d) queries[n * head_dim + d] = q[d] * task.scale;
    std::memset(out + n * head_dim, 0, sizeof(float) * head_dim);
    peak[n] = -3.4e38f, total[n] = 0;
  }
  const int begin = task.window && task.first_position >= task.window ? task.first_position - task.window + 1 : 0;
  for (int page = begin / kPageTokens; page <= last_position / kPageTokens; ++page) {
    const std::uint8_t* memory = task.arena + task.pages[page] * task.page_bytes;
    widen(memory + task.key_offset, keys, kPageTokens * head_dim);
    widen(memory + task.value_offset, values, kPageTokens * head_dim);
    int n = 0;
    for (; n + 4 <= count; n += 4) page_scores<4>(queries + n * head_dim, keys, head_dim, scores + n * kPageTokens);
    for (; n < count; ++n) page_scores<1>(queries + n * head_dim, keys, head_dim, scores + n * kPageTokens);
    for (n = 0; n < count; ++n) {
      const int position = task.first_position + n / task.group, base = page * kPageTokens;
      const int seen_from = task.window ? position - task.window + 1 : 0;
      const int first = seen_from > base ? seen_from - base : 0;
      const int last = position - base + 1 < kPageTokens ? position - base + 1 : kPageTokens;
      if (first >= last) continue;
      float* s = scores + n * kPageTokens;
      for (int t = 0; t < first; ++t) s[t] = -3.4e38f;  // also what a page holds beyond the sequence's end
      for (int t = last; t < kPageTokens; ++t) s[t] = -3.4e38f;
      F8 top = load(s);
      for (int j = 1; j < kPageLanes; ++j) top = max(top, load(s + 8 * j));
      const float high = largest(top), risen = high > peak[n] ? high : peak[n];
      F8 added = splat(0);
      for (int j = 0; j < kPageLanes; ++j) {
        const F8 e = exp(load(s + 8 * j) - splat(risen));
        store(s + 8 * j, e);
      }
      for (int t = 0; t < first; ++t) s[t] = 0;
      for (int t = last; t < kPageTokens; ++t) s[t] = 0;
      for (int j = 0; j < kPageLanes; ++j) added = added + load(s + 8 * j);
      alignas(32) float fall[8];
      store(fall, exp(splat(peak[n] - risen)));
      const float keep = total[n] > 0 ? fall[0] : 0.0f;
      total[n] = total[n] * keep + sum(added);
      peak[n] = risen;
      page_values(s, values, head_dim, first, last, keep, out + n * head_dim);
    }
  }
  for (int n = 0; n < count; ++n) {
    float* y = task.out + n / task.group * static_cast<std::ptrdiff_t>(task.q_stride) + n % task.group * head_dim;
    const float inverse = 1.0f / total[n];
    for (int d = 0; d < head_dim; ++d) y[d] = out[n * head_dim + d] * inverse;
  }
}
