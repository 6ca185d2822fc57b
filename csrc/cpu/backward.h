// Backward: one tile of queries against its keys, recomputing the weights from lse.
//
//     P = exp(S - lse)          dV += P dO           dP = dO V^T (+ dO rel_v)
//     dS = P * (dP - delta)     dK += dS Q           dQ += dS K (+ dS rel_k)
//     delta_i = out_i . dO_i - dlse_i
//
// Five products, eight with a relative term. Keys' gradients are summed over the tiles of a chunk
// in [k_len, padded dim] matrices of the arithmetic type.

//
// E is the element of the products: T, or pairs. Pairs are needed in three orders: of neighbouring
// dims (keys and values as they lie, queries transposed), keys (for grad_q) and lanes (for grad_k,
// grad_v).

template <typename T, typename E>
struct BackwardTile {
  static constexpr int64_t kPairPlane = kStepKeys / 2 * kTileQueries<T>;

  T *rows, *transposed, *grad_out, *q_buffer, *grad_buffer;
  T *weights, *grads, *scratch, *grad_q, *lse, *delta;
  QueryForms<T, E> q;
  E *q_column_pairs, *grad_column_pairs, *q_lane_pairs, *grad_lane_pairs;
  KeptRows<Sums::kDims, E> keys, values;
  KeptRows<Sums::kKeys, E> keys_by_key;
  E *weights_by_lane, *grads_by_lane, *grads_by_key;  // the matrices themselves, or pairs
  Scales<T> scales;
  BackwardTerms<T, E> terms;
  T *grad_k, *grad_v;  // the chunk's sums, [k_len, padded dim]
  T* table_sums;       // the chunk's sums for the tile's head, a part of TableGrads
  Ahead ahead;

  void layout(Arena& arena, const BackwardParams& p) {
    constexpr int pitch = kTileQueries<T>;
    const int64_t dim = padded<T>(p.dim), v_dim = padded<T>(p.v_dim),
                  larger_dim = at_least(dim, v_dim);
    rows = arena.take<T>(pitch * larger_dim);
    transposed = arena.take<T>(pitch * dim);
    grad_out = arena.take<T>(pitch * v_dim);
    q_buffer = arena.take<T>(pitch * dim);
    grad_buffer = arena.take<T>(pitch * v_dim);
    weights = zero_bordered<T>(arena);
    grads = zero_bordered<T>(arena);
    keys.layout(arena, p, p.dim);
    values.layout(arena, p, p.v_dim);
    keys_by_key.layout(arena, p, p.dim);
    if constexpr (kNumbers<E> == 2) {
      q_column_pairs = arena.take<E>(kParts<E> * pitch * dim / 2);
      grad_column_pairs = arena.take<E>(kParts<E> * pitch * v_dim / 2);
      q_lane_pairs = arena.take<E>(kParts<E> * pitch / 2 * dim);
      grad_lane_pairs = arena.take<E>(kParts<E> * pitch / 2 * v_dim);
      weights_by_lane = arena.take<E>(kParts<E> * kPairPlane);
      grads_by_lane = arena.take<E>(kParts<E> * kPairPlane);
      grads_by_key = arena.take<E>(kParts<E> * kPairPlane);
    } else {
      weights_by_lane = weights, grads_by_lane = grads_by_key = grads;
    }
    scratch = arena.take<T>(kStepKeys * larger_dim);
    grad_q = arena.take<T>(pitch * dim);
    lse = arena.take<T>(pitch);
    delta = arena.take<T>(pitch);
    terms.layout(arena, p);
  }

  void forget_keys() {
    keys.forget();
    values.forget();
    keys_by_key.forget();
  }

  void run(const BackwardParams& p, int64_t batch, int64_t head, int64_t index) {
    const Tile<T> tile = make_tile<T>(p, batch, head, index);
    if (tile.queries.count <= 0) return;
    start(p, tile);
    look_ahead(p, tile);
    for_steps(tile, 0, 1, wants_neighbours(p), [&](int64_t key, int n) { step(p, tile, key, n); });
    finish(p, tile);
  }

  void look_ahead(const BackwardParams& p, const Tile<T>& tile) {
    ahead.start(at_least(p.dim, p.v_dim) * int64_t(sizeof(T)));
    if (!looks_ahead<E>(tile.queries)) return;
    ahead.add(p.geometry, tile.queries, p.grad_q, p.dtype, tile.batch, tile.head);
    const int64_t index = tile.index + p.chunks;
    if (index >= tile_count(p.geometry, p.q_len, kTileQueries<T>)) return;
    const QueryTile next = queries_of<T>(p, tile.batch, index);
    const View* const read[] = {&p.q, &p.out, &p.grad_out};
    for (const View* view : read) {
      ahead.add(p.geometry, next, *view, p.dtype, tile.batch, tile.head);
    }
  }

