// A tile of queries at work: its lanes, its keys step by step, and its masks.
//
// Everything about a tile is kept transposed: query i of the tile is lane i, a key is a row.
// Softmax then needs no horizontal reduction, keys and values are broadcast from where they lie,
// and queries are the only thing packed.

constexpr double kLog2E = 1.4426950408889634074, kLn2 = 0.69314718055994530942;

// Hands out pieces of one block of scratch memory; over null it only counts.
struct Arena {
  char* base;
  int64_t used = 0;

  template <typename T>
  T* take(int64_t n) {
    char* piece = base + used;
    used += ceil_div(n * int64_t(sizeof(T)), 64) * 64;
    return base == nullptr ? nullptr : reinterpret_cast<T*>(piece);
  }
};

// Some keys of a step and the lanes that see any of them. masked: not every lane sees every key.
struct Slab {
  int key, keys, lane, lanes;
  bool masked;
};

template <typename T>
struct Tile {
  Geometry geometry;
  QueryTile queries;
  int64_t batch, head, k_head, k_heads, k_len, index;
  int lanes;  // queries rounded up to whole vectors; lanes behind the last query repeat its span
  typename VecTraits<T>::Bits first[kTileQueries<T>], stop[kTileQueries<T>];
};

ATTN_INLINE int64_t key_length(const AttentionParams& p, int64_t batch) {
  return p.key_lengths ? at_least(at_most(p.key_lengths[batch], p.k_len), 0) : p.k_len;
}

// Nobody has looked into a tensor of offsets: sums with what is farther could overflow.
ATTN_INLINE int64_t query_offset(const AttentionParams& p, int64_t batch) {
  const int64_t offset = p.query_offsets ? p.query_offsets[batch] : p.query_offset;
  return at_most(at_least(offset, -kFarthest), kFarthest);
}

template <typename T>
ATTN_INLINE QueryTile queries_of(const AttentionParams& p, int64_t batch, int64_t index) {
  return query_tile(p.geometry, index, kTileQueries<T>, p.q_len, key_length(p, batch),
                    query_offset(p, batch));
}

template <typename T>
inline Tile<T> make_tile(const AttentionParams& p, int64_t batch, int64_t head, int64_t index) {
  Tile<T> tile;
  const int64_t k_len = key_length(p, batch);
  tile.geometry = p.geometry;
  tile.queries = queries_of<T>(p, batch, index);
  tile.batch = batch, tile.head = head, tile.k_head = head / (p.heads / p.k_heads),
  tile.k_heads = p.k_heads, tile.k_len = k_len, tile.index = index;
  tile.lanes = int(padded<T>(tile.queries.count));
  for (int i = 0; i < tile.lanes; ++i) {
    const int64_t query = at_most(i, tile.queries.count - 1);
    const Span span = visible_span(p.geometry, tile.queries, query, k_len);
    tile.first[i] = typename VecTraits<T>::Bits(span.start);
    tile.stop[i] = typename VecTraits<T>::Bits(span.stop);
  }
  return tile;
}

// Adds a slab to `count` others, or to the last of them where it goes on with the same lanes.
inline int add_slab(const Slab& slab, Slab* slabs, int count) {
  Slab* before = count > 0 ? &slabs[count - 1] : nullptr;
  if (before && before->lane == slab.lane && before->lanes == slab.lanes &&
      before->masked == slab.masked && before->key + before->keys == slab.key) {
    before->keys += slab.keys;
    return count;
  }
  slabs[count] = slab;
  return count + 1;
}

template <typename T>
inline int cut_pattern_slabs(const Tile<T>& tile, int64_t start, int n, Slab* slabs,
                             uint64_t* seen_by);

