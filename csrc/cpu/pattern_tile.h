// What a tile does where the geometry is a Pattern: who sees a key is a word, bit i for lane i.

template <typename T>
ATTN_INLINE void read_words(const Tile<T>& tile, int64_t start, int n, uint64_t* words) {
  read_words(tile.geometry, tile.queries.q_pos, tile.queries.count, start, n, words);
}

// Cuts the step of gathered keys [start, start + n) into slabs.
template <typename T>
inline int cut_pattern_slabs(const Tile<T>& tile, int64_t start, int n, Slab* slabs) {
  uint64_t words[kStepKeys];
  read_words(tile, start, n, words);
  // What lanes without a query see does not matter.
  const int64_t queries = tile.queries.count;
  const uint64_t unused = queries >= 64 ? 0 : ~uint64_t(0) << queries;
  int count = 0;
  for (int key = 0; key < n; key += kSlabKeys) {
    const int keys = int(at_most(n - key, kSlabKeys));
    uint64_t any = 0, all = ~uint64_t(0);
    for (int i = key; i < key + keys; ++i) any |= words[i], all &= words[i] | unused;
    if (any == 0) continue;
    const int lane = __builtin_ctzll(any) / kLanes<T> * kLanes<T>;
    const int end = int(padded<T>(64 - __builtin_clzll(any)));
    const uint64_t lanes = ~uint64_t(0) >> (64 - (end - lane)) << lane;
    count = add_slab({key, keys, lane, end - lane, (all & lanes) != lanes}, slabs, count);
  }
  return count;
}

template <typename T>
inline void mask_pattern_slab(const Tile<T>& tile, int64_t start, const Slab& slab, T value,
                              T* matrix) {
  constexpr int pitch = kTileQueries<T>;
  uint64_t words[kStepKeys];
  read_words(tile, start + slab.key, slab.keys, words);
  for (int key = 0; key < slab.keys; ++key) {
    for (int lane = slab.lane; lane < slab.lane + slab.lanes; lane += kLanes<T>) {
      T* at = matrix + (slab.key + key) * pitch + lane;
      store<T>(at, select<T>(uint32_t(words[key] >> lane), load(at), set1(value)));
    }
  }
}

// The step's rows. Those that nobody in the tile sees are zero: what they hold must not reach a
// product.
template <typename E, typename T>
inline Matrix<E> gather_pattern_rows(const Tile<T>& tile, Matrix<E> head, int64_t dim,
                                     int64_t start, int n, E* buffer) {
  uint64_t words[kStepKeys];
  read_words(tile, start, n, words);
  bool all_seen = true;
  for (int i = 0; i < n; ++i) all_seen &= words[i] != 0;
  Span run = key_run(tile.geometry, tile.queries, start);
  if (all_seen && run.stop - run.start >= n) return head.from(run.start * head.stride);
  for (int done = 0; done < n; ++done, ++run.start) {
    if (run.start == run.stop) run = key_run(tile.geometry, tile.queries, start + done);
    E* to = buffer + done * dim;
    if (words[done]) {
      copy_row(head.data + run.start * head.stride, dim, to);
    } else {
      __builtin_memset(to, 0, uint64_t(dim) * sizeof(E));
    }
  }
  return {buffer, dim};
}