  void start(const BackwardParams& p, const Tile<T>& tile) {
    constexpr int pitch = kTileQueries<T>;
    const int64_t dim = padded<T>(p.dim), v_dim = padded<T>(p.v_dim);
    scales = logit_scales<E, T>(p);
    q.rows = query_rows<T>(tile, p.q, p.dtype, p.dim, q_buffer);
    const T* const grad_rows = query_rows<T>(tile, p.grad_out, p.dtype, p.v_dim, grad_buffer);
    const T* const out_rows = query_rows<T>(tile, p.out, p.dtype, p.v_dim, rows);
    transpose_queries<T>(tile, q.rows, p.dim, kScaleLater<E> ? T(1) : T(p.scale * kLog2E),
                         transposed);
    transpose_queries<T>(tile, grad_rows, p.v_dim, 1, grad_out);
    q.columns = pair_down(transposed, pitch, p.dim, tile.lanes, q_column_pairs);
    q.grad_columns = pair_down(grad_out, pitch, p.v_dim, tile.lanes, grad_column_pairs);
    q.lanes = pair_down(q.rows, dim, tile.lanes, dim, q_lane_pairs);
    q.grad_lanes = pair_down(grad_rows, v_dim, tile.lanes, v_dim, grad_lane_pairs);
    const int64_t head_row = (tile.batch * p.heads + tile.head) * p.q_len;
    // A row without keys, like a lane without query, has weight 0 everywhere: 2^(s - inf).
    fill<T>(lse, tile.lanes, __builtin_inf());
    fill<T>(delta, tile.lanes, 0);
    for_queries(tile.geometry, tile.queries, [&](int i, int64_t index) {
      const T change = dot(out_rows + i * v_dim, grad_rows + i * v_dim, v_dim);
      const T value = static_cast<const T*>(p.lse)[head_row + index];
      if (value != T(-__builtin_inf())) lse[i] = T(value * kLog2E);
      delta[i] = p.grad_lse ? change - static_cast<const T*>(p.grad_lse)[head_row + index] : change;
    });
    zero_rows<T>(dim, tile.lanes, grad_q);
    terms.start(p, tile, scales.unit, q, table_sums);
  }

  void step(const BackwardParams& p, const Tile<T>& tile, int64_t start, int n) {
    constexpr int pitch = kTileQueries<T>;
    Slab slabs[kStepKeys / kSlabKeys];
    uint64_t seen_by[kStepKeys];  // only under a Pattern
    const int n_slabs = cut_slabs(tile, start, n, slabs, seen_by);
    const Step step{step_offset(tile, start), tile.lanes, n, slabs, n_slabs};
    const Matrix<E> k = keys.get(tile, p.k, p.dim, start, n, seen_by);
    const Matrix<E> v = values.get(tile, p.v, p.v_dim, start, n, seen_by);

    for (int s = 0; s < n_slabs; ++s) {
      const Slab& slab = slabs[s];
      const int64_t at = slab.key * pitch + slab.lane;
      gemm<Left::kRows>(slab.keys, slab.lanes, ceil_div(p.dim, kNumbers<E>),
                        k.from(slab.key * k.stride), q.columns.from(slab.lane), weights + at, pitch,
                        false, &ahead);
      gemm<Left::kRows>(slab.keys, slab.lanes, ceil_div(p.v_dim, kNumbers<E>),
                        v.from(slab.key * v.stride), q.grad_columns.from(slab.lane), grads + at,
                        pitch, false, &ahead);
    }
    for (int s = 0; scales.now != T(1) && s < n_slabs; ++s)
      scale_slab(slabs[s], scales.now, weights);
    terms.add(p, step, weights);
    terms.add_value_grads(p, step, grads);
    const bool keep = terms.keeps_grads(p);
    for (int s = 0; s < n_slabs; ++s) {
      if (slabs[s].masked) {
        mask_slab<T>(tile, start, slabs[s], seen_by, -__builtin_inf(), weights);
        mask_slab<T>(tile, start, slabs[s], seen_by, 0, grads);
      }
      for (int lane = slabs[s].lane; lane < slabs[s].lane + slabs[s].lanes; lane += kLanes<T>) {
        logit_grads(slabs[s], lane, scales.later, keep, grads_by_key);
      }
    }
    terms.collect(p, step, weights, grads);
    const Matrix<E> by_key =
        kMade<Sums::kKeys, E> ? keys_by_key.get(tile, p.k, p.dim, start, n, seen_by) : k;
    for (int s = 0; s < n_slabs; ++s) {
      add_over_keys(p.dim, slabs[s], by_key, Matrix<E>{grads_by_key, pitch, kPairPlane}, grad_q,
                    &ahead);
    }
    add_key_grads(tile, start, n, slabs, n_slabs, p.dim, grads_by_lane, q.lanes, grad_k);
    add_key_grads(tile, start, n, slabs, n_slabs, p.v_dim, weights_by_lane, q.grad_lanes, grad_v);
  }

