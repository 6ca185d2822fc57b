// The rule of score/tables.py for kernels: which table rows belong to a range of offsets j - p_i.
#pragma once

#include "geometry.h"

namespace attn_kernels {

// Offsets [first, first + count) cut at the ends of the table: `below` of them lie before its first
// row, `inside` use the rows from `row` on, `above` lie behind its last row.
struct BandRows {
  int64_t below, inside, above, row;
};

// The row of distance 0: `given`, unless that is negative and the geometry says it.
static inline int64_t zero_row(int64_t given, int64_t n_rows, bool causal) {
  return given >= 0 ? given : causal ? n_rows - 1 : (n_rows - 1) / 2;
}

static inline BandRows band_rows(int64_t first, int64_t count, int64_t n_rows, int64_t zero_row) {
  const int64_t row = first + zero_row;
  const int64_t below = at_most(at_least(-row, 0), count);
  const int64_t above = at_most(at_least(row + count - n_rows, 0), count);
  return {below, count - below - above, above, row + below};
}

}  // namespace attn_kernels
