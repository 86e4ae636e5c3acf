// Attention of a few query rows over the pages of their sequence, by running maximum and sum (Milakov and Gimelshein 2018,
// arXiv 1805.02867), chunk by chunk of pages. Included inside an instruction set's namespace, after lanes.hpp.
//
// A query's result depends on its own position alone, not on the rows beside it: chunks begin at the same positions, are
// taken in the same order, and what a row may not see has the weight 0.

constexpr int kPageLanes = kPageTokens / 8;

// A page's keys [head_dim][kPageTokens] or values [kPageTokens][head_dim], T a half or a byte, as floats.
template <class T>
static inline void widen(const T* numbers, float* floats, int count) {
  for (int i = 0; i < count; i += 8) store(floats + i, load(numbers + i));
}

// A stretch of memory that is read soon: pages lie anywhere, which the hardware does not foresee.
template <class T>
static inline void prefetch_all(const T* numbers, int count) {
  for (int i = 0; i < count; i += 64 / static_cast<int>(sizeof(T))) prefetch(numbers + i);
}

// Bytes are followed by a scale per token, halves by nothing. `numbers` belong to the page's tokens.
static inline void scale_tokens(const Half*, int, float*) {}
static inline void scale_tokens(const std::int8_t* page, int head_dim, float* numbers) {
  const Half* scales = reinterpret_cast<const Half*>(page + kPageTokens * head_dim);
  for (int t = 0; t < kPageTokens; t += 8) store(numbers + t, load(numbers + t) * load(scales + t));
}

// Tokens [first, last) of a chunk.
struct Tokens {
  int first;
  int last;
};

// Pages of a sequence, of which those from `begin` to `end` are there.
template <class T>
struct Chunk {
  int first_position;
  int begin;
  int end;
  const T* keys[kChunkPages];
  const T* values[kChunkPages];

  // What the query at `position` sees.
  Tokens seen_from(int position, int window) const {
    const int first = window ? position - window + 1 - first_position : 0, last = position + 1 - first_position;
    return {first > 0 ? first : 0, last < kChunkTokens ? last : kChunkTokens};
  }
};

// What is known of each query.
struct Running {
  const float* queries;  // [head_dim]
  float* out;            // [head_dim]: the weighted values so far
  float* scores;         // [kChunkTokens]: of the chunk, then their weights
  float* peak;           // the highest score so far
  float* total;          // the sum of weights so far
  float* keep;           // what `out` has to be multiplied with, now that the chunk's scores are known
};

// q . k of N queries with all tokens of P pages, which follow each other.
template <int N, int P, class T>
static inline void page_scores(const float* queries, const T* const* keys, int head_dim, float* scores) {
  F8 acc[N][P][kPageLanes];
  for (int n = 0; n < N; ++n)
    for (int p = 0; p < P; ++p)
      for (int j = 0; j < kPageLanes; ++j) acc[n][p][j] = splat(0);
  for (int d = 0; d < head_dim; ++d)
    for (int p = 0; p < P; ++p) {
      F8 key[kPageLanes];
      for (int j = 0; j < kPageLanes; ++j) key[j] = load(keys[p] + kPageTokens * d + 8 * j);
      for (int n = 0; n < N; ++n) {
        const F8 q = splat(queries[n * head_dim + d]);
        for (int j = 0; j < kPageLanes; ++j) acc[n][p][j] = fma(q, key[j], acc[n][p][j]);
      }
    }
  for (int n = 0; n < N; ++n)
    for (int p = 0; p < P; ++p)
      for (int j = 0; j < kPageLanes; ++j) store(scores + kChunkTokens * n + kPageTokens * p + 8 * j, acc[n][p][j]);
}

// out = out * keep + weights . values of N queries, for tokens of the pages from `first` on.
template <int N, int Lanes, class T>
static inline void value_columns(const float* weights, const T* const* values, int column, int head_dim, Tokens tokens,
                                 const float* keep, float* out) {
  F8 acc[N][Lanes];
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < Lanes; ++j) acc[n][j] = load(out + n * head_dim + column + 8 * j) * splat(keep[n]);
  for (int t = tokens.first; t < tokens.last;) {
    const int page = t / kPageTokens, end = tokens.last < kPageTokens * (page + 1) ? tokens.last : kPageTokens * (page + 1);
    const T* row = values[page] + t % kPageTokens * head_dim + column;
    for (; t < end; ++t, row += head_dim) {
      F8 value[Lanes];
      for (int j = 0; j < Lanes; ++j) value[j] = load(row + 8 * j);
      for (int n = 0; n < N; ++n) {
        const F8 weight = splat(weights[kChunkTokens * n + t]);
        for (int j = 0; j < Lanes; ++j) acc[n][j] = fma(weight, value[j], acc[n][j]);
      }
    }
  }
  for (int n = 0; n < N; ++n)
    for (int j = 0; j < Lanes; ++j) store(out + n * head_dim + column + 8 * j, acc[n][j]);
}
template <int N, class T>
static inline void weigh_values(const float* weights, const T* const* values, int head_dim, Tokens tokens, const float* keep,
                                float* out) {
  constexpr int lanes = N == 1 ? 4 : kRegisters == 16 ? 2 : 4;
  int column = 0;
  for (; column + 8 * lanes <= head_dim; column += 8 * lanes)
    value_columns<N, lanes>(weights, values, column, head_dim, tokens, keep, out);
  for (; column < head_dim; column += 8) value_columns<N, 1>(weights, values, column, head_dim, tokens, keep, out);
}