  // One vector column of a slab. weights: logits -> P;  grads: dP -> dS.
  void logit_grads(const Slab& slab, int lane, T, bool, T*) {
    constexpr int pitch = kTileQueries<T>;
    const Vec<T> row_lse = load(lse + lane), row_delta = load(delta + lane);
    T* weight = weights + slab.key * pitch + lane;
    T* grad = grads + slab.key * pitch + lane;
#pragma GCC unroll 2
    for (int key = 0; key < slab.keys; ++key, weight += pitch, grad += pitch) {
      const Vec<T> w = exp2<T>(load(weight) - row_lse);
      store<T>(weight, w);
      store<T>(grad, w * (load(grad) - row_delta));
    }
  }

#if defined(ATTN_AVX512_BF16)
  // The same as pairs in both orders; in place too if `keep`.
  template <typename Pairs>
  void logit_grads(const Slab& slab, int lane, float scale, bool keep, Pairs*) {
    constexpr int pitch = kTileQueries<float>;
    const Vec<float> row_lse = load(lse + lane), row_delta = load(delta + lane);
    for (int key = slab.key; key < slab.key + slab.keys; key += 2) {
      Vec<float> grad[2] = {};
      for (int i = 0; i < 2 && key + i < slab.key + slab.keys; ++i) {
        const int64_t at = (key + i) * pitch + lane;
        const Vec<float> logit = load(weights + at);
        const Vec<float> weight =
            exp2<float>(kScaleLater<E> ? fma(logit, set1(scale), -row_lse) : logit - row_lse);
        grad[i] = weight * (load(grads + at) - row_delta);
        if (keep) {
          store<float>(weights + at, weight);
          store<float>(grads + at, grad[i]);
        }
        store_neighbours(weights_by_lane + at / 2, kPairPlane, weight);
        store_neighbours(grads_by_lane + at / 2, kPairPlane, grad[i]);
      }
      store_pairs(grads_by_key + key / 2 * pitch + lane, kPairPlane, grad[0], grad[1]);
    }
  }
#endif

  // sums[position of key] += sum over queries of matrix[key, query] * q_rows[query]
  void add_key_grads(const Tile<T>& tile, int64_t start, int n, const Slab* slabs, int n_slabs,
                     int64_t dim, const E* matrix, Matrix<E> query_rows, T* sums) {
    constexpr int pitch = kTileQueries<T>;
    const int64_t width = padded<T>(dim);
    Span run = key_run(tile.geometry, tile.queries, start);
    const bool together = run.stop - run.start >= n;
    T* to = together ? sums + run.start * width : scratch;
    if (!together) fill<T>(scratch, n * width, 0);
    for (int s = 0; s < n_slabs; ++s) {
      const Slab& slab = slabs[s];
      const int64_t queries = at_most(slab.lanes, tile.queries.count - slab.lane);
      const int64_t lane = slab.lane / kNumbers<E>, row = pitch / kNumbers<E>;
      const Matrix<E> by_lane{matrix + slab.key * row + lane, row, kPairPlane};
      gemm<Left::kRows>(slab.keys, width, ceil_div(queries, kNumbers<E>), by_lane,
                        query_rows.from(lane * width), to + slab.key * width, width, true);
    }
    if (together) return;
    for (int done = 0; done < n; run = key_run(tile.geometry, tile.queries, start + done)) {
      for (; run.start < run.stop && done < n; ++run.start, ++done) {
        T* sum = sums + run.start * width;
        for (int64_t d = 0; d < width; ++d) sum[d] += scratch[done * width + d];
      }
      if (done >= n) break;
    }
  }

  void finish(const BackwardParams& p, const Tile<T>& tile) {
    const T factor = terms.finish(p, tile, rows, grad_q) ? T(1) : T(p.scale);
    store_queries<T>(
        tile, grad_q, p.dim, [&](int64_t) { return set1(factor); }, rows, p.dtype, p.grad_q);
  }
};