// Cuts the step of gathered keys [start, start + n) into slabs. Spans only move forward, so the
// lanes that see a slab are consecutive. A Pattern also leaves a word per key: who sees it.
template <typename T>
inline int cut_slabs(const Tile<T>& tile, int64_t start, int n, Slab* slabs, uint64_t* seen_by) {
  if (tile.geometry.kind == GeometryKind::kPattern) {
    return cut_pattern_slabs(tile, start, n, slabs, seen_by);
  }
  const int last = tile.lanes - 1;
  if (tile.first[last] <= start && tile.stop[0] >= start + n) {
    slabs[0] = {0, n, 0, tile.lanes, false};
    return 1;
  }
  int count = 0, from = 0, to = 0;
  for (int key = 0; key < n; key += kSlabKeys) {
    const int keys = int(at_most(n - key, kSlabKeys));
    while (from < tile.lanes && tile.stop[from] <= start + key) ++from;
    while (to < tile.lanes && tile.first[to] < start + key + keys) ++to;
    const int lane = from / kLanes<T> * kLanes<T>, end = int(padded<T>(to));
    if (lane >= end) continue;
    const bool masked = tile.first[end - 1] > start + key || tile.stop[lane] < start + key + keys;
    count = add_slab({key, keys, lane, end - lane, masked}, slabs, count);
  }
  return count;
}

template <typename T>
inline void mask_pattern_slab(const Slab& slab, const uint64_t* seen_by, T value, T* matrix);

// Sets to `value` what a lane does not see of a masked slab.
template <typename T>
inline void mask_slab(const Tile<T>& tile, int64_t start, const Slab& slab, const uint64_t* seen_by,
                      T value, T* matrix) {
  if (tile.geometry.kind == GeometryKind::kPattern) {
    return mask_pattern_slab<T>(slab, seen_by, value, matrix);
  }
  constexpr int w = kLanes<T>, pitch = kTileQueries<T>;
  for (int lane = slab.lane; lane < slab.lane + slab.lanes; lane += w) {
    BitsVec<T> first, stop;
    __builtin_memcpy(&first, tile.first + lane, sizeof(first));
    __builtin_memcpy(&stop, tile.stop + lane, sizeof(stop));
    for (int key = slab.key; key < slab.key + slab.keys; ++key) {
      const BitsVec<T> number = BitsVec<T>{} + typename VecTraits<T>::Bits(start + key);
      T* at = matrix + key * pitch + lane;
      store<T>(at, (number >= first) & (number < stop) ? load(at) : set1(value));
    }
  }
}

// How many of the gathered keys [key, end) the next step takes. Terms may want keys that lie next
// to each other; columns that blocks share are steps of their own.
template <typename T>
inline int step_keys(const Tile<T>& tile, int64_t key, int64_t end, bool neighbours) {
  const int64_t n = at_most(end - key, kStepKeys);
  if (columns_are_shared(tile.geometry)) {
    const Box& box = box_of(tile.queries, key);
    return int(at_most(n, box.count - key));
  }
  if (!neighbours || tile.geometry.kind != GeometryKind::kPattern) return int(n);
  const Span run = key_run(tile.geometry, tile.queries, key);
  return int(at_most(n, run.stop - run.start));
}

// Calls step(start, n) for the keys of part `part` of `parts` of the tile, kStepKeys at a time.
// Steps end at multiples of kStepKeys in the sequence, so that every tile cuts it alike.
template <typename T, typename Step>
ATTN_INLINE void for_steps(const Tile<T>& tile, int64_t part, int64_t parts, bool neighbours,
                           const Step& step) {
  const bool in_sequence = keys_in_sequence(tile.geometry);
  const int64_t before = in_sequence ? tile.queries.k_pos % kStepKeys : 0;
  const int64_t steps = ceil_div(before + tile.queries.n_keys, kStepKeys);
  const int64_t end = at_most(steps * (part + 1) / parts * kStepKeys - before, tile.queries.n_keys);
  int64_t start = at_least(steps * part / parts * kStepKeys - before, 0);
  while (start < end) {
    const int64_t whole = in_sequence ? kStepKeys - (before + start) % kStepKeys : kStepKeys;
    const int n = step_keys(tile, start, at_most(start + whole, end), neighbours);
    step(start, n);
    start += n;
  }
}

