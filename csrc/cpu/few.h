// Forward for a few queries over many keys (decoding): bound by reading keys and values once.
//
// A task is one key head and one part of its keys; it serves every query of every query head that reads
// them, so that grouped queries share the read. Queries are rows here: too few to fill lanes. Keys and
// values are read in their own dtype.

constexpr int kFewStepKeys = 64;

ATTN_INLINE Vec<float> load_as(const float* p, float) { return load(p); }
ATTN_INLINE Vec<double> load_as(const double* p, double) { return load(p); }

struct BFloat16 {
  uint16_t bits;
};
ATTN_INLINE float value_of(BFloat16 x) { return from_bfloat16(x.bits); }
ATTN_INLINE float value_of(_Float16 x) { return float(x); }
ATTN_INLINE float value_of(float x) { return x; }
ATTN_INLINE double value_of(double x) { return x; }

ATTN_INLINE Vec<float> load_as(const BFloat16* p, float) {
  typedef uint16_t Half __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(kVecBytes)));
  const Half x = *reinterpret_cast<const Half*>(p);
  return Vec<float>(__builtin_convertvector(x, Wide) << 16);
}
ATTN_INLINE Vec<float> load_as(const _Float16* p, float) {
#if defined(ATTN_AVX512)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(ATTN_AVX2)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> x;
  for (int i = 0; i < kLanes<float>; ++i) x[i] = float(p[i]);
  return x;
#endif
}

template <typename T>
ATTN_INLINE T sum_lanes(Vec<T> x) {
#if defined(ATTN_AVX512)
  if constexpr (sizeof(T) == 4) return _mm512_reduce_add_ps(x);
  else return _mm512_reduce_add_pd(x);
#else
  T sum = x[0];
  for (int i = 1; i < kLanes<T>; ++i) sum += x[i];
  return sum;
#endif
}

// to[j] += x . rows[j] for n rows.
template <typename T, typename S>
inline void add_dots(const T* x, int64_t dim, const S* rows, int64_t stride, int64_t n, T* to) {
  constexpr int w = kLanes<T>, kRowsAtOnce = 4;
  for (int64_t j = 0; j < n; j += kRowsAtOnce) {
    const S* row[kRowsAtOnce];
    Vec<T> sum[kRowsAtOnce] = {};
    for (int r = 0; r < kRowsAtOnce; ++r) row[r] = rows + at_most(j + r, n - 1) * stride;
    int64_t d = 0;
    for (; d + w <= dim; d += w) {
      const Vec<T> left = load(x + d);
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce; ++r) sum[r] = fma(left, load_as(row[r] + d, T(0)), sum[r]);
    }
    for (int r = 0; r < kRowsAtOnce && j + r < n; ++r) {
      T total = sum_lanes<T>(sum[r]);
      for (int64_t e = d; e < dim; ++e) total += x[e] * T(value_of(row[r][e]));
      to[j + r] += total;
    }
  }
}

