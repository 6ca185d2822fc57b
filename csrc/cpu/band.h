// The relative term of a tile, without a buffer of size queries x keys or queries x table.
//
// For n keys and `lanes` queries the offsets j - p_i take lanes - 1 + n values: a band of the
// table. Its products with the queries, band[r, i] = table[row(o + r)] . q_i, are one matrix
// product, of which each further step only needs n new rows. Key j and lane i read band[j - i +
// lanes - 1, i]: within a vector, lane i reads the row i above. A shift by less than kLanes rows
// per lane is made by two rounds of blends (by i % 4, then by i / 4 * 4); from vector to vector it
// is a pointer shift.

template <typename T>
constexpr uint32_t lanes_where(int divisor, int modulus, int value) {
  uint32_t mask = 0;
  for (int i = 0; i < kLanes<T>; ++i) mask |= uint32_t(i / divisor % modulus == value) << i;
  return mask;
}

// Lane i of the result is lane i of x[kStep * (i / kDivisor % 4)], kStep in vectors of pitch
// `pitch`.
template <int kDivisor, int kStep, typename T>
ATTN_INLINE Vec<T> blend_rows(const T* x, int64_t pitch) {
  constexpr int rounds = kLanes<T> / kDivisor < 4 ? kLanes<T> / kDivisor : 4;
  Vec<T> y = load(x);
  if constexpr (rounds > 1)
    y = blend<lanes_where<T>(kDivisor, 4, 1), T>(y, load(x + kStep * pitch));
  if constexpr (rounds > 2)
    y = blend<lanes_where<T>(kDivisor, 4, 2), T>(y, load(x + 2 * kStep * pitch));
  if constexpr (rounds > 3)
    y = blend<lanes_where<T>(kDivisor, 4, 3), T>(y, load(x + 3 * kStep * pitch));
  return y;
}

// One vector column: to[j] += lane-wise from[j + kSign * i], for j in [0, n). Rows are kTileQueries
// apart.
template <int kSign, typename T>
inline void add_sheared(const T* from, int n, T* to) {
  constexpr int w = kLanes<T>, pitch = kTileQueries<T>;
  constexpr int reach = w > 4 ? w - 4 : 0;  // how far the second round looks
  alignas(64) T half[(kStepKeys + 2 * w) * w];
  const int begin = kSign < 0 ? -reach : 0, end = kSign < 0 ? n : n + reach;
  for (int j = begin; j < end; ++j) {
    store<T>(half + (j - begin) * w, blend_rows<1, kSign, T>(from + j * pitch, pitch));
  }
  for (int j = 0; j < n; ++j) {
    const T* x = half + (j - begin) * w;
    store<T>(to + j * pitch, load(to + j * pitch) + blend_rows<4, 4 * kSign, T>(x, w));
  }
}

// Calls work(first, count) for `n` rows, a few at a time: whole columns of a step, whose rows lie
// 256 bytes apart, would share a quarter of the first-level cache's sets.
template <typename Work>
ATTN_INLINE void in_chunks(int n, const Work& work) {
  constexpr int kRows = 32;
  for (int first = 0; first < n; first += kRows) work(first, int(at_most(n - first, kRows)));
}

// A head's table in elements S, numbers or pairs, and how offsets map to its rows.
template <typename S>
struct HeadTable {
  const S* data = nullptr;
  int64_t rows = 0, dim = 0, zero_row = 0;
  bool causal = false, clip = false;

  // The rows from `row` on, every `step`-th.
  Matrix<S> from(int64_t row, int64_t step = 1) const {
    const int64_t width = dim / kNumbers<S>;
    return {data + row * width, step * width};
  }

  // Whether all of `count` offsets from `first` on lie before (-1) or behind (+1) the table.
  int beyond(int64_t first, int64_t count) const {
    const BandRows cut = band_rows(first, count, rows, zero_row);
    return cut.below == count ? -1 : cut.above == count ? 1 : 0;
  }
};

template <typename S>
inline HeadTable<S> head_table(const Table& table, const AttentionParams& p, int64_t head,
                               int64_t dim) {
  if (table.data == nullptr) return {};
  const int64_t start = head * table.head_stride / kNumbers<S>;
  return {static_cast<const S*>(table.data) + start,
          table.rows,
          dim,
          p.relative.zero_row,
          p.geometry.causal,
          p.relative.clip};
}

template <typename T>
constexpr int kBandRows = kTileQueries<T> + kStepKeys;

