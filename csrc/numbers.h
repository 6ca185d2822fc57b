// Whole numbers: bounds, quotients, and how far positions and distances reach.
#pragma once

#include <cstdint>

namespace attn_kernels {

constexpr int64_t kFarthest = int64_t(1) << 60;  // FARTHEST of core/geometry.py

static inline int64_t at_least(int64_t x, int64_t bound) { return x < bound ? bound : x; }
static inline int64_t at_most(int64_t x, int64_t bound) { return x > bound ? bound : x; }
static inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
static inline int64_t floor_div(int64_t x, int64_t y) { return x >= 0 ? x / y : -ceil_div(-x, y); }

}  // namespace attn_kernels