// to[0, dim) += sum over j of weights[j] * rows[j].
template <typename T, typename S>
inline void add_weighted(const T* weights, int64_t dim, const S* rows, int64_t stride, int64_t n, T* to) {
  constexpr int w = kLanes<T>, kVecs = 4;
  int64_t d = 0;
  for (; d + kVecs * w <= dim; d += kVecs * w) {
    Vec<T> sum[kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) sum[i] = load(to + d + i * w);
    for (int64_t j = 0; j < n; ++j) {
      const Vec<T> weight = set1(weights[j]);
#pragma GCC unroll 4
      for (int i = 0; i < kVecs; ++i) {
        sum[i] = fma(weight, load_as(rows + j * stride + d + i * w, T(0)), sum[i]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kVecs; ++i) store(to + d + i * w, sum[i]);
  }
  for (; d < dim; ++d) {
    for (int64_t j = 0; j < n; ++j) to[d] += weights[j] * T(value_of(rows[j * stride + d]));
  }
}

template <typename T>
struct FewQueries {
  T *q, *q_rel, *logits, *one_row;
  T* state;  // of each query: pivot, sum, acc[padded v_dim]

  static int64_t queries(const AttentionParams& p) { return p.heads / p.k_heads * p.q_len; }
  static int64_t state_size(const AttentionParams& p) { return kLanes<T> + padded<T>(p.v_dim); }

  void layout(Arena& arena, const ForwardParams& p) {
    q = arena.take<T>(queries(p) * padded<T>(p.dim));
    q_rel = arena.take<T>(queries(p) * padded<T>(p.dim));
    logits = arena.take<T>(kFewStepKeys);
    one_row = arena.take<T>(padded<T>(p.v_dim));
    state = arena.take<T>(queries(p) * state_size(p));
  }

  static T* part(const ForwardParams& p, int64_t batch, int64_t k_head, int64_t split) {
    const int64_t size = queries(p) * state_size(p);
    return static_cast<T*>(p.partial) + ((batch * p.k_heads + k_head) * p.splits + split) * size;
  }

  void run(const ForwardParams& p, int64_t batch, int64_t k_head, int64_t split) {
    switch (p.kv_dtype) {
      case DType::kBFloat16: return run_as<BFloat16>(p, batch, k_head, split);
      case DType::kFloat16: return run_as<_Float16>(p, batch, k_head, split);
      default: return run_as<T>(p, batch, k_head, split);
    }
  }

  template <typename S>
  void run_as(const ForwardParams& p, int64_t batch, int64_t k_head, int64_t split) {
    if constexpr (sizeof(T) == 8 && sizeof(S) == 2) {
      return;  // float64 has no half-precision keys
    } else {
      const int64_t group = p.heads / p.k_heads, n = queries(p), dim = padded<T>(p.dim);
      int64_t k_len = p.k_len;
      if (p.key_lengths) k_len = at_least(at_most(p.key_lengths[batch], k_len), 0);
      const int64_t offset = p.query_offsets ? p.query_offsets[batch] : p.query_offset;
      for (int64_t i = 0; i < n; ++i) {
        const int64_t head = k_head * group + i / p.q_len;
        load_row(p.dtype, row_of(p.q, p.dtype, batch, head, i % p.q_len), p.dim, T(p.scale * kLog2E),
                 q + i * dim);
        const View& from = p.q_rel.data ? p.q_rel : p.q;
        load_row(p.dtype, row_of(from, p.dtype, batch, head, i % p.q_len), p.dim,
                 T(p.rel_scale * kLog2E), q_rel + i * dim);
        fill<T>(state + i * state_size(p), state_size(p), 0);
        state[i * state_size(p)] = kNoPivot;
      }
      const S* keys = static_cast<const S*>(p.k.data) + batch * p.k.batch + k_head * p.k.head;
      const S* values = static_cast<const S*>(p.v.data) + batch * p.v.batch + k_head * p.v.head;
      const int64_t first = visible_keys(p.geometry, offset, k_len).start;
      const int64_t last = visible_keys(p.geometry, offset + p.q_len - 1, k_len).stop;
      const int64_t steps = ceil_div(at_least(last - first, 0), kFewStepKeys);
      const int64_t begin = first + steps * split / p.splits * kFewStepKeys;
      const int64_t end = at_most(first + steps * (split + 1) / p.splits * kFewStepKeys, last);
      for (int64_t key = begin; key < end; key += kFewStepKeys) {
        const int64_t stop = at_most(key + kFewStepKeys, end);
        for (int64_t i = 0; i < n; ++i) {
          const int64_t pos = offset + i % p.q_len;
          const Span seen = visible_keys(p.geometry, pos, k_len);
          const Span span{at_least(seen.start, key), at_most(seen.stop, stop)};
          if (span.start < span.stop) {
            query_step(p, k_head * group + i / p.q_len, pos, span, keys, values, q + i * dim,
                       q_rel + i * dim, state + i * state_size(p));
          }
        }
      }
      if (p.splits > 1) {
        copy(part(p, batch, k_head, split), state, n * state_size(p));
      } else {
        finish(p, batch, k_head);
      }
    }
  }

  // One query over the keys of `span`, kFewStepKeys at most.
  template <typename S>
  void query_step(const ForwardParams& p, int64_t head, int64_t pos, Span span, const S* keys,
                  const S* values, const T* query, const T* rel_query, T* query_state) {
    constexpr int w = kLanes<T>;
    const int64_t n = span.stop - span.start;
    fill<T>(logits, padded<T>(n), 0);
    add_dots(query, p.dim, keys + span.start * p.k.row, p.k.row, n, logits);
    if (p.rel_k.data) add_score(head_table<T>(p.rel_k, p, head, p.dim), rel_query, span.start - pos, n);
    fill<T>(logits + n, padded<T>(n) - n, -__builtin_inf());

    Vec<T> maximum = load(logits);
    for (int64_t j = w; j < n; j += w) maximum = larger(maximum, load(logits + j));
    T highest = maximum[0];
    for (int i = 1; i < w; ++i) highest = highest > maximum[i] ? highest : maximum[i];
    T* acc = query_state + w;
    if (!(highest <= query_state[0] + kPivotSlack)) {
      const T pivot = query_state[0] > highest ? query_state[0] : highest;
      const T factor = exp2<T>(set1<T>(query_state[0] - pivot))[0];
      query_state[0] = pivot, query_state[1] *= factor;
      for (int64_t d = 0; d < p.v_dim; ++d) acc[d] *= factor;
    }
    Vec<T> total = {};
    for (int64_t j = 0; j < n; j += w) {
      const Vec<T> weight = exp2<T>(load(logits + j) - set1(query_state[0]));
      total += weight;
      store<T>(logits + j, weight);
    }
    query_state[1] += sum_lanes<T>(total);
    add_weighted(logits, p.v_dim, values + span.start * p.v.row, p.v.row, n, acc);
    if (p.rel_v.data) add_value(head_table<T>(p.rel_v, p, head, p.v_dim), span.start - pos, n, acc);
  }

  void add_score(const HeadTable<T>& table, const T* query, int64_t offset, int64_t n) {
    const BandRows cut = band_rows(offset, n, table.rows, table.causal);
    add_dots(query, table.dim, table.data + cut.row * table.dim, table.dim, cut.inside,
             logits + cut.below);
    if (!table.clip) return;
    for (int side = 0; side < 2; ++side) {
      const int64_t count = side ? cut.above : cut.below;
      if (count == 0) continue;
      T edge = 0;
      add_dots(query, table.dim, table.data + (side ? table.rows - 1 : 0) * table.dim, 0, 1, &edge);
      T* to = logits + (side ? cut.below + cut.inside : 0);
      for (int64_t j = 0; j < count; ++j) to[j] += edge;
    }
  }

  void add_value(const HeadTable<T>& table, int64_t offset, int64_t n, T* acc) {
    const BandRows cut = band_rows(offset, n, table.rows, table.causal);
    add_weighted(logits + cut.below, table.dim, table.data + cut.row * table.dim, table.dim, cut.inside, acc);
    if (!table.clip) return;
    for (int side = 0; side < 2; ++side) {
      const T* from = logits + (side ? cut.below + cut.inside : 0);
      T sum = 0;
      for (int64_t j = 0; j < (side ? cut.above : cut.below); ++j) sum += from[j];
      add_weighted(&sum, table.dim, table.data + (side ? table.rows - 1 : 0) * table.dim, 0, 1, acc);
    }
  }

  void merge(const ForwardParams& p, int64_t batch, int64_t k_head) {
    for (int64_t i = 0; i < queries(p); ++i) {
      T* to = state + i * state_size(p);
      fill<T>(to, state_size(p), 0);
      to[0] = kNoPivot;
      for (int64_t split = 0; split < p.splits; ++split) {
        const T* from = part(p, batch, k_head, split) + i * state_size(p);
        const T pivot = to[0] > from[0] ? to[0] : from[0];
        const T keep = exp2<T>(set1<T>(to[0] - pivot))[0], add = exp2<T>(set1<T>(from[0] - pivot))[0];
        to[0] = pivot;
        for (int64_t d = 1; d < state_size(p); ++d) to[d] = to[d] * keep + from[d] * add;
      }
    }
    finish(p, batch, k_head);
  }

  void finish(const ForwardParams& p, int64_t batch, int64_t k_head) {
    for (int64_t i = 0; i < queries(p); ++i) {
      const int64_t head = k_head * (p.heads / p.k_heads) + i / p.q_len, row = i % p.q_len;
      const T* from = state + i * state_size(p);
      const T sum = from[1];
      for (int64_t d = 0; d < p.v_dim; ++d) one_row[d] = from[kLanes<T> + d] / (sum > 0 ? sum : T(1));
      store_row<T>(p.dtype, one_row, p.v_dim, 1, row_of(p.out, p.dtype, batch, head, row));
      static_cast<T*>(p.lse)[(batch * p.heads + head) * p.q_len + row] =
          sum > 0 ? T((from[0] + __builtin_log2(double(sum))) * kLn2) : T(-__builtin_inf());
    }
  }
};
