// The rules of core/geometry.py for kernels: which keys a tile of queries visits and who sees what.
//
// A tile is some consecutive queries in scan order (1-D: the sequence; 2-D: the block raster scan,
// one block or a part of one). Its keys are numbered 0 .. n_keys in the order it gathers them. In
// that order every query sees one span of keys, and spans only move forward from query to query:
// causal and windowed tiles in one dimension and raster-scan tiles in two need no other mask. Only
// a Pattern has words of bits instead (pattern.h): a tile of its queries lies in one group of rows.
#pragma once

#include "numbers.h"
#include "params.h"
#include "pattern.h"

namespace attn_kernels {

struct Span {
  int64_t start, stop;
};

// Rows [top, bottom) and columns [left, right) of the canvas, in raster order, as far as the keys
// go.
struct Box {
  int64_t top, bottom, left, right, count;
};

struct QueryTile {
  int64_t count;   // queries
  int64_t n_keys;  // keys that some query of the tile may see
  // 1-D: the position of query 0, its index, and (not under a Pattern) the position of key 0.
  int64_t q_pos, q_index, k_pos;
  // 2-D: the block's queries, of which this tile holds those from `part` on, and the keys' boxes.
  int64_t part;
  Box own;
  Box boxes[3];
};

// The keys [start, stop) of the query at `pos`, clipped to [0, k_len). One dimension.
static inline Span visible_keys(const Geometry& g, int64_t pos, int64_t k_len) {
  Span span{0, k_len};
  if (g.kind == GeometryKind::kLocal1d) {
    const int64_t block_start = floor_div(pos, g.block) * g.block;
    span = {block_start - g.look_back, block_start + g.block + g.look_ahead};
  } else if (g.kind == GeometryKind::kWindow) {
    span = {pos - g.look_back, pos + g.look_ahead + 1};
  } else if (g.window > 0) {
    span.start = pos - g.window + 1;
  }
  if (g.causal) span.stop = at_most(span.stop, pos + 1);
  span.start = at_most(at_least(span.start, 0), k_len);
  span.stop = at_least(at_most(span.stop, k_len), span.start);
  return span;
}

static inline Box make_box(int64_t top, int64_t bottom, int64_t left, int64_t right, int64_t cols,
                           int64_t k_len) {
  const int64_t width = right - left;
  const int64_t whole_rows = at_most(at_least(k_len / cols - top, 0), bottom - top);
  int64_t count = whole_rows * width;
  if (k_len / cols >= top && k_len / cols < bottom) {
    count += at_most(at_least(k_len % cols - left, 0), width);
  }
  return {top, bottom, left, right, count};
}

// Whether a block's keys come in three boxes: the columns that the block before it sees too, its
// own, and those that the next one sees too. Small ones would be steps too short to pay.
static inline bool columns_are_shared(const Geometry& g) {
  constexpr int64_t kEnough = 64;
  return g.kind == GeometryKind::kLocal2d && !g.causal && 2 * g.halo_cols <= g.block_cols &&
         (g.block_rows + 2 * g.halo_rows) * 2 * g.halo_cols >= kEnough;
}

// Whether a tile's keys are consecutive positions.
static inline bool keys_in_sequence(const Geometry& g) {
  return g.kind != GeometryKind::kLocal2d && g.kind != GeometryKind::kPattern;
}

// Tiles of one head.
static inline int64_t tile_count(const Geometry& g, int64_t q_len, int64_t tile_size) {
  if (g.kind == GeometryKind::kPattern) return ceil_div(q_len + tile_size - 1, tile_size);
  if (g.kind != GeometryKind::kLocal2d) return ceil_div(q_len, tile_size);
  const int64_t per_block = ceil_div(g.block_rows * g.block_cols, tile_size);
  return ceil_div(g.rows, g.block_rows) * ceil_div(g.cols, g.block_cols) * per_block;
}

static inline QueryTile query_tile_2d(const Geometry& g, int64_t tile, int64_t tile_size,
                                      int64_t k_len) {
  const int64_t per_block = ceil_div(g.block_rows * g.block_cols, tile_size);
  const int64_t blocks_across = ceil_div(g.cols, g.block_cols);
  const int64_t top = tile / per_block / blocks_across * g.block_rows;
  const int64_t left = tile / per_block % blocks_across * g.block_cols;
  const int64_t bottom = at_most(top + g.block_rows, g.rows);
  const int64_t right = at_most(left + g.block_cols, g.cols);

  const int64_t halo_top = at_least(top - g.halo_rows, 0);
  const int64_t halo_bottom = at_most(bottom + g.halo_rows, g.rows);
  const int64_t halo_left = at_least(left - g.halo_cols, 0);
  const int64_t halo_right = at_most(right + g.halo_cols, g.cols);

  QueryTile t{};
  t.part = tile % per_block * tile_size;
  t.own = make_box(top, bottom, left, right, g.cols, g.rows * g.cols);
  t.count = at_most(at_least(t.own.count - t.part, 0), tile_size);
  if (g.causal) {
    t.boxes[0] = make_box(halo_top, top, halo_left, halo_right, g.cols, k_len);
    t.boxes[1] = make_box(top, bottom, halo_left, left, g.cols, k_len);
    t.boxes[2] = make_box(top, bottom, left, right, g.cols, k_len);
    // Nobody in the tile sees the block's cells behind its last query.
    t.boxes[2].count = at_most(t.boxes[2].count, t.part + t.count);
  } else if (columns_are_shared(g)) {
    const int64_t own = at_most(left + g.halo_cols, halo_right);
    const int64_t own_end = at_most(at_least(right - g.halo_cols, own), halo_right);
    t.boxes[0] = make_box(halo_top, halo_bottom, halo_left, own, g.cols, k_len);
    t.boxes[1] = make_box(halo_top, halo_bottom, own, own_end, g.cols, k_len);
    t.boxes[2] = make_box(halo_top, halo_bottom, own_end, halo_right, g.cols, k_len);
  } else {
    t.boxes[0] = make_box(halo_top, halo_bottom, halo_left, halo_right, g.cols, k_len);
  }
  t.n_keys = t.count == 0 ? 0 : t.boxes[0].count + t.boxes[1].count + t.boxes[2].count;
  return t;
}

// Tiles lie as the pattern's groups do, so the first and last may hold less.
static inline QueryTile query_tile_of_pattern(const Geometry& g, int64_t tile, int64_t tile_size,
                                              int64_t q_len, int64_t k_len, int64_t query_offset) {
  const int64_t begin = (floor_div(query_offset, tile_size) + tile) * tile_size;
  QueryTile t{};
  t.q_pos = at_least(begin, query_offset), t.q_index = t.q_pos - query_offset;
  t.count = at_most(begin + tile_size, query_offset + q_len) - t.q_pos;
  t.n_keys = keys_before(runs_of_row(g, t.q_pos), k_len);
  return t;
}

// Positions of a pattern's keys from number `n` on, over runs that lie next to each other.
static inline Span key_run_of_pattern(const Geometry& g, const QueryTile& t, int64_t n) {
  constexpr int64_t kEnough = 128;
  const PatternRuns runs = runs_of_row(g, t.q_pos);
  const PatternRun* run = runs.first + find_run(runs, n);
  Span span{run->start + n - run->before, run->stop};
  for (++run; span.stop - span.start < kEnough; span.stop = run++->stop) {
    if (run == runs.first + runs.count || run->start != span.stop) break;
  }
  return span;
}

static inline QueryTile query_tile(const Geometry& g, int64_t tile, int64_t tile_size,
                                   int64_t q_len, int64_t k_len, int64_t query_offset) {
  if (g.kind == GeometryKind::kLocal2d) return query_tile_2d(g, tile, tile_size, k_len);
  if (g.kind == GeometryKind::kPattern) {
    return query_tile_of_pattern(g, tile, tile_size, q_len, k_len, query_offset);
  }
  QueryTile t{};
  t.q_index = tile * tile_size;
  t.count = at_most(q_len - t.q_index, tile_size);
  t.q_pos = t.q_index + query_offset;
  t.k_pos = visible_keys(g, t.q_pos, k_len).start;
  t.n_keys = at_least(visible_keys(g, t.q_pos + t.count - 1, k_len).stop - t.k_pos, 0);
  return t;
}

// Calls work(i, index in the q tensor) for the tile's queries.
template <typename Work>
static inline void for_queries(const Geometry& g, const QueryTile& t, const Work& work) {
  int64_t index = t.q_index, col = 0, width = t.count;
  if (g.kind == GeometryKind::kLocal2d) {
    width = t.own.right - t.own.left, col = t.part % width;
    index = (t.own.top + t.part / width) * g.cols + t.own.left + col;
  }
  for (int i = 0; i < t.count; ++i, ++index) {
    work(i, index);
    if (++col == width) col = 0, index += g.cols - width;
  }
}

// The gathered keys that the tile's query i sees, or (under a Pattern) may see.
static inline Span visible_span(const Geometry& g, const QueryTile& t, int64_t i, int64_t k_len) {
  if (g.kind == GeometryKind::kPattern) return {0, t.n_keys};
  if (g.kind != GeometryKind::kLocal2d) {
    const Span keys = visible_keys(g, t.q_pos + i, k_len);
    return {keys.start - t.k_pos, keys.stop - t.k_pos};
  }
  if (!g.causal) return {0, t.n_keys};
  const int64_t before = t.boxes[0].count + t.boxes[1].count;
  return {0, before + at_most(t.boxes[2].count, t.part + i + 1)};
}

// The box of a 2-D tile's key number `n`, which becomes the number within the box.
static inline const Box& box_of(const QueryTile& t, int64_t& n) {
  int i = 0;
  while (n >= t.boxes[i].count) n -= t.boxes[i++].count;
  return t.boxes[i];
}

// Positions of the gathered keys from number `n` on that lie next to each other in memory.
static inline Span key_run(const Geometry& g, const QueryTile& t, int64_t n) {
  if (g.kind == GeometryKind::kPattern) return key_run_of_pattern(g, t, n);
  if (g.kind != GeometryKind::kLocal2d) return {t.k_pos + n, t.k_pos + t.n_keys};
  const Box& box = box_of(t, n);
  const int64_t width = box.right - box.left, row = n / width, col = n % width;
  const int64_t start = (box.top + row) * g.cols + box.left + col;
  return {start, start + at_most(width - col, box.count - n)};
}

// Whether the geometry's numbers keep kernels within these lengths.
static inline bool fits(const Geometry& g, int64_t q_len, int64_t k_len) {
  if (g.kind == GeometryKind::kLocal1d) return g.block > 0;
  if (g.kind != GeometryKind::kLocal2d) return true;
  if (g.block_rows < 1 || g.block_cols < 1 || g.halo_rows < 0 || g.halo_cols < 0) return false;
  if (g.rows < 0 || g.cols < 0 || q_len != k_len) return false;
  if (g.rows == 0 || g.cols == 0) return q_len == 0;
  return q_len % g.cols == 0 && q_len / g.cols == g.rows;
}

}  // namespace attn_kernels
