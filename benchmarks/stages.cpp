// Where the time of a step goes: every stage of a tile of queries alone, in cache, in nanoseconds.
// Built by stages.py with the instruction set's flags, from the kernels' own files.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>

#if defined(__AVX512F__)
#define ATTN_AVX512
#elif defined(__AVX2__)
#define ATTN_AVX2
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#define ATTN_ISA stages
#include "cpu/attention.inl.h"

namespace attn_kernels {
namespace stages {
namespace {

using Clock = std::chrono::steady_clock;

// The shortest of many calls, in nanoseconds each.
template <class Work>
double shortest(double seconds, Work work) {
  constexpr int kCalls = 20;
  double best = 1e18;
  const Clock::time_point begin = Clock::now();
  while (std::chrono::duration<double>(Clock::now() - begin).count() < seconds) {
    const Clock::time_point start = Clock::now();
    for (int i = 0; i < kCalls; ++i) work();
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, elapsed * 1e9 / kCalls);
  }
  return best;
}

struct Buffers {
  float* next;
  float* take(int64_t n) {
    float* piece = next;
    next += ceil_div(n, 16) * 16;
    for (int64_t i = 0; i < n; ++i) piece[i] = float(i % 31 - 15) / 16;
    return piece;
  }
};

}  // namespace
}  // namespace stages
}  // namespace attn_kernels

// Writes the stages' times for a whole tile of queries and a whole step of keys; returns how many
// queries and keys those are. The order is that of STAGES in stages.py.
extern "C" void attn_stages(int64_t dim, double seconds, double* times, int64_t* queries,
                            int64_t* keys) {
  using namespace attn_kernels;
  using namespace attn_kernels::stages;
  constexpr int lanes = kTileQueries<float>, n = kStepKeys, pitch = lanes;
  *queries = lanes, *keys = n;

  BackwardParams p;
  p.batch = p.heads = p.k_heads = 1, p.q_len = p.k_len = n, p.dim = p.v_dim = dim;
  p.scale = p.relative.scale = 0.125;
  p.geometry.kind = GeometryKind::kCausal, p.geometry.causal = true;
  ForwardParams f;
  static_cast<AttentionParams&>(f) = p;
  const int64_t rows = 2 * n, wide = padded<float>(dim), tile_bytes = lanes * wide;
  const int64_t scratch =
      scratch_of<ForwardTile<float, float>>(f) + scratch_of<BackwardTile<float, float>>(p);
  void* memory = std::aligned_alloc(64, size_t(scratch + 4 * (9 * rows * wide + 8 * tile_bytes)));
  Buffers buffers{reinterpret_cast<float*>(static_cast<char*>(memory) + scratch)};
  float *k = buffers.take(rows * dim), *v = buffers.take(rows * dim), *q = buffers.take(rows * dim),
        *out = buffers.take(rows * dim), *table = buffers.take(rows * dim),
        *sums = buffers.take(rows * wide), *lse = buffers.take(n);
  p.q = p.out = {q, 0, 0, dim};
  f.q = p.q, f.out = {out, 0, 0, dim}, f.lse = lse;

  auto forward = over<ForwardTile<float, float>>(f, memory);
  auto backward = over<BackwardTile<float, float>>(
      p, static_cast<char*>(memory) + scratch_of<ForwardTile<float, float>>(f));
  const Tile<float> tile = make_tile<float>(f, 0, 0, 1);  // the second tile: its keys are n
  const Slab whole{0, n, 0, lanes, false};
  const Matrix<float> key_rows{k, dim}, value_rows{v, dim}, lane_rows{q, wide};
  const auto time = [&](auto work) { *times++ = shortest(seconds, work); };

  time([&] { forward.start(f, tile); });
  time(
      [&] { gemm<Left::kRows>(n, lanes, dim, key_rows, forward.q, forward.logits, pitch, false); });
  time([&] { mask_slab<float>(tile, 0, {0, n, 0, lanes, true}, nullptr, 0.0f, forward.logits); });
  time([&] { forward.weigh(f, lanes, &whole, 1, 1.0f); });
  time([&] {
    add_over_keys(dim, whole, value_rows, Matrix<float>{forward.weights, pitch}, forward.acc);
  });
  time([&] { forward.finish(f, tile); });

  for (int i = 0; i < lanes; ++i) backward.lse[i] = 1, backward.delta[i] = 0;
  time([&] {
    for (int lane = 0; lane < lanes; lane += kLanes<float>) {
      backward.logit_grads(whole, lane, 1.0f, false, static_cast<float*>(nullptr));
    }
  });
  for (int64_t i = 0; i < n * pitch; ++i) backward.grads[i] = backward.weights[i] = 0.5f;
  time([&] {
    gemm<Left::kRows>(n, wide, lanes, Matrix<float>{backward.grads, pitch}, lane_rows, sums, wide,
                      true);
  });

  time([&] {
    gemm<Left::kRows>(n, lanes, dim, Matrix<float>{table, dim}, forward.q, forward.logits, pitch,
                      false);
  });
  float* band = buffers.take((n + 2 * lanes) * pitch) + lanes * pitch;
  time([&] {
    for (int lane = 0; lane < lanes; lane += kLanes<float>) {
      add_sheared<-1>(band + lane, n, forward.logits + lane);
    }
  });
  std::free(memory);
}
