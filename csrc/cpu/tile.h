// A tile of queries at work: its lanes, its keys step by step, and its masks.
//
// Everything about a tile is kept transposed: query i of the tile is lane i, a key is a row.
// Softmax then needs no horizontal reduction, keys and values are broadcast from where they lie,
// and queries are the only thing packed.

template <typename T>
constexpr int kTileQueries =
    256 / int(sizeof(T));       // lanes of a tile: also the row pitch of its matrices
constexpr int kStepKeys = 128;  // keys a tile takes up at a time
constexpr int kSlabKeys = 16;   // granularity at which masked steps are cut

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

template <typename T>
ATTN_INLINE int64_t padded(int64_t n) {
  return ceil_div(n, kLanes<T>) * kLanes<T>;
}

// Some keys of a step and the lanes that see any of them. masked: not every lane sees every key.
struct Slab {
  int key, keys, lane, lanes;
  bool masked;
};

template <typename T>
struct Tile {
  Geometry geometry;
  QueryTile queries;
  int64_t batch, head, k_head, index;
  int lanes;  // queries rounded up to whole vectors; lanes behind the last query repeat its span
  typename VecTraits<T>::Bits first[kTileQueries<T>], stop[kTileQueries<T>];
};

template <typename T>
inline Tile<T> make_tile(const AttentionParams& p, int64_t batch, int64_t head, int64_t index) {
  Tile<T> tile;
  int64_t k_len = p.k_len;
  if (p.key_lengths) k_len = at_least(at_most(p.key_lengths[batch], k_len), 0);
  const int64_t offset = p.query_offsets ? p.query_offsets[batch] : p.query_offset;
  tile.geometry = p.geometry;
  tile.queries = query_tile(p.geometry, index, kTileQueries<T>, p.q_len, k_len, offset);
  tile.batch = batch, tile.head = head, tile.k_head = head / (p.heads / p.k_heads),
  tile.index = index;
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

// How many of the gathered keys [key, end) the next step takes. A relative term wants keys that lie
// next to each other.
template <typename T>
inline int step_keys(const Tile<T>& tile, int64_t key, int64_t end, bool relative) {
  const int64_t n = at_most(end - key, kStepKeys);
  if (!relative || tile.geometry.kind != GeometryKind::kPattern) return int(n);
  const Span run = key_run(tile.geometry, tile.queries, key);
  return int(at_most(n, run.stop - run.start));
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

template <typename T>
inline void scale_slab(const Slab& slab, T factor, T* matrix) {
  constexpr int pitch = kTileQueries<T>;
  for (int key = slab.key; key < slab.key + slab.keys; ++key) {
    T* row = matrix + key * pitch;
    for (int i = slab.lane; i < slab.lane + slab.lanes; ++i) row[i] *= factor;
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

template <typename E>
struct Rows {
  const E* data;
  int64_t stride;
};

template <typename E, typename T>
inline Rows<E> gather_pattern_rows(const Tile<T>& tile, Rows<E> head, int64_t dim, int64_t start,
                                   int n, const uint64_t* seen_by, E* buffer);

// The rows of keys (or values) [start, start + n) in gathered order: in place where they lie
// together, else copied to `buffer`. Pairs are of neighbours within a row.
template <typename E, typename T>
inline Rows<E> gather_rows(const Tile<T>& tile, const View& view, int64_t dim, int64_t start, int n,
                           const uint64_t* seen_by, E* buffer) {
  const int64_t offset = tile.batch * view.batch + tile.k_head * view.head;
  const E* head = static_cast<const E*>(view.data) + offset / kNumbers<E>;
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

// The same rows as elements of a sum over keys. Numbers are that already.
template <typename T>
ATTN_INLINE Rows<T> pair_rows(Rows<T> rows, int64_t, int, T*) {
  return rows;
}

// Pairs of neighbouring keys, [ceil(n / 2), dim]; a last key without neighbour is paired with
// zeros.
inline Rows<Pair> pair_rows(Rows<Pair> rows, int64_t dim, int n, Pair* buffer) {
  typedef uint16_t Halves __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));
  typedef uint32_t Words __attribute__((vector_size(kVecBytes)));
  constexpr int w = kLanes<float>;
  const auto* from = reinterpret_cast<const uint16_t*>(rows.data);
  const int64_t stride = 2 * rows.stride;
  for (int64_t key = 0; key < n; key += 2) {
    const uint16_t* a = from + key * stride;
    const uint16_t* b = key + 1 < n ? a + stride : nullptr;
    Pair* to = buffer + key / 2 * dim;
    int64_t d = 0;
    for (; b && d + w <= dim; d += w) {
      const Words even = __builtin_convertvector(*reinterpret_cast<const Halves*>(a + d), Words);
      const Words odd = __builtin_convertvector(*reinterpret_cast<const Halves*>(b + d), Words);
      const Words both = even | odd << 16;
      __builtin_memcpy(to + d, &both, sizeof(both));
    }
    for (; d < dim; ++d) to[d] = {a[d], b ? b[d] : uint16_t(0)};
  }
  return {buffer, dim};
}

// A transposed matrix [rows, lanes] as elements of a sum over its rows. Numbers are that already.
template <typename T>
ATTN_INLINE const T* pair_columns(const T* matrix, int64_t, int, T*) {
  return matrix;
}

#if defined(ATTN_AVX512_BF16)
inline const Pair* pair_columns(const float* matrix, int64_t rows, int lanes, Pair* buffer) {
  constexpr int pitch = kTileQueries<float>, w = kLanes<float>;
  for (int64_t r = 0; r < rows; r += 2) {
    for (int lane = 0; lane < lanes; lane += w) {
      const float* from = matrix + r * pitch + lane;
      store_pairs(buffer + r / 2 * pitch + lane, load(from), load(from + pitch));
    }
  }
  return buffer;
}

// Rows [lanes, width] as elements of a sum over lanes, [lanes / 2, width].
inline const Pair* pair_lanes(const float* rows, int lanes, int64_t width, Pair* buffer) {
  for (int64_t i = 0; i < lanes; i += 2) {
    for (int64_t d = 0; d < width; d += kLanes<float>) {
      const float* from = rows + i * width + d;
      store_pairs(buffer + i / 2 * width + d, load(from), load(from + width));
    }
  }
  return buffer;
}
#endif
template <typename T>
ATTN_INLINE const T* pair_lanes(const T* rows, int, int64_t, T*) {
  return rows;
}

// The tile's queries (or gradients of its outputs) as rows [lanes, padded dim], zero where there is
// none.
template <typename T>
inline void load_queries(const Tile<T>& tile, const View& view, DType dtype, int64_t dim, T factor,
                         T* rows) {
  const int64_t pitch = padded<T>(dim);
  for (int i = 0; i < tile.lanes; ++i) {
    T* row = rows + i * pitch;
    int64_t filled = 0;
    if (i < tile.queries.count) {
      const int64_t index = query_index(tile.geometry, tile.queries, i);
      load_row(dtype, row_of(view, dtype, tile.batch, tile.head, index), dim, factor, row);
      filled = dim;
    }
    fill<T>(row + filled, pitch - filled, 0);
  }
}

// Writes the tile's transposed result [dim, lanes], times `factor`, to the rows of `view`.
template <typename T>
inline void store_queries(const Tile<T>& tile, const T* transposed, int64_t dim, T factor, T* rows,
                          DType dtype, const View& view) {
  const int64_t pitch = padded<T>(dim);
  transpose<T>(pitch, tile.lanes, transposed, kTileQueries<T>, rows, pitch);
  for (int i = 0; i < tile.queries.count; ++i) {
    const int64_t index = query_index(tile.geometry, tile.queries, i);
    store_row(dtype, rows + i * pitch, dim, factor,
              row_of(view, dtype, tile.batch, tile.head, index));
  }
}
