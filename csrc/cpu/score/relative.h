// The relative term of a tile: its hooks, over the bands of band.h.
//
// Queries carry the term's scale in base 2, where that costs no precision (kScaleLater).

// Forward: rows of a table times queries are added to the logits, and rows of another, weighted, to
// the sum of values.
template <typename T, typename E>
struct RelativeForward {
  T* query;  // [dim, lanes]
  E* query_pairs;
  ScoreBand<T, E> band;
  GradBand<T, E> values;

  void layout(Arena& arena, const AttentionParams& p) {
    const int64_t size = kTileQueries<T> * padded<T>(p.dim);
    query = arena.take<T>(size);
    if (kNumbers<E> == 2) query_pairs = arena.take<E>(kParts<E> * size / 2);
    band.layout(arena, p.dim);
    if (p.relative.values.data) values.layout(arena, p.v_dim);
  }

  // `unit` is what a natural logit is multiplied by; `acc` is where values are summed.
  void start(const AttentionParams& p, const Tile<T>& tile, T unit, T* rows, T* acc) {
    const View& from = p.relative.query.data ? p.relative.query : p.q;
    start_band(p, tile, unit, query_rows<T>(tile, from, p.dtype, p.dim, rows));
    if (p.relative.values.data) {
      values.start(head_table<Source<E>>(p.relative.values, p, tile.head, p.v_dim), tile.lanes, acc,
                   nullptr, {}, 0);
    }
  }

  void start_band(const AttentionParams& p, const Tile<T>& tile, T unit, const T* rows) {
    transpose_queries<T>(tile, rows, p.dim, kScaleLater<E> ? T(1) : T(p.relative.scale * kLog2E),
                         query);
    band.start(head_table<Source<E>>(p.relative.keys, p, tile.head, p.dim),
               pair_down(query, kTileQueries<T>, p.dim, tile.lanes, query_pairs),
               kScaleLater<E> ? T(p.relative.scale) * unit : T(1));
  }

  void add(const Step& step, T* logits) {
    band.add(step.offset, step.lanes, step.keys, step.slabs, step.n_slabs, logits);
  }

  // Weights of the step; everything that no lane sees is zero.
  void add_values(const Step& step, T* weights) {
    zero_around(step, weights);
    values.add(step.offset, step.keys, weights);
  }
};

// Backward: the same logits again, dO times the second table for dP; and with dS and P the
// gradients of the term's queries and of both tables.
template <typename T, typename E>
struct RelativeBackward {
  RelativeForward<T, E> forward;
  T *query_buffer, *grad_query;
  E* query_lane_pairs;
  ScoreBand<T, E> value_band;
  GradBand<T, E> grad, value_grad;

  void layout(Arena& arena, const AttentionParams& p) {
    const int64_t size = kTileQueries<T> * padded<T>(p.dim);
    forward.layout(arena, p);
    query_buffer = arena.take<T>(size);
    if (kNumbers<E> == 2) query_lane_pairs = arena.take<E>(kParts<E> * size / 2);
    grad_query = arena.take<T>(size);
    grad.layout(arena, p.dim);
    if (p.relative.values.data) {
      value_band.layout(arena, p.v_dim);
      value_grad.layout(arena, p.v_dim);
    }
  }

  // `grad_keys` and `grad_values` are the chunk's sums for the tile's head, [rows, padded dim].
  void start(const AttentionParams& p, const Tile<T>& tile, T unit, const QueryForms<T, E>& q,
             T* grad_keys, T* grad_values) {
    const int64_t dim = padded<T>(p.dim);
    const View& own = p.relative.query;
    const T* const rows =
        own.data ? query_rows<T>(tile, own, p.dtype, p.dim, query_buffer) : q.rows;
    forward.start_band(p, tile, unit, rows);
    zero_rows<T>(dim, tile.lanes, grad_query);
    const Matrix<E> lanes =
        own.data ? pair_down(rows, dim, tile.lanes, dim, query_lane_pairs) : q.lanes;
    grad.start(forward.band.table, tile.lanes, grad_query, grad_keys, lanes, tile.queries.count);
    if (p.relative.values.data) {
      const HeadTable<Source<E>> table =
          head_table<Source<E>>(p.relative.values, p, tile.head, p.v_dim);
      value_band.start(table, q.grad_columns, 1);
      value_grad.start(table, tile.lanes, nullptr, grad_values, q.grad_lanes, tile.queries.count);
    }
  }

  void add_value_grads(const Step& step, T* grads) {
    value_band.add(step.offset, step.lanes, step.keys, step.slabs, step.n_slabs, grads);
  }

  void collect(const AttentionParams& p, const Step& step, T* weights, T* grads) {
    zero_around(step, grads);
    grad.add(step.offset, step.keys, grads);
    if (p.relative.values.data) {
      zero_around(step, weights);
      value_grad.add(step.offset, step.keys, weights);
    }
  }

  // Where the term has no query of its own, its gradient is q's too: grad_q is then scaled here.
  bool finish(const BackwardParams& p, const Tile<T>& tile, T* rows, T* grad_q) {
    grad.finish();
    if (p.relative.values.data) value_grad.finish();
    const T scale = T(p.relative.scale);
    if (p.relative.query.data) {
      store_queries<T>(
          tile, grad_query, p.dim, [&](int64_t) { return set1(scale); }, rows, p.dtype,
          p.grad_relative.query);
      return false;
    }
    for (int64_t i = 0; i < padded<T>(p.dim) * kTileQueries<T>; ++i) {
      grad_q[i] = grad_q[i] * T(p.scale) + grad_query[i] * scale;
    }
    return true;
  }
};