// A query's scores of a chunk into weights; the others of the vectors that the tokens lie in become 0.
static inline void soften(Tokens tokens, float* s, float* peak, float* total, float* keep) {
  const int begin = tokens.first / 8 * 8, end = (tokens.last + 7) / 8 * 8;
  for (int t = begin; t < tokens.first; ++t) s[t] = -3.4e38f;
  for (int t = tokens.last; t < end; ++t) s[t] = -3.4e38f;  // also what a page holds beyond the sequence's end
  F8 top = load(s + begin);
  for (int t = begin + 8; t < end; t += 8) top = max(top, load(s + t));
  const float high = largest(top), risen = high > *peak ? high : *peak;
  for (int t = begin; t < end; t += 8) store(s + t, exp(load(s + t) - splat(risen)));
  for (int t = begin; t < tokens.first; ++t) s[t] = 0;
  for (int t = tokens.last; t < end; ++t) s[t] = 0;
  F8 added = splat(0);
  for (int t = begin; t < end; t += 8) added = added + load(s + t);
  alignas(32) float fall[8];
  store(fall, exp(splat(*peak - risen)));
  *keep = *total > 0 ? fall[0] : 0.0f;
  *total = *total * *keep + sum(added);
  *peak = risen;
}

// A chunk for N heads of one row: its pages are read as they lie.
template <int N, class T>
static inline void some_heads(const Chunk<T>& chunk, Tokens tokens, int head_dim, int n, const Running& r) {
  constexpr int pages = kRegisters == 16 ? 1 : 2;
  const float* queries = r.queries + n * head_dim;
  float* scores = r.scores + n * kChunkTokens;
  int page = chunk.begin;
  for (; page + pages <= chunk.end; page += pages) {
    for (int next = page; next < page + pages; ++next) {
      prefetch_all(chunk.values[next], kPageTokens * head_dim);
      if (next + pages < chunk.end) prefetch_all(chunk.keys[next + pages], kPageTokens * head_dim);
    }
    page_scores<N, pages>(queries, chunk.keys + page, head_dim, scores + kPageTokens * page);
  }
  for (; page < chunk.end; ++page) page_scores<N, 1>(queries, chunk.keys + page, head_dim, scores + kPageTokens * page);
  for (int i = 0; i < N; ++i) {
    float* s = scores + i * kChunkTokens;
    for (int p = chunk.begin; p < chunk.end; ++p) scale_tokens(chunk.keys[p], head_dim, s + kPageTokens * p);
    soften(tokens, s, r.peak + n + i, r.total + n + i, r.keep + n + i);
    for (int p = chunk.begin; p < chunk.end; ++p) scale_tokens(chunk.values[p], head_dim, s + kPageTokens * p);
  }
  weigh_values<N>(scores, chunk.values, head_dim, tokens, r.keep + n, r.out + n * head_dim);
}

template <class T>
static inline void one_row(const AttentionTask& task, const Chunk<T>& chunk, const Running& running) {
  const Tokens tokens = chunk.seen_from(task.first_position, task.window);
  int n = 0;
  for (; n + 4 <= task.group; n += 4) some_heads<4>(chunk, tokens, task.head_dim, n, running);
  switch (task.group - n) {
    case 3: return some_heads<3>(chunk, tokens, task.head_dim, n, running);
    case 2: return some_heads<2>(chunk, tokens, task.head_dim, n, running);
    case 1: return some_heads<1>(chunk, tokens, task.head_dim, n, running);
    default: return;
  }
}