// Table times queries, added to logits. E is the element of the product.
template <typename T, typename E>
struct ScoreBand {
  HeadTable<Source<E>> table;
  Matrix<E> queries;  // [dim, lanes]
  T factor;           // of the products
  E* made;            // rows of the table as elements, if those have to be made
  T* rows;            // [kBandRows, lanes]
  T* edges;           // the products of the first and last row
  int64_t next = 0;   // the offset behind the last row held
  int held = 0;
  bool have_edges = false;

  void layout(Arena& arena, int64_t dim) {
    rows = arena.take<T>(kBandRows<T> * kTileQueries<T>);
    edges = arena.take<T>(2 * kTileQueries<T>);
    if (kMade<Sums::kDims, E>) made = arena.take<E>(row_elements<E>(kBandRows<T>, dim));
  }

  void start(const HeadTable<Source<E>>& head, Matrix<E> q, T factor_) {
    table = head, queries = q, factor = factor_, held = 0, have_edges = false;
  }

  // The products of n rows from `first` on, every `step`-th.
  void multiply(int64_t first, int64_t step, int64_t n, int lanes, T* to) {
    gemm<Left::kRows>(n, lanes, ceil_div(table.dim, kNumbers<E>),
                      over_dims<E>(table.from(first, step), table.dim, int(n), made), queries, to,
                      kTileQueries<T>, false);
    if (factor != T(1)) scale_slab({0, int(n), 0, lanes, false}, factor, to);
  }

  // The products of the edge row on side -1 or +1, or null if nothing is added beyond the table.
  const T* edge(int side, int lanes) {
    if (!table.clip || (side > 0 && table.causal)) return nullptr;
    if (!have_edges) multiply(0, table.rows - 1, 2, lanes, edges);
    have_edges = true;
    return edges + (side > 0 ? kTileQueries<T> : 0);
  }

  void fill_edge(int side, int lanes, int64_t n, T* to) {
    const T* from = n > 0 ? edge(side, lanes) : nullptr;
    for (int64_t r = 0; r < n; ++r) {
      for (int i = 0; i < lanes; ++i) to[r * kTileQueries<T> + i] = from ? from[i] : T(0);
    }
  }

  void compute(int64_t first, int64_t n, int lanes, T* to) {
    constexpr int pitch = kTileQueries<T>;
    const BandRows cut = band_rows(first, n, table.rows, table.zero_row);
    fill_edge(-1, lanes, cut.below, to);
    multiply(cut.row, 1, cut.inside, lanes, to + cut.below * pitch);
    fill_edge(1, lanes, cut.above, to + (cut.below + cut.inside) * pitch);
  }

  // Adds the term to the step's slabs; `offset` is that of its first key to the tile's first query.
  void add(int64_t offset, int lanes, int n, const Slab* slabs, int n_slabs, T* logits) {
    constexpr int pitch = kTileQueries<T>, w = kLanes<T>;
    const int64_t first = offset - (lanes - 1);
    const int64_t n_rows = lanes - 1 + n;
    if (const int side = table.beyond(first, n_rows)) {
      held = 0;
      if (const T* row = edge(side, lanes)) {
        for (int s = 0; s < n_slabs; ++s) {
          for (int key = slabs[s].key; key < slabs[s].key + slabs[s].keys; ++key) {
            T* to = logits + key * pitch;
            for (int i = slabs[s].lane; i < slabs[s].lane + slabs[s].lanes; ++i) to[i] += row[i];
          }
        }
      }
      return;
    }
    int kept = 0;
    if (held > 0 && next == first + lanes - 1) {
      kept = lanes - 1;
      copy(rows, rows + (held - kept) * pitch, kept * pitch);
    }
    compute(first + kept, n_rows - kept, lanes, rows + kept * pitch);
    held = int(n_rows), next = first + n_rows;
    for (int s = 0; s < n_slabs; ++s) {
      const Slab& slab = slabs[s];
      const int lane_end = slab.lane + slab.lanes;
      in_chunks(slab.keys, [&](int from, int n_keys) {
        const int key = slab.key + from;
        for (int lane = slab.lane; lane < lane_end; lane += w) {
          const T* column = rows + (key + lanes - 1 - lane) * pitch + lane;
          add_sheared<-1>(column, n_keys, logits + key * pitch + lane);
        }
      });
    }
  }
};

