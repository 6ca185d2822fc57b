// Forward: one tile of queries against its keys, with an online softmax in base 2.

// A pivot that stands for "no key yet": finite, so that -inf minus it is -inf and not NaN.
constexpr float kNoPivot = -1e30f;
// The pivot follows the running maximum only when that rises by more: sums stay far from overflow,
// and most steps need no rescaling.
constexpr float kPivotSlack = 8.0f;

template <typename T>
struct Softmax {
  T* pivot;  // [lanes], subtracted from logits; at most kPivotSlack below the maximum
  T* sum;    // [lanes], of 2^(logit - pivot)

  void layout(Arena& arena) {
    pivot = arena.take<T>(kTileQueries<T>);
    sum = arena.take<T>(kTileQueries<T>);
  }

  void start(int lanes) {
    fill<T>(pivot, lanes, kNoPivot);
    fill<T>(sum, lanes, 0);
  }

  // Moves the pivot of the vector at `lane` past `maximum`; returns whether it moved, and the
  // factor.
  ATTN_INLINE bool raise_pivot(int lane, Vec<T> maximum, Vec<T>& factor) {
    const Vec<T> before = load(pivot + lane);
    if (all_lanes<T>(maximum <= before + set1<T>(kPivotSlack))) return false;
    const Vec<T> after = larger(before, maximum);
    factor = exp2<T>(before - after);
    store<T>(pivot + lane, after);
    store<T>(sum + lane, load(sum + lane) * factor);
    return true;
  }
};

// The largest logit of each lane of the vector column at `lane`, over the slabs that reach it.
template <typename T>
ATTN_INLINE Vec<T> column_maximum(const T* logits, int lane, const Slab* slabs, int n_slabs) {
  constexpr int pitch = kTileQueries<T>;
  Vec<T> highest[4];  // an instruction waits for the one before it: four sequences
  for (Vec<T>& x : highest) x = set1<T>(-__builtin_inf());
  for (int s = 0; s < n_slabs; ++s) {
    if (lane < slabs[s].lane || lane >= slabs[s].lane + slabs[s].lanes) continue;
    const T* x = logits + slabs[s].key * pitch + lane;
    int key = 0;
    for (; key + 4 <= slabs[s].keys; key += 4, x += 4 * pitch) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) highest[i] = larger(highest[i], load(x + i * pitch));
    }
    for (; key < slabs[s].keys; ++key, x += pitch) highest[0] = larger(highest[0], load(x));
  }
  return larger(larger(highest[0], highest[1]), larger(highest[2], highest[3]));
}

// logits -> weights 2^(factor * logit - pivot) of one vector column of one slab, in place; returns
// their sum.
template <typename T>
ATTN_INLINE Vec<T> slab_weights(T* logits, Vec<T>, Vec<T> pivot, int keys, T*, int64_t, bool) {
  constexpr int pitch = kTileQueries<T>;
  Vec<T> total = {};
#pragma GCC unroll 2
  for (int key = 0; key < keys; ++key, logits += pitch) {
    const Vec<T> weight = exp2<T>(load(logits) - pivot);
    total += weight;
    store<T>(logits, weight);
  }
  return total;
}

#if defined(ATTN_AVX512_BF16)
// The same as pairs of keys in `pairs`; in place too if `keep`.
template <typename E>
ATTN_INLINE Vec<float> slab_weights(float* logits, Vec<float> factor, Vec<float> pivot, int keys,
                                    E* pairs, int64_t plane, bool keep) {
  constexpr int pitch = kTileQueries<float>;
  const auto weight = [&](const float* logit) {
    const Vec<float> x = load(logit);
    return exp2<float>(kScaleLater<E> ? fma(x, factor, -pivot) : x - pivot);
  };
  Vec<float> total = {};
  for (int key = 0; key < keys; key += 2, logits += 2 * pitch, pairs += pitch) {
    const Vec<float> even = weight(logits);
    Vec<float> odd = {};
    if (key + 1 < keys) odd = weight(logits + pitch);
    total += even + odd;
    if (keep) {
      store<float>(logits, even);
      if (key + 1 < keys) store<float>(logits + pitch, odd);
    }
    store_pairs(pairs, plane, even, odd);
  }
  return total;
}
#endif

// E is the element of the products with keys and values: T, or pairs.
template <typename T, typename E>
struct ForwardTile {
  static constexpr int64_t kWeightPlane = kStepKeys / 2 * kTileQueries<T>;

  T *rows, *transposed, *logits, *acc;
  Matrix<E> q;           // [dim, lanes]
  E *q_pairs, *weights;  // weights are the logits themselves, or pairs
  KeptRows<Sums::kDims, E> keys;
  KeptRows<Sums::kKeys, E> values;
  Softmax<T> softmax;
  Scales<T> scales;
  ForwardTerms<T, E> terms;
  Ahead ahead;

