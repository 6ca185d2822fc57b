// What the cores can do at best: fused multiply-adds per second, and bytes read and copied.
// Built by machine.py on the machine it measures, with -O3 -march=native.

#include <chrono>
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Results go here, so that the work cannot be left out.
volatile float sink;

// Repeats `work`, which returns how much it did, for `seconds`; the amount per second.
template <class Work>
double rate(double seconds, Work work) {
  const Clock::time_point start = Clock::now();
  double done = 0, elapsed = 0;
  while (elapsed < seconds) {
    done += work();
    elapsed = seconds_since(start);
  }
  return done / elapsed;
}

template <int kBytes>
struct Vector {
  typedef float Type __attribute__((vector_size(kBytes)));
  static constexpr int kLanes = kBytes / sizeof(float);
};

// 2 FMA units * 4 cycles need 8 independent chains; 12 hide the loop too, and fit 16 registers.
template <int kBytes>
double fma_flops(double seconds) {
  using V = typename Vector<kBytes>::Type;
  constexpr int kChains = 12, kSteps = 20000;
  V sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = V{} + static_cast<float>(c);
  const V factor = V{} + 0.999f, term = V{} + 0.001f;
  const double flops = rate(seconds, [&] {
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sums[c] = sums[c] * factor + term;
    }
    return 2.0 * kSteps * kChains * Vector<kBytes>::kLanes;
  });
  for (int c = 0; c < kChains; ++c) sink = sums[c][0];
  return flops;
}

#if defined(__AVX512BF16__)
// Pairs of bfloat16 products added to float32: 64 operations an instruction.
double vector_bf16_flops(double seconds) {
  constexpr int kChains = 12, kSteps = 20000;
  __m512 sums[kChains];
  for (int c = 0; c < kChains; ++c) sums[c] = _mm512_set1_ps(static_cast<float>(c));
  const __m512bh ones = (__m512bh)_mm512_set1_epi16(0x3f80);
  const double flops = rate(seconds, [&] {
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 12
      for (int c = 0; c < kChains; ++c) sums[c] = _mm512_dpbf16_ps(sums[c], ones, ones);
    }
    return 64.0 * kSteps * kChains;
  });
  for (int c = 0; c < kChains; ++c) sink = sums[c][0];
  return flops;
}
#else
double vector_bf16_flops(double) { return 0; }
#endif

#if defined(__AMX_BF16__)
// Products of tiles, [16, 32] with [32, 16]: 16384 operations an instruction.
double tile_bf16_flops(double seconds) {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  constexpr int kSteps = 2000, kTiles = 8, kRows = 16, kRowBytes = 64;
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int t = 0; t < kTiles; ++t) config.row_bytes[t] = kRowBytes, config.rows[t] = kRows;
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  const double flops = rate(seconds, [] {
    for (int step = 0; step < kSteps; ++step) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    return 4 * 16384.0 * kSteps;
  });
  _tile_release();
  return flops;
}
#else
double tile_bf16_flops(double) { return 0; }
#endif

}  // namespace

extern "C" {

double fma_flops_128(double seconds) { return fma_flops<16>(seconds); }
double fma_flops_256(double seconds) { return fma_flops<32>(seconds); }
double fma_flops_512(double seconds) { return fma_flops<64>(seconds); }
// Native bfloat16 products, of tiles or else of vectors; 0 where the CPU has none.
double bf16_flops(double seconds) {
  const double flops = tile_bf16_flops(seconds);
  return flops > 0 ? flops : vector_bf16_flops(seconds);
}

// Bytes read per second from `count` floats, a multiple of 128, at a 64-byte boundary.
double read_bytes(const float* data, int64_t count, double seconds) {
  using V = Vector<32>::Type;
  const V* vectors = reinterpret_cast<const V*>(data);
  const int64_t n = count / Vector<32>::kLanes;
  return rate(seconds, [&] {
    V sums[16] = {};
    for (int64_t i = 0; i < n; i += 16) {
#pragma GCC unroll 16
      for (int c = 0; c < 16; ++c) sums[c] += vectors[i + c];
    }
    for (int c = 0; c < 16; ++c) sink = sums[c][0];
    return 4.0 * count;
  });
}

// Bytes read and written per second when copying `count` floats.
double copy_bytes(const float* from, float* to, int64_t count, double seconds) {
  return rate(seconds, [&] {
    std::memcpy(to, from, 4 * count);
    sink = to[count / 2];
    return 8.0 * count;
  });
}
}
