// Reads a Pattern's table, which core/pattern.py compiles: lists of key runs, and bits.
//
// Queries come in groups of 64 rows. A group has runs of keys that some of its rows see; it numbers
// those keys in order. Of a run that not every row sees in full there is one word per key, whose
// bit i is the group's row i. The table: where each group's runs begin, and their number; the runs;
// the words.
#pragma once

#include "numbers.h"
#include "params.h"

namespace attn_kernels {

constexpr int64_t kGroupRows = 64;

// Keys [start, stop), of which the first is number `before` of the group's keys. The words lie from
// table[place] on, or everybody sees every key: place is then -1.
struct PatternRun {
  int64_t start, stop, before, place;
};

struct PatternRuns {
  const PatternRun* first;
  int64_t count;
};

static inline int64_t group_count(const Geometry& g) { return ceil_div(g.rows, kGroupRows); }

static inline const PatternRun* all_runs(const Geometry& g) {
  return reinterpret_cast<const PatternRun*>(g.table + group_count(g) + 1);
}

// The runs of the group that holds the query row `pos`: none where the pattern has no such row.
static inline PatternRuns runs_of_row(const Geometry& g, int64_t pos) {
  if (pos < 0 || pos >= g.rows) return {nullptr, 0};
  const int64_t* first = g.table + pos / kGroupRows;
  return {all_runs(g) + first[0], first[1] - first[0]};
}

// The run of key number `n`.
static inline int64_t find_run(const PatternRuns& runs, int64_t n) {
  int64_t low = 0, high = runs.count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (runs.first[middle].before <= n ? low : high) = middle;
  }
  return low;
}

// How many of the runs' keys lie before position k_len.
static inline int64_t keys_before(const PatternRuns& runs, int64_t k_len) {
  int64_t low = 0, high = runs.count;  // runs before `low` start before k_len
  while (high > low) {
    const int64_t middle = (low + high) / 2;
    if (runs.first[middle].start < k_len) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  if (low == 0) return 0;
  const PatternRun& last = runs.first[low - 1];
  return last.before + at_most(last.stop, k_len) - last.start;
}

// words[i] of key number start + i: bit j is row pos + j, of `rows` rows of one group.
static inline void read_words(const Geometry& g, int64_t pos, int64_t rows, int64_t start, int n,
                              uint64_t* words) {
  const PatternRuns runs = runs_of_row(g, pos);
  const int64_t there = at_most(rows, g.rows - pos), shift = pos % kGroupRows;
  const uint64_t mask = there >= kGroupRows ? ~uint64_t(0) : (uint64_t(1) << there) - 1;
  const PatternRun* run = runs.first + find_run(runs, start);
  for (int i = 0; i < n; ++run) {
    const int64_t first = start + i - run->before;
    const int end = int(at_most(n, i + run->stop - run->start - first));
    const int64_t* from = g.table + run->place + first - i;
    for (; i < end; ++i) words[i] = (run->place < 0 ? mask : uint64_t(from[i]) >> shift & mask);
  }
}

// Whether a table of `size` numbers can be read without leaving it.
static inline bool is_sound(const Geometry& g, int64_t size) {
  const int64_t n_groups = group_count(g), words = n_groups + 1 + 4 * g.n_runs;
  if (g.rows < 0 || g.cols < 0 || g.n_runs < 0 || size < words) return false;
  if (g.table[0] != 0 || g.table[n_groups] != g.n_runs) return false;
  for (int64_t group = 0; group < n_groups; ++group) {
    const int64_t begin = g.table[group], end = g.table[group + 1];
    if (begin > end || end > g.n_runs) return false;
    int64_t stop = 0, before = 0;
    for (const PatternRun* run = all_runs(g) + begin; run < all_runs(g) + end; ++run) {
      const int64_t keys = run->stop - run->start;
      if (run->start < stop || keys <= 0 || run->stop > g.cols || run->before != before)
        return false;
      if (run->place != -1 && (run->place < words || run->place + keys > size)) return false;
      stop = run->stop, before += keys;
    }
  }
  return true;
}

}  // namespace attn_kernels