// From the tile's first query to the step's first key, in one dimension.
template <typename T>
inline int64_t step_offset(const Tile<T>& tile, int64_t start) {
  const bool in_runs = tile.geometry.kind == GeometryKind::kPattern;
  const int64_t key =
      in_runs ? key_run(tile.geometry, tile.queries, start).start : tile.queries.k_pos + start;
  return key - tile.queries.q_pos;
}

// Queries carry the scale of the logits where that costs no precision; pairs would round it in, so
// their logits are scaled afterwards.
template <typename E>
constexpr bool kScaleLater = kNumbers<E> == 2;

// What raw logits are multiplied by at once, and at the end by exp2's argument; and what a term in
// natural units is multiplied by when it is added to them.
template <typename T>
struct Scales {
  T now, later, unit;
};
inline double term_scale(const AttentionParams& p);
template <typename E, typename T>
inline Scales<T> logit_scales(const AttentionParams& p) {
  if (!kScaleLater<E>) return {1, 1, T(kLog2E)};
  const T scale = T(p.scale * kLog2E), term = T(term_scale(p) * kLog2E);
  // To scale at the end needs logits in their order, and terms that are not far larger than they.
  const bool late = scale > 0 && term < scale * T(1e6);
  return late ? Scales<T>{1, scale, T(1 / p.scale)} : Scales<T>{scale, 1, T(kLog2E)};
}

template <typename T>
inline void scale_slab(const Slab& slab, T factor, T* matrix) {
  constexpr int pitch = kTileQueries<T>;
  for (int key = slab.key; key < slab.key + slab.keys; ++key) {
    T* row = matrix + key * pitch;
    for (int i = slab.lane; i < slab.lane + slab.lanes; ++i) row[i] *= factor;
  }
}

// Zeroes a matrix [rows, lanes].
template <typename T>
inline void zero_rows(int64_t rows, int lanes, T* matrix) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int lane = 0; lane < lanes; lane += kLanes<T>)
      store<T>(matrix + r * kTileQueries<T> + lane, Vec<T>{});
  }
}

// Zeroes what the slabs leave out of the step's n rows.
template <typename T>
inline void zero_outside(int lanes, int n, const Slab* slabs, int n_slabs, T* matrix) {
  constexpr int pitch = kTileQueries<T>;
  int key = 0;
  for (int i = 0; i <= n_slabs; ++i) {
    const int until = i < n_slabs ? slabs[i].key : n;
    for (; key < until; ++key) fill<T>(matrix + key * pitch, lanes, 0);
    if (i == n_slabs) break;
    const int end = slabs[i].lane + slabs[i].lanes;
    for (; key < slabs[i].key + slabs[i].keys; ++key) {
      fill<T>(matrix + key * pitch, slabs[i].lane, 0);
      fill<T>(matrix + key * pitch + end, lanes - end, 0);
    }
  }
}

// The rows of keys (or values) of the tile's head.
template <typename E, typename T>
inline const E* head_rows(const Tile<T>& tile, const View& view) {
  const int64_t offset = tile.batch * view.batch + tile.k_head * view.head;
  return static_cast<const E*>(view.data) + offset / kNumbers<E>;
}

template <typename E, typename T>
inline Matrix<E> gather_pattern_rows(const Tile<T>& tile, Matrix<E> head, int64_t dim,
                                     int64_t start, int n, const uint64_t* seen_by, E* buffer);

// The rows of keys (or values) [start, start + n) in gathered order: in place where they lie
// together, else copied to `buffer`.
template <typename E, typename T>
inline Matrix<E> gather_rows(const Tile<T>& tile, const View& view, int64_t dim, int64_t start,
                             int n, const uint64_t* seen_by, E* buffer) {
  const E* head = head_rows<E>(tile, view);
  const int64_t stride = view.row / kNumbers<E>;
  dim /= kNumbers<E>;
  if (tile.geometry.kind == GeometryKind::kPattern) {
    return gather_pattern_rows<E>(tile, {head, stride}, dim, start, n, seen_by, buffer);
  }
  Span run = key_run(tile.geometry, tile.queries, start);
  if (run.stop - run.start >= n) return {head + run.start * stride, stride};
  for (int done = 0; done < n;) {
    for (; run.start < run.stop && done < n; ++run.start, ++done) {
      copy_row(head + run.start * stride, dim, buffer + done * dim);
    }
    if (done < n) run = key_run(tile.geometry, tile.queries, start + done);
  }
  return {buffer, dim};
}

