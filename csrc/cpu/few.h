// Forward for a few queries over many keys (decoding): bound by reading keys and values once.
//
// A task is one key head and one part of its keys; it serves every query of every query head that
// reads them, so that grouped queries share the read. Queries are rows here: too few to fill lanes.
// Keys and values are read in their own dtype.

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
  return Vec<float>(load_wide(&p->bits) << 16);
}
ATTN_INLINE Vec<float> load_as(const _Float16* p, float) { return load_float16(p); }

// Rows a product reads while it asks memory for as many rows `ahead` that the next product will
// read.
template <typename S>
struct FewRows {
  const S* data;
  int64_t stride;
  const char* ahead;
  int64_t ahead_stride, ahead_bytes;

  ATTN_INLINE void fetch_ahead(int64_t row) const {
    for (int64_t i = 0; i < ahead_bytes; i += 64)
      __builtin_prefetch(ahead + row * ahead_stride + i, 0, 2);
  }
};

// to[i][j] += x[i] . rows[j] for kQueries queries and n rows; kRowsAtOnce rows share the loads of
// x, and the additions across lanes.
template <int kQueries, typename T, typename S>
inline void add_dots(const T* x, int64_t x_stride, int64_t dim, const FewRows<S>& rows, int64_t n,
                     T* to, int64_t to_stride) {
  constexpr int w = kLanes<T>, kRowsAtOnce = w < 4 ? w : 4;
  typedef T Some
      __attribute__((vector_size(kRowsAtOnce * sizeof(T)), aligned(sizeof(T)), may_alias));
  for (int64_t j = 0; j < n; j += kRowsAtOnce) {
    const S* row[kRowsAtOnce];
    Vec<T> sum[kQueries][kRowsAtOnce] = {};
#pragma GCC unroll 4
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int64_t index = at_most(j + r, n - 1);
      row[r] = rows.data + index * rows.stride;
      rows.fetch_ahead(index);
    }
    int64_t d = 0;
    for (; d + w <= dim; d += w) {
      Vec<T> right[kRowsAtOnce];
#pragma GCC unroll 4
      for (int r = 0; r < kRowsAtOnce; ++r) right[r] = load_as(row[r] + d, T(0));
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
        const Vec<T> left = load(x + i * x_stride + d);
#pragma GCC unroll 4
        for (int r = 0; r < kRowsAtOnce; ++r) sum[i][r] = fma(left, right[r], sum[i][r]);
      }
    }
    for (int i = 0; i < kQueries; ++i) {
      T dots[w], *const at = to + i * to_stride + j;
      store<T>(dots, sum_rows<T>(sum[i]));
      for (int64_t e = d; e < dim; ++e) {
        for (int r = 0; r < kRowsAtOnce; ++r)
          dots[r] += x[i * x_stride + e] * T(value_of(row[r][e]));
      }
      if (j + kRowsAtOnce <= n) {
        *reinterpret_cast<Some*>(at) += *reinterpret_cast<const Some*>(dots);
      } else {
        for (int r = 0; j + r < n; ++r) at[r] += dots[r];
      }
    }
  }
}

