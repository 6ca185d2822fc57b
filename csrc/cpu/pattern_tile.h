// What a tile does where the geometry is a Pattern: who sees a key is a word, bit i for lane i.

// Cuts the step of gathered keys [start, start + n) into slabs, and leaves the keys' words.
template <typename T>
inline int cut_pattern_slabs(const Tile<T>& tile, int64_t start, int n, Slab* slabs,
                             uint64_t* seen_by) {
  const QueryTile& q = tile.queries;
  read_words(tile.geometry, q.q_pos, q.count, start, n, seen_by);
  // What lanes without a query see does not matter.
  const uint64_t unused = q.count >= 64 ? 0 : ~uint64_t(0) << q.count;
  int count = 0;
  for (int key = 0; key < n; key += kSlabKeys) {
    const int keys = int(at_most(n - key, kSlabKeys));
    uint64_t any = 0, all = ~uint64_t(0);
    for (int i = key; i < key + keys; ++i) any |= seen_by[i], all &= seen_by[i] | unused;
    if (any == 0) continue;
    const int lane = __builtin_ctzll(any) / kLanes<T> * kLanes<T>;
    const int end = int(padded<T>(64 - __builtin_clzll(any)));
    const uint64_t lanes = ~uint64_t(0) >> (64 - (end - lane)) << lane;
    count = add_slab({key, keys, lane, end - lane, (all & lanes) != lanes}, slabs, count);
  }
  return count;
}

template <typename T>
inline void mask_pattern_slab(const Slab& slab, const uint64_t* seen_by, T value, T* matrix) {
  constexpr int pitch = kTileQueries<T>;
  for (int key = slab.key; key < slab.key + slab.keys; ++key) {
    for (int lane = slab.lane; lane < slab.lane + slab.lanes; lane += kLanes<T>) {
      T* at = matrix + key * pitch + lane;
      store<T>(at, select<T>(uint32_t(seen_by[key] >> lane), load(at), set1(value)));
    }
  }
}

// Rows that nobody in the tile sees are zero: what they hold must not reach a product.
template <typename E, typename T>
inline Matrix<E> gather_pattern_rows(const Tile<T>& tile, Matrix<E> head, int64_t dim,
                                     int64_t start, int n, const uint64_t* seen_by, E* buffer) {
  uint64_t all_seen = 1;
  for (int i = 0; i < n; ++i) all_seen &= seen_by[i] != 0;
  Span run = key_run(tile.geometry, tile.queries, start);
  if (all_seen && run.stop - run.start >= n)
    return {head.data + run.start * head.stride, head.stride};
  for (int done = 0; done < n; ++done, ++run.start) {
    if (run.start == run.stop) run = key_run(tile.geometry, tile.queries, start + done);
    E* to = buffer + done * dim;
    if (seen_by[done]) {
      copy_row(head.data + run.start * head.stride, dim, to);
    } else {
      __builtin_memset(to, 0, uint64_t(dim) * sizeof(E));
    }
  }
  return {buffer, dim};
}