// Where the tile's queries lie in `view` as rows [count, padded dim] of T, or null if they do not.
// Rows further apart may all share a few sets of the first-level cache: those are copied.
template <typename T>
inline T* rows_in_place(const Tile<T>& tile, const View& view, DType dtype, int64_t dim) {
  const bool same = dtype == (sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32);
  const bool together = view.row == dim && tile.geometry.kind != GeometryKind::kLocal2d;
  if (!same || !together || dim % kLanes<T> != 0) return nullptr;
  return reinterpret_cast<T*>(row_of(view, dtype, tile.batch, tile.head, tile.queries.q_index));
}

// The tile's queries (or gradients of its outputs) as rows [count, padded dim]: in place, or in
// `buffer`, with zeros up to tile.lanes.
template <typename T>
inline const T* query_rows(const Tile<T>& tile, const View& view, DType dtype, int64_t dim,
                           T* buffer) {
  if (const T* rows = rows_in_place<T>(tile, view, dtype, dim)) return rows;
  const int64_t pitch = padded<T>(dim);
  for_queries(tile.geometry, tile.queries, [&](int i, int64_t index) {
    T* row = buffer + i * pitch;
    load_row(dtype, row_of(view, dtype, tile.batch, tile.head, index), dim, T(1), row);
    fill<T>(row + dim, pitch - dim, 0);
  });
  fill<T>(buffer + tile.queries.count * pitch, (tile.lanes - tile.queries.count) * pitch, 0);
  return buffer;
}

// Their transpose [padded dim, lanes], times `factor`; zero in lanes without a query.
template <typename T>
inline void transpose_queries(const Tile<T>& tile, const T* rows, int64_t dim, T factor,
                              T* transposed) {
  const int64_t pitch = padded<T>(dim);
  transpose<T>(
      tile.queries.count, pitch, rows, pitch, [&](int64_t) { return set1(factor); }, transposed,
      kTileQueries<T>);
}

// Writes the tile's transposed result [dim, lanes], times factor(lane), to the rows of `view`.
template <typename T, typename Factor>
inline void store_queries(const Tile<T>& tile, const T* transposed, int64_t dim,
                          const Factor& factor, T* buffer, DType dtype, const View& view) {
  const int64_t pitch = padded<T>(dim);
  T* rows = rows_in_place<T>(tile, view, dtype, dim);
  transpose<T>(pitch, tile.queries.count, transposed, kTileQueries<T>, factor, rows ? rows : buffer,
               pitch);
  if (rows) return;
  for_queries(tile.geometry, tile.queries, [&](int i, int64_t index) {
    store_row(dtype, buffer + i * pitch, dim, T(1),
              row_of(view, dtype, tile.batch, tile.head, index));
  });
}

// result[dim, lanes] += rows^T matrix: a product over the keys of a slab. `rows` of the step's keys
// as pair_keys() gives them, `matrix` [keys, lanes].
template <typename T, typename E>
inline void add_over_keys(int64_t dim, const Slab& slab, Matrix<E> rows, Matrix<E> matrix,
                          T* result, Ahead* ahead = nullptr) {
  constexpr int pitch = kTileQueries<T>;
  const int64_t key = slab.key / kNumbers<E>, depth = ceil_div(slab.keys, kNumbers<E>);
  gemm<kOverKeys<E>>(
      dim, slab.lanes, depth, rows.from(kOverKeys<E> == Left::kRows ? key : key * rows.stride),
      matrix.from(key * matrix.stride + slab.lane), result + slab.lane, pitch, true, ahead);
}
