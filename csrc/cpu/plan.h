// How a call is cut beyond heads and tiles. Only sizes count, never threads: results must not
// depend on their number.
#pragma once

#include "../geometry.h"

namespace attn_kernels {

constexpr int64_t kEnoughTasks = 16;    // forward: fewer than this, and keys are cut too
constexpr int64_t kEnoughChunks = 8;    // backward: fewer than this, and queries are cut too
constexpr int64_t kKeysPerSplit = 512;  // at least
constexpr int64_t kTilesPerChunk = 4;   // at least
constexpr int64_t kFewQueries = 4;      // up to this many queries of a head are rows and not lanes
constexpr int64_t kFewRows = 64;        // up to this many rows of a key head

// Sets few_queries and splits. `tile` is the number of queries in a tile.
inline void plan_forward(ForwardParams& p, int64_t tile) {
  p.few_queries = keys_in_sequence(p.geometry) && p.q_len <= kFewQueries &&
                  p.q_len * (p.heads / p.k_heads) <= kFewRows;
  const int64_t units =
      p.batch * (p.few_queries ? p.k_heads : p.heads * tile_count(p.geometry, p.q_len, tile));
  p.splits = 1;
  if (units > 0 && units < kEnoughTasks) {
    p.splits = at_least(at_most(ceil_div(kEnoughTasks, units), p.k_len / kKeysPerSplit), 1);
  }
}

// Sets chunks.
inline void plan_backward(BackwardParams& p, int64_t tile) {
  const int64_t units = at_least(p.batch * p.k_heads, 1);
  const int64_t tiles = tile_count(p.geometry, p.q_len, tile);
  p.chunks = at_least(at_most(ceil_div(kEnoughChunks, units), tiles / kTilesPerChunk), 1);
}

}  // namespace attn_kernels