  void layout(Arena& arena, const ForwardParams& p) {
    constexpr int pitch = kTileQueries<T>;
    const int64_t dim = padded<T>(p.dim), v_dim = padded<T>(p.v_dim);
    rows = arena.take<T>(pitch * at_least(dim, v_dim));
    transposed = arena.take<T>(pitch * dim);
    logits = zero_bordered<T>(arena);
    acc = arena.take<T>(pitch * v_dim);
    keys.layout(arena, p, p.dim);
    values.layout(arena, p, p.v_dim);
    if constexpr (kNumbers<E> == 2) {
      q_pairs = arena.take<E>(kParts<E> * pitch * dim / 2);
      weights = arena.take<E>(kParts<E> * kWeightPlane);
    } else {
      weights = logits;
    }
    softmax.layout(arena);
    terms.layout(arena, p);
  }

  void forget_keys() {
    keys.forget();
    values.forget();
  }

  static int64_t tiles(const AttentionParams& p) {
    return tile_count(p.geometry, p.q_len, kTileQueries<T>);
  }
  static int64_t units(const AttentionParams& p) { return p.batch * p.heads * tiles(p); }

  struct Place {
    int64_t batch, head, index;
  };
  static Place place_of(const AttentionParams& p, int64_t unit) {
    const int64_t count = tiles(p), head = unit / count, turn = unit % count;
    // The last tiles of a causal head have most to do; kept boxes are those of the tile before.
    const int64_t index = columns_are_shared(p.geometry) ? turn : count - 1 - turn;
    return {head / p.heads, head % p.heads, index};
  }
  static Tile<T> tile_of(const AttentionParams& p, int64_t unit) {
    const Place at = place_of(p, unit);
    return make_tile<T>(p, at.batch, at.head, at.index);
  }

  void run(const ForwardParams& p, int64_t unit, int64_t split) {
    const Tile<T> tile = tile_of(p, unit);
    if (tile.queries.count <= 0) return;
    start(p, tile);
    look_ahead(p, tile, unit);
    for_steps(tile, split, p.splits, wants_neighbours(p),
              [&](int64_t key, int n) { step(p, tile, key, n); });
    terms.finish(p);
    if (p.splits > 1) {
      save_part(p, tile, split);
    } else {
      finish(p, tile);
    }
  }

  void look_ahead(const ForwardParams& p, const Tile<T>& tile, int64_t unit) {
    ahead.start(at_least(p.dim, p.v_dim) * int64_t(sizeof(T)));
    if (!looks_ahead<E>(tile.queries) || p.splits > 1) return;
    ahead.add(p.geometry, tile.queries, p.out, p.dtype, tile.batch, tile.head);
    if (unit + 1 == units(p)) return;
    const Place at = place_of(p, unit + 1);
    const QueryTile next = queries_of<T>(p, at.batch, at.index);
    ahead.add(p.geometry, next, p.q, p.dtype, at.batch, at.head);
    if (!columns_are_shared(p.geometry)) return;
    // The columns that this tile does not have.
    const int64_t k_head = at.head / (p.heads / p.k_heads);
    for (int64_t key = next.boxes[0].count; key < next.n_keys;) {
      const Span run = key_run(p.geometry, next, key);
      for (int64_t i = run.start; i < run.stop; ++i, ++key) {
        ahead.add(row_of(p.k, p.kv_dtype, at.batch, k_head, i));
        ahead.add(row_of(p.v, p.kv_dtype, at.batch, k_head, i));
      }
    }
  }

  void start(const ForwardParams& p, const Tile<T>& tile) {
    constexpr int pitch = kTileQueries<T>;
    scales = logit_scales<E, T>(p);
    transpose_queries<T>(tile, query_rows<T>(tile, p.q, p.dtype, p.dim, rows), p.dim,
                         kScaleLater<E> ? T(1) : T(p.scale * kLog2E), transposed);
    q = pair_down(transposed, pitch, p.dim, tile.lanes, q_pairs);
    softmax.start(tile.lanes);
    zero_rows<T>(padded<T>(p.v_dim), tile.lanes, acc);
    terms.start(p, tile, scales.unit, rows, acc);
  }

  void step(const ForwardParams& p, const Tile<T>& tile, int64_t start, int n) {
    constexpr int pitch = kTileQueries<T>;
    Slab slabs[kStepKeys / kSlabKeys];
    uint64_t seen_by[kStepKeys];  // only under a Pattern
    const int n_slabs = cut_slabs(tile, start, n, slabs, seen_by);
    const Step step{step_offset(tile, start), tile.lanes, n, slabs, n_slabs};

    const Matrix<E> k = keys.get(tile, p.k, p.dim, start, n, seen_by);
    for (int s = 0; s < n_slabs; ++s) {
      const Slab& slab = slabs[s];
      gemm<Left::kRows>(slab.keys, slab.lanes, ceil_div(p.dim, kNumbers<E>),
                        k.from(slab.key * k.stride), q.from(slab.lane),
                        logits + slab.key * pitch + slab.lane, pitch, false, &ahead);
    }
    for (int s = 0; scales.now != T(1) && s < n_slabs; ++s)
      scale_slab(slabs[s], scales.now, logits);
    terms.add(p, step, logits);
    for (int s = 0; s < n_slabs; ++s) {
      if (slabs[s].masked) mask_slab<T>(tile, start, slabs[s], seen_by, -__builtin_inf(), logits);
    }
    weigh(p, tile.lanes, slabs, n_slabs, scales.later);
    const Matrix<E> v = values.get(tile, p.v, p.v_dim, start, n, seen_by);
    for (int s = 0; s < n_slabs; ++s) {
      add_over_keys(p.v_dim, slabs[s], v, Matrix<E>{weights, pitch, kWeightPlane}, acc, &ahead);
    }
    terms.add_values(p, step, logits);
  }