// The way back: weights (or logit gradients) of a step, summed by offset and multiplied with the
// table. A row is complete, and leaves, when all steps that touch it are done.
template <typename T, typename E>
struct GradBand {
  HeadTable<Source<E>> table;
  T* product;                  // [dim, lanes] += table^T band, or null
  T* grad_table;               // [rows, padded dim] += band q, or null
  Matrix<E> queries;           // [lanes, padded dim]
  int64_t n_queries;           // lanes that count in grad_table
  E *table_made, *band_pairs;  // rows of the table, and of the band, as elements
  T* rows;                     // [kBandRows, lanes]
  T* edges;                    // sums of the rows before and behind the table
  int64_t next = 0;            // offset of rows[0]
  int held = 0, lanes = 0;

  void layout(Arena& arena, int64_t dim) {
    rows = arena.take<T>(kBandRows<T> * kTileQueries<T>);
    edges = arena.take<T>(2 * kTileQueries<T>);
    if (kNumbers<E> == 2) {
      table_made = arena.take<E>(key_elements<E>(dim));
      band_pairs = arena.take<E>(key_elements<E>(kTileQueries<T>));
    }
  }

  void start(const HeadTable<Source<E>>& head, int n_lanes, T* product_, T* grad_table_,
             Matrix<E> queries_, int64_t n_queries_) {
    table = head, lanes = n_lanes, product = product_, grad_table = grad_table_, queries = queries_;
    n_queries = n_queries_, held = 0;
    fill<T>(edges, 2 * kTileQueries<T>, 0);
  }

  void multiply(int64_t row, int64_t n, const T* band) {
    constexpr int pitch = kTileQueries<T>;
    const int64_t padded_dim = padded<T>(table.dim);
    if (n == 0) return;
    if (product) {
      gemm<kOverKeys<E>>(table.dim, lanes, ceil_div(n, kNumbers<E>),
                         over_keys<E>(table.from(row), table.dim, int(n), table_made),
                         pair_down(band, pitch, n, lanes, band_pairs), product, pitch, true);
    }
    if (grad_table) {
      gemm<Left::kRows>(n, padded_dim, ceil_div(n_queries, kNumbers<E>),
                        pair_across(band, pitch, n, lanes, band_pairs), queries,
                        grad_table + row * padded_dim, padded_dim, true);
    }
  }

  void add_to_edge(int side, int64_t n, const T* band) {
    if (!table.clip || (side > 0 && table.causal)) return;
    T* edge = edges + (side > 0 ? kTileQueries<T> : 0);
    for (int64_t r = 0; r < n; ++r) {
      for (int i = 0; i < lanes; ++i) edge[i] += band[r * kTileQueries<T> + i];
    }
  }

  void emit(int64_t first, int64_t n, const T* band) {
    constexpr int pitch = kTileQueries<T>;
    const BandRows cut = band_rows(first, n, table.rows, table.zero_row);
    add_to_edge(-1, cut.below, band);
    multiply(cut.row, cut.inside, band + cut.below * pitch);
    add_to_edge(1, cut.above, band + (cut.below + cut.inside) * pitch);
  }

  void flush() {
    emit(next, held, rows);
    held = 0;
  }

  // Takes the step's n rows; `matrix` has kLanes zero rows before and behind them.
  void add(int64_t offset, int n, const T* matrix) {
    constexpr int pitch = kTileQueries<T>, w = kLanes<T>;
    const int64_t first = offset - (lanes - 1);
    const int n_rows = lanes - 1 + n;
    if (const int side = table.beyond(first, n_rows)) {
      flush();
      add_to_edge(side, n, matrix);
      return;
    }
    if (held > 0 && next != first) flush();
    fill<T>(rows + held * pitch, int64_t(n_rows - held) * pitch, 0);
    in_chunks(n + w - 1, [&](int from, int n_keys) {
      for (int lane = 0; lane < lanes; lane += w) {
        const int key = from - (w - 1), row = lanes - 1 - lane + key;
        add_sheared<1>(matrix + key * pitch + lane, n_keys, rows + row * pitch + lane);
      }
    });
    emit(first, n, rows);
    held = lanes - 1, next = first + n;
    copy(rows, rows + n * pitch, held * pitch);
  }

  // A rescaled softmax rescales what waits here too.
  void rescale(int lane, Vec<T> factor) {
    for (int r = 0; r < held; ++r) {
      T* at = rows + r * kTileQueries<T> + lane;
      store<T>(at, load(at) * factor);
    }
    for (int side = 0; side < 2; ++side) {
      T* at = edges + side * kTileQueries<T> + lane;
      store<T>(at, load(at) * factor);
    }
  }

  void finish() {
    flush();
    if (!table.clip) return;
    multiply(0, 1, edges);
    if (!table.causal) multiply(table.rows - 1, 1, edges + kTileQueries<T>);
  }
};
