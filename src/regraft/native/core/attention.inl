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
template <int N, class T>
static inline void page_scores(const float* queries, const T* keys, int head_dim, float* scores) {
  F8 acc[N][kPageLanes];
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < kPageLanes; ++j) acc[n][j] = splat(0);
  for (int d = 0; d < head_dim; ++d) {
    F8 key[kPageLanes];
    for (int j = 0; j < kPageLanes; ++j) key[j] = load(keys + kPageTokens * d + 8 * j);
    for (int n = 0; n < N; ++n) {
      const F8 q = splat(queries[n * head_dim + d]);
      for (int j = 0; j < kPageLanes; ++j) acc[n][j] = fma(q, key[j], acc[n][j]);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < kPageLanes; ++j) store(scores + kPageTokens * n + 8 * j, acc[n][j]);
}

// out = out * keep + weights . values of N queries, for the tokens [first, last) of the page.
template <int N, int Lanes, class T>
static inline void value_columns(const float* weights, const T* values, int head_dim, int first, int last, const float* keep,
                                 float* out) {
  F8 acc[N][Lanes];
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < Lanes; ++j) acc[n][j] = load(out + n * head_dim + 8 * j) * splat(keep[n]);
  for (int t = first; t < last; ++t) {
    F8 value[Lanes];
    for (int j = 0; j < Lanes; ++j) value[j] = load(values + head_dim * t + 8 * j);
    for (int n = 0; n < N; ++n) {
      const F8 weight = splat(weights[kPageTokens * n + t]);
      for (int j = 0; j < Lanes; ++j) acc[n][j] = fma(weight, value[j], acc[n][j]);
    }
  }
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < Lanes; ++j) store(out + n * head_dim + 8 * j, acc[n][j]);
}
template <int N, class T>
static inline void page_values(const float* weights, const T* values, int head_dim, int first, int last, const float* keep,
                               float* out) {
  constexpr int lanes = N == 1 ? 4 : 2;
  int d = 0;
  for (; d + 8 * lanes <= head_dim; d += 8 * lanes) value_columns<N, lanes>(weights, values + d, head_dim, first, last, keep, out + d);
  for (; d < head_dim; d += 8) value_columns<N, 1>(weights, values + d, head_dim, first, last, keep, out + d);
}

// Scores of a page into weights, where the highest score so far and the sum of weights are as given; returns what the sums
// before it have to be multiplied with.
static inline float soften(float* s, int first, int last, float* peak, float* total) {
  for (int t = 0; t < first; ++t) s[t] = -3.4e38f;  // also what a page holds beyond the sequence's end
  for (int t = last; t < kPageTokens; ++t) s[t] = -3.4e38f;
  F8 top = load(s);
  for (int j = 1; j < kPageLanes; ++j) top = max(top, load(s + 8 * j));
  const float high = largest(top), risen = high > *peak ? high : *peak;
  for (int j = 0; j < kPageLanes; ++j) store(s + 8 * j, exp(load(s + 8 * j) - splat(risen)));
  for (int t = 0; t < first; ++t) s[t] = 0;
  for (int t = last; t < kPageTokens; ++t) s[t] = 0;
  F8 added = splat(0);
  for (int j = 0; j < kPageLanes; ++j) added = added + load(s + 8 * j);
  alignas(32) float fall[8];
  store(fall, exp(splat(*peak - risen)));
  const float keep = *total > 0 ? fall[0] : 0.0f;
  *total = *total * keep + sum(added);
  *peak = risen;
  return keep;
}

struct Tokens {
  int first;
  int last;
};
// What the query at `position` sees of a page.
static inline Tokens tokens_seen(int position, int window, int page) {
  const int base = page * kPageTokens, seen_from = window ? position - window + 1 : 0;
  return {seen_from > base ? seen_from - base : 0, position - base + 1 < kPageTokens ? position - base + 1 : kPageTokens};
}

struct Running {  // of each query
  const float* queries;
  float* out;
  float* scores;
  float* peak;
  float* total;
};

// A page for N heads of one row.
template <int N>
static inline void some_heads(const Half* keys, const Half* values, int head_dim, Tokens seen, int n, const Running& running) {
  float keep[N], *scores = running.scores + n * kPageTokens;
  page_scores<N>(running.queries + n * head_dim, keys, head_dim, scores);
  for (int i = 0; i < N; ++i)
    keep[i] = soften(scores + i * kPageTokens, seen.first, seen.last, running.peak + n + i, running.total + n + i);
  page_values<N>(scores, values, head_dim, seen.first, seen.last, keep, running.out + n * head_dim);
}

// A page for the heads of one row: its halves are read as they lie.
static inline void one_row(const AttentionTask& task, const std::uint8_t* memory, int page, const Running& running) {
  const Half* keys = reinterpret_cast<const Half*>(memory + task.key_offset);
  const Half* values = reinterpret_cast<const Half*>(memory + task.value_offset);
  const Tokens seen = tokens_seen(task.first_position, task.window, page);
  int n = 0;
  for (; n + 4 <= task.group; n += 4) some_heads<4>(keys, values, task.head_dim, seen, n, running);
  switch (task.group - n) {
    case 3: return some_heads<3>(keys, values, task.head_dim, seen, n, running);
    case 2: return some_heads<2>(keys, values, task.head_dim, seen, n, running);
    case 1: return some_heads<1>(keys, values, task.head_dim, seen, n, running);
    default: return;
  }
}

// A page for many queries: it is widened once.
static inline void many_rows(const AttentionTask& task, const std::uint8_t* memory, int page, float* keys, float* values,
                             const Running& running) {
  const int head_dim = task.head_dim, count = task.rows * task.group;
  widen(memory + task.key_offset, keys, kPageTokens * head_dim);
  widen(memory + task.value_offset, values, kPageTokens * head_dim);
  int n = 0;
  for (; n + 4 <= count; n += 4) page_scores<4>(running.queries + n * head_dim, keys, head_dim, running.scores + n * kPageTokens);
  for (; n < count; ++n) page_scores<1>(running.queries + n * head_dim, keys, head_dim, running.scores + n * kPageTokens);
  for (n = 0; n < count; ++n) {
    const Tokens seen = tokens_seen(task.first_position + n / task.group, task.window, page);
    if (seen.first >= seen.last) continue;
    float* s = running.scores + n * kPageTokens;
    const float keep = soften(s, seen.first, seen.last, running.peak + n, running.total + n);
    page_values<1>(s, values, head_dim, seen.first, seen.last, &keep, running.out + n * head_dim);
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
  const Running running{queries, out, scores, peak, total};
  const int begin = task.window && task.first_position >= task.window ? task.first_position - task.window + 1 : 0;
  for (int page = begin / kPageTokens; page <= last_position / kPageTokens; ++page) {
    const std::uint8_t* memory = task.arena + task.pages[page] * task.page_bytes;
    if (task.rows == 1)
      one_row(task, memory, page, running);
    else
      many_rows(task, memory, page, keys, values, running);
  }
  for (int n = 0; n < count; ++n) {
    float* y = task.out + n / task.group * static_cast<std::ptrdiff_t>(task.q_stride) + n % task.group * head_dim;
    const float inverse = 1.0f / total[n];
    for (int d = 0; d < head_dim; ++d) y[d] = out[n * head_dim + d] * inverse;
  }
}
