// Memory fetched while products are computed: rows that the tile writes and the next one reads.
//
// Writing a cold row waits for it as reading does. A few lines before each register tile cost
// nothing; many at once would wait as well.

struct Ahead {
  static constexpr int kMost = 512, kTurns = 64;

  const char* rows[kMost];
  int count, next;
  int64_t row_bytes;

  void start(int64_t bytes) { count = next = 0, row_bytes = bytes; }

  void add(const void* row) {
    if (count < kMost) rows[count++] = static_cast<const char*>(row);
  }
  // The rows of `view` that belong to a tile's queries.
  void add(const Geometry& g, const QueryTile& queries, const View& view, DType dtype,
           int64_t batch, int64_t head) {
    for_queries(g, queries,
                [&](int, int64_t index) { add(row_of(view, dtype, batch, head, index)); });
  }

  // Of `kTurns` calls or more that together fetch all rows into the second-level cache.
  ATTN_INLINE void fetch_some() {
    if (next < count) fetch_next();
  }

 private:
  __attribute__((noinline)) void fetch_next() {
    const int end = at_most(next + ceil_div(count, kTurns), count);
    for (; next < end; ++next) {
      for (int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(rows[next] + i, 0, 2);
    }
  }
};

// Whether it pays. Fewer keys are too few products to hide anything behind; beside AMX it costs
// what it gains.
template <typename E>
ATTN_INLINE bool looks_ahead(const QueryTile& queries) {
  return kNumbers<E> == 1 && queries.n_keys >= 64;
}