  // logits -> weights of the step's slabs; the sums, and what was summed with an older pivot,
  // follow.
  void weigh(const ForwardParams& p, int lanes, const Slab* slabs, int n_slabs, T scale) {
    constexpr int pitch = kTileQueries<T>;
    for (int lane = 0; lane < lanes; lane += kLanes<T>) {
      Vec<T> factor, maximum = column_maximum(logits, lane, slabs, n_slabs);
      if (kScaleLater<E>) maximum *= set1(scale);
      if (softmax.raise_pivot(lane, maximum, factor)) {
        for (int64_t d = 0; d < p.v_dim; ++d) {
          store<T>(acc + d * pitch + lane, load(acc + d * pitch + lane) * factor);
        }
        terms.rescale(p, lane, factor);
      }
      const Vec<T> pivot = load(softmax.pivot + lane);
      Vec<T> sum = load(softmax.sum + lane);
      for (int s = 0; s < n_slabs; ++s) {
        const Slab& slab = slabs[s];
        if (lane < slab.lane || lane >= slab.lane + slab.lanes) continue;
        sum += slab_weights(logits + slab.key * pitch + lane, set1(scale), pivot, slab.keys,
                            weights + slab.key / kNumbers<E> * pitch + lane, kWeightPlane,
                            keeps_weights(p));
      }
      store<T>(softmax.sum + lane, sum);
    }
  }

  void finish(const ForwardParams& p, const Tile<T>& tile) {
    const auto inverse_sum = [&](int64_t lane) {
      const Vec<T> sum = load(softmax.sum + lane), one = set1<T>(1);
      return one / (sum > Vec<T>{} ? sum : one);
    };
    store_queries<T>(tile, acc, p.v_dim, inverse_sum, rows, p.dtype, p.out);
    T* lse = static_cast<T*>(p.lse) + (tile.batch * p.heads + tile.head) * p.q_len;
    for_queries(tile.geometry, tile.queries, [&](int i, int64_t index) {
      const T sum = softmax.sum[i];
      lse[index] = sum > 0 ? T((softmax.pivot[i] + __builtin_log2(double(sum))) * kLn2)
                           : T(-__builtin_inf());
    });
  }

  // --- Keys cut in parts: [pivot, sum, acc rows] of each part, added up in order ---

  static int64_t part_size(const ForwardParams& p) {
    return (2 + padded<T>(p.v_dim)) * kTileQueries<T>;
  }

  static T* part(const ForwardParams& p, int64_t batch, int64_t head, int64_t index,
                 int64_t split) {
    const int64_t tiles = tile_count(p.geometry, p.q_len, kTileQueries<T>);
    const int64_t task = (batch * p.heads + head) * tiles + index;
    return static_cast<T*>(p.partial) + (task * p.splits + split) * part_size(p);
  }

  void save_part(const ForwardParams& p, const Tile<T>& tile, int64_t split) {
    T* to = part(p, tile.batch, tile.head, tile.index, split);
    copy(to, softmax.pivot, tile.lanes);
    copy(to + kTileQueries<T>, softmax.sum, tile.lanes);
    copy(to + 2 * kTileQueries<T>, acc, p.v_dim * kTileQueries<T>);
  }

  void merge(const ForwardParams& p, int64_t unit) {
    constexpr int pitch = kTileQueries<T>;
    const Tile<T> tile = tile_of(p, unit);
    if (tile.queries.count <= 0) return;
    softmax.start(tile.lanes);
    zero_rows<T>(padded<T>(p.v_dim), tile.lanes, acc);
    for (int64_t split = 0; split < p.splits; ++split) {
      const T* from = part(p, tile.batch, tile.head, tile.index, split);
      for (int lane = 0; lane < tile.lanes; lane += kLanes<T>) {
        const Vec<T> before = load(softmax.pivot + lane), pivot = load(from + lane);
        const Vec<T> after = larger(before, pivot);
        const Vec<T> keep = exp2<T>(before - after), add = exp2<T>(pivot - after);
        store<T>(softmax.pivot + lane, after);
        T* sum = softmax.sum + lane;
        store<T>(sum, load(sum) * keep + load(from + pitch + lane) * add);
        for (int64_t d = 0; d < p.v_dim; ++d) {
          T* to = acc + d * pitch + lane;
          store<T>(to, load(to) * keep + load(from + (2 + d) * pitch + lane) * add);
        }
      }
    }
    finish(p, tile);
  }
};