// One chunk of the queries of a key head, all its query heads included; see BackwardParams::chunks.
template <typename T, typename E>
struct BackwardChunk {
  BackwardTile<T, E> tile;
  T* own_key_part;  // where the chunk's sums lie when it is the only one

  void layout(Arena& arena, const BackwardParams& p) {
    tile.layout(arena, p);
    own_key_part = p.chunks == 1 ? arena.take<T>(key_part_size(p)) : nullptr;
  }

  static int64_t key_part_size(const AttentionParams& p) {
    return p.k_len * (padded<T>(p.dim) + padded<T>(p.v_dim));
  }

  void run(const BackwardParams& p, int64_t batch, int64_t k_head, int64_t chunk) {
    const int64_t part = (batch * p.k_heads + k_head) * p.chunks + chunk,
                  group = p.heads / p.k_heads;
    T* sums = p.chunks == 1 ? own_key_part : static_cast<T*>(p.key_parts) + part * key_part_size(p);
    fill<T>(sums, key_part_size(p), 0);
    tile.grad_k = sums, tile.grad_v = sums + p.k_len * padded<T>(p.dim);

    const int64_t tiles = tile_count(p.geometry, p.q_len, kTileQueries<T>);
    const int64_t table_size = TableGrads<T>(p).size;
    for (int64_t i = 0; i < group; ++i) {
      tile.table_sums = static_cast<T*>(p.table_parts) + (part * group + i) * table_size;
      fill<T>(tile.table_sums, table_size, 0);
      // Chunks take turns, first to last, so that causal ones have about the same work.
      for (int64_t index = chunk; index < tiles; index += p.chunks) {
        tile.run(p, batch, k_head * group + i, index);
      }
    }
    if (p.chunks == 1) store_key_grads(p, batch, k_head, 0, p.k_len, sums);
  }

  static void store_key_grads(const BackwardParams& p, int64_t batch, int64_t k_head, int64_t begin,
                              int64_t end, const T* sums) {
    const int64_t dim = padded<T>(p.dim), v_dim = padded<T>(p.v_dim);
    for (int64_t key = begin; key < end; ++key) {
      store_row(p.dtype, sums + key * dim, p.dim, T(p.scale),
                row_of(p.grad_k, p.dtype, batch, k_head, key));
      store_row(p.dtype, sums + p.k_len * dim + key * v_dim, p.v_dim, T(1),
                row_of(p.grad_v, p.dtype, batch, k_head, key));
    }
  }

  // Adds the chunks' rows [begin, end) of the keys' gradients, in order, into the first chunk's.
  static void merge_keys(const BackwardParams& p, int64_t batch, int64_t k_head, int64_t begin,
                         int64_t end) {
    const int64_t size = key_part_size(p), dim = padded<T>(p.dim), v_dim = padded<T>(p.v_dim);
    T* sums = static_cast<T*>(p.key_parts) + (batch * p.k_heads + k_head) * p.chunks * size;
    for (int64_t chunk = 1; chunk < p.chunks; ++chunk) {
      const T* part = sums + chunk * size;
      const int64_t values = p.k_len * dim;
      for (int64_t i = begin * dim; i < end * dim; ++i) sums[i] += part[i];
      for (int64_t i = values + begin * v_dim; i < values + end * v_dim; ++i) sums[i] += part[i];
    }
    store_key_grads(p, batch, k_head, begin, end, sums);
  }

  // Adds one row of a table's gradient over batch entries, chunks and, if shared, heads, in order.
  static void merge_table_row(const BackwardParams& p, const TableGrad& grad, int64_t part_size,
                              int64_t table_head, int64_t row, T* sum) {
    const int64_t width = padded<T>(grad.dim), group = p.heads / p.k_heads;
    const bool shared = grad.table->head_stride == 0;
    const int64_t first = shared ? 0 : table_head, last = shared ? p.heads : table_head + 1;
    const T* parts = static_cast<const T*>(p.table_parts) + grad.start + row * width;
    fill<T>(sum, width, 0);
    for (int64_t batch = 0; batch < p.batch; ++batch) {
      for (int64_t head = first; head < last; ++head) {
        for (int64_t chunk = 0; chunk < p.chunks; ++chunk) {
          const int64_t part = (batch * p.k_heads + head / group) * p.chunks + chunk;
          const T* from = parts + (part * group + head % group) * part_size;
          for (int64_t d = 0; d < width; ++d) sum[d] += from[d];
        }
      }
    }
    char* to = static_cast<char*>(grad.data);
    to += (table_head * grad.rows + row) * grad.dim * element_size(grad.dtype);
    store_row(grad.dtype, sum, grad.dim, T(grad.scale), to);
  }
};