// to[i] += sum over j of weights[i][j] * rows[j] for kQueries queries and n rows.
template <int kQueries, typename T, typename S>
inline void add_weighted(const T* weights, int64_t weights_stride, int64_t dim,
                         const FewRows<S>& rows, int64_t n, T* to, int64_t to_stride) {
  constexpr int w = kLanes<T>, kVecs = 4;
  int64_t d = 0;
  for (; d + kVecs * w <= dim; d += kVecs * w) {
    Vec<T> sum[kQueries][kVecs];
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < kVecs; ++c) sum[i][c] = load(to + i * to_stride + d + c * w);
    }
    for (int64_t j = 0; j < n; ++j) {
      if (d == 0) rows.fetch_ahead(j);
      Vec<T> right[kVecs];
#pragma GCC unroll 4
      for (int c = 0; c < kVecs; ++c)
        right[c] = load_as(rows.data + j * rows.stride + d + c * w, T(0));
#pragma GCC unroll 4
      for (int i = 0; i < kQueries; ++i) {
        const Vec<T> left = set1(weights[i * weights_stride + j]);
#pragma GCC unroll 4
        for (int c = 0; c < kVecs; ++c) sum[i][c] = fma(left, right[c], sum[i][c]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kQueries; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < kVecs; ++c) store(to + i * to_stride + d + c * w, sum[i][c]);
    }
  }
  for (; d < dim; ++d) {
    for (int64_t j = 0; j < n; ++j) {
      const T value = T(value_of(rows.data[j * rows.stride + d]));
      for (int i = 0; i < kQueries; ++i)
        to[i * to_stride + d] += weights[i * weights_stride + j] * value;
    }
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
    logits = arena.take<T>(queries(p) * kFewStepKeys);
    one_row = arena.take<T>(padded<T>(p.v_dim));
    state = arena.take<T>(queries(p) * state_size(p));
  }

  static T* part(const ForwardParams& p, int64_t batch, int64_t k_head, int64_t split) {
    const int64_t size = queries(p) * state_size(p);
    return static_cast<T*>(p.partial) + ((batch * p.k_heads + k_head) * p.splits + split) * size;
  }

  void run(const ForwardParams& p, int64_t batch, int64_t k_head, int64_t split) {
    switch (p.kv_dtype) {
      case DType::kBFloat16:
        return run_as<BFloat16>(p, batch, k_head, split);
      case DType::kFloat16:
        return run_as<_Float16>(p, batch, k_head, split);
      default:
        return run_as<T>(p, batch, k_head, split);
    }
  }

  template <typename S>
  void run_as(const ForwardParams& p, int64_t batch, int64_t k_head, int64_t split) {
    if constexpr (sizeof(T) == 8 && sizeof(S) == 2) {
      return;  // float64 has no half-precision keys
    } else {
      const int64_t group = p.heads / p.k_heads, n = queries(p), dim = padded<T>(p.dim);
      const int64_t k_len = key_length(p, batch), offset = query_offset(p, batch);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t head = k_head * group + i / p.q_len;
        load_row(p.dtype, row_of(p.q, p.dtype, batch, head, i % p.q_len), p.dim,
                 T(p.scale * kLog2E), q + i * dim);
        const View& from = p.relative.query.data ? p.relative.query : p.q;
        load_row(p.dtype, row_of(from, p.dtype, batch, head, i % p.q_len), p.dim,
                 T(p.relative.scale * kLog2E), q_rel + i * dim);
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
        step<S>(p, batch, k_head, offset, k_len, {key, at_most(key + kFewStepKeys, end)}, keys,
                values);
      }
      if (p.splits > 1) {
        copy(part(p, batch, k_head, split), state, n * state_size(p));
      } else {
        finish(p, batch, k_head);
      }
    }
  }

  // Calls work(Ints<count>, first) for groups of 4 queries, then one by one.
  template <typename Work>
  static void in_groups(int64_t n, const Work& work) {
    int64_t i = 0;
    for (; i + 4 <= n; i += 4) work(Ints<4>{}, i);
    for (; i < n; ++i) work(Ints<1>{}, i);
  }

  // All queries over the keys of `run`, kFewStepKeys at most.
  template <typename S>
  void step(const ForwardParams& p, int64_t batch, int64_t k_head, int64_t offset, int64_t k_len,
            Span run, const S* keys, const S* values) {
    constexpr int64_t kPitch = kFewStepKeys;
    const int64_t n = run.stop - run.start, dim = padded<T>(p.dim), size = state_size(p);
    const S* next = keys + run.stop * p.k.row;
    const int64_t s = sizeof(S);
    const FewRows<S> k{keys + run.start * p.k.row, p.k.row,
                       reinterpret_cast<const char*>(values + run.start * p.v.row), p.v.row * s,
                       p.v_dim * s};
    const FewRows<S> v{values + run.start * p.v.row, p.v.row, reinterpret_cast<const char*>(next),
                       p.k.row * s, p.dim * s};
    fill<T>(logits, queries(p) * kPitch, 0);
    in_groups(queries(p), [&](auto group, int64_t i) {
      add_dots<count_of(group)>(q + i * dim, dim, p.dim, k, n, logits + i * kPitch, kPitch);
    });
    for (int64_t i = 0; i < queries(p); ++i) {
      const int64_t head = k_head * (p.heads / p.k_heads) + i / p.q_len, pos = offset + i % p.q_len;
      T* row = logits + i * kPitch;
      if (p.relative.keys.data)
        add_score(head_table<T>(p.relative.keys, p, head, p.dim), q_rel + i * dim, run.start - pos,
                  n, row);
      if (p.bias.table.data) add_bias(HeadBias<T>(p.bias, head), run.start - pos, n, row);
      const Span seen = visible_keys(p.geometry, pos, k_len);
      const int64_t first = at_most(at_least(seen.start - run.start, 0), n);
      const int64_t last = at_least(at_most(seen.stop - run.start, n), first);
      fill<T>(row, first, -__builtin_inf());
      fill<T>(row + last, padded<T>(n) - last, -__builtin_inf());
      weigh(p, n, row, state + i * size);
      if (p.relative.values.data) {
        add_value(head_table<T>(p.relative.values, p, head, p.v_dim), run.start - pos, n, row,
                  state + i * size + kLanes<T>);
      }
    }
    in_groups(queries(p), [&](auto group, int64_t i) {
      add_weighted<count_of(group)>(logits + i * kPitch, kPitch, p.v_dim, v, n,
                                    state + i * size + kLanes<T>, size);
    });
  }

  // One query's logits -> weights; its pivot, sum and acc follow.
  void weigh(const ForwardParams& p, int64_t n, T* row, T* query_state) {
    constexpr int w = kLanes<T>;
    Vec<T> maximum = load(row);
    for (int64_t j = w; j < n; j += w) maximum = larger(maximum, load(row + j));
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
      const Vec<T> weight = exp2<T>(load(row + j) - set1(query_state[0]));
      total += weight;
      store<T>(row + j, weight);
    }
    query_state[1] += sum_lanes<T>(total);
  }

  static FewRows<T> table_rows(const HeadTable<T>& table, int64_t row) {
    return {table.data + row * table.dim, table.dim, nullptr, 0, 0};
  }

  void add_score(const HeadTable<T>& table, const T* query, int64_t offset, int64_t n, T* row) {
    const BandRows cut = band_rows(offset, n, table.rows, table.zero_row);
    add_dots<1>(query, 0, table.dim, table_rows(table, cut.row), cut.inside, row + cut.below, 0);
    for (int side = 0; table.clip && side < 2; ++side) {
      const int64_t count = side ? cut.above : cut.below;
      if (count == 0) continue;
      T edge = 0;
      add_dots<1>(query, 0, table.dim, table_rows(table, side ? table.rows - 1 : 0), 1, &edge, 0);
      T* to = row + (side ? cut.below + cut.inside : 0);
      for (int64_t j = 0; j < count; ++j) to[j] += edge;
    }
  }

  void add_bias(const HeadBias<T>& table, int64_t offset, int64_t n, T* row) {
    const BandRows cut = band_rows(offset, n, table.rows, table.zero_row);
    for (int64_t j = 0; j < n; ++j) {
      const bool inside = j >= cut.below && j < cut.below + cut.inside;
      const int64_t place = j < cut.below ? 0 : inside ? cut.row + j - cut.below : table.rows - 1;
      if (inside || table.clip) row[j] += table.data[place] * T(kLog2E);
    }
  }

  void add_value(const HeadTable<T>& table, int64_t offset, int64_t n, const T* row, T* acc) {
    const BandRows cut = band_rows(offset, n, table.rows, table.zero_row);
    add_weighted<1>(row + cut.below, 0, table.dim, table_rows(table, cut.row), cut.inside, acc, 0);
    for (int side = 0; table.clip && side < 2; ++side) {
      const T* from = row + (side ? cut.below + cut.inside : 0);
      T sum = 0;
      for (int64_t j = 0; j < (side ? cut.above : cut.below); ++j) sum += from[j];
      add_weighted<1>(&sum, 0, table.dim, table_rows(table, side ? table.rows - 1 : 0), 1, acc, 0);
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
        const T keep = exp2<T>(set1<T>(to[0] - pivot))[0],
                add = exp2<T>(set1<T>(from[0] - pivot))[0];
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
      for (int64_t d = 0; d < p.v_dim; ++d)
        one_row[d] = from[kLanes<T> + d] / (sum > 0 ? sum : T(1));
      store_row<T>(p.dtype, one_row, p.v_dim, 1, row_of(p.out, p.dtype, batch, head, row));
      static_cast<T*>(p.lse)[(batch * p.heads + head) * p.q_len + row] =
          sum > 0 ? T((from[0] + __builtin_log2(double(sum))) * kLn2) : T(-__builtin_inf());
    }
  }
};
