// Memory fetched while products are computed: rows that the tile writes and the next one reads.
//
// Writing a cold row waits for it as reading does. A few lines before each register tile cost
// nothing; many at once would wait as well.

struct Ahead {
  static constexpr int kMost = 512, kTurns = 64;

  const char* rows[kMost];
  int count = 0, next = 0;
  int64_t row_bytes = 0;

  void add(const void* row) {
    if (count < kMost) rows[count++] = static_cast<const char*>(row);
  }

  // Of `kTurns` calls or more that together fetch all rows into the second-level cache.
  void fetch_some() {
    const int end = at_most(next + ceil_div(count, kTurns), count);
    for (; next < end; ++next) {
      for (int64_t i = 0; i < row_bytes; i += 64) __builtin_prefetch(rows[next] + i, 0, 2);
    }
  }
};