// A chunk for many queries: each page is widened once.
template <class T>
static inline void many_rows(const AttentionTask& task, const Chunk<T>& chunk, float* page, const Running& r) {
  const int head_dim = task.head_dim, count = task.rows * task.group;
  const float* pages[kChunkPages];  // the one that is widened, wherever it stands in the chunk
  for (const float*& each : pages) each = page;
  for (int p = chunk.begin; p < chunk.end; ++p) {
    widen(chunk.keys[p], page, kPageTokens * head_dim);
    float* scores = r.scores + kPageTokens * p;
    int n = 0;
    for (; n + 4 <= count; n += 4) page_scores<4, 1>(r.queries + n * head_dim, pages, head_dim, scores + n * kChunkTokens);
    for (; n < count; ++n) page_scores<1, 1>(r.queries + n * head_dim, pages, head_dim, scores + n * kChunkTokens);
    for (n = 0; n < count; ++n) scale_tokens(chunk.keys[p], head_dim, scores + n * kChunkTokens);
  }
  const auto tokens_of = [&](int n) { return chunk.seen_from(task.first_position + n / task.group, task.window); };
  for (int n = 0; n < count; ++n)
    if (const Tokens seen = tokens_of(n); seen.first < seen.last)
      soften(seen, r.scores + n * kChunkTokens, r.peak + n, r.total + n, r.keep + n);
  for (int p = chunk.begin; p < chunk.end; ++p) {
    widen(chunk.values[p], page, kPageTokens * head_dim);
    for (int n = 0; n < count; ++n) {
      Tokens seen = tokens_of(n);
      seen.first = seen.first > kPageTokens * p ? seen.first : kPageTokens * p;
      seen.last = seen.last < kPageTokens * (p + 1) ? seen.last : kPageTokens * (p + 1);
      if (seen.first >= seen.last) continue;
      scale_tokens(chunk.values[p], head_dim, r.scores + n * kChunkTokens + kPageTokens * p);
      weigh_values<1>(r.scores + n * kChunkTokens, pages, head_dim, seen, r.keep + n, r.out + n * head_dim);
      r.keep[n] = 1;  // it was for the first page that is seen
    }
  }
}

template <class T>
static inline Chunk<T> chunk_at(const AttentionTask& task, int first, int begin, int end) {
  Chunk<T> chunk{first * kPageTokens, begin > first ? begin - first : 0, end - first < kChunkPages ? end - first : kChunkPages, {}, {}};
  for (int p = chunk.begin; p < chunk.end; ++p) {
    const std::uint8_t* memory = task.arena + task.pages[first + p] * task.page_bytes;
    chunk.keys[p] = reinterpret_cast<const T*>(memory + task.key_offset);
    chunk.values[p] = reinterpret_cast<const T*>(memory + task.value_offset);
  }
  return chunk;
}

template <class T>
static void attend_in_chunks(const AttentionTask& task, float* page, const Running& running) {
  const int last_position = task.first_position + task.rows - 1;
  const int begin = (task.window && task.first_position >= task.window ? task.first_position - task.window + 1 : 0) / kPageTokens;
  const int end = last_position / kPageTokens + 1;
  for (int first = begin / kChunkPages * kChunkPages; first < end; first += kChunkPages) {
    const Chunk<T> chunk = chunk_at<T>(task, first, begin, end);
    if (task.rows == 1)
      one_row(task, chunk, running);
    else
      many_rows(task, chunk, page, running);
  }
}

static void attend(const AttentionTask& task, float* scratch) {
  const int head_dim = task.head_dim, count = task.rows * task.group;
  float* page = scratch;
  float* queries = page + kPageTokens * head_dim;
  float* out = queries + count * head_dim;
  float* scores = out + count * head_dim;
  float* peak = scores + count * kChunkTokens;
  float* total = peak + count;
  float* keep = total + count;
  for (int n = 0; n < count; ++n) {
    const float* q = task.q + n / task.group * static_cast<std::ptrdiff_t>(task.q_stride) + n % task.group * head_dim;
    for (int d = 0; d < head_dim; ++d) queries[n * head_dim + d] = q[d] * task.scale;
    std::memset(out + n * head_dim, 0, sizeof(float) * head_dim);
    peak[n] = -3.4e38f, total[n] = 0;
  }
  const Running running{queries, out, scores, peak, total, keep};
  if (task.in_bytes)
    attend_in_chunks<std::int8_t>(task, page, running);
  else
    attend_in_chunks<Half>(task, page, running);
  for (int n = 0; n < count; ++n) {
    float* y = task.out + n / task.group * static_cast<std::ptrdiff_t>(task.q_stride) + n % task.group * head_dim;
    const float inverse = 1.0f / total[n];
    for (int d = 0; d < head_dim; ++d) y[d] = out[n * head_dim + d] * inverse;
  }
}
