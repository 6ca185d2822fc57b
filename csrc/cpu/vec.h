// Vec<T>: one register of floats or doubles. The only file that knows instruction sets.
//
// Compilers' vector types give arithmetic, comparison and select on every machine; what x86 does
// better by name is overloaded for it. An instruction set file defines ATTN_AVX512, ATTN_AVX2 or
// neither.

#if defined(ATTN_AVX512)
constexpr int kVecBytes = 64;
constexpr int kVecRegisters = 32;
#elif defined(ATTN_AVX2)
constexpr int kVecBytes = 32;
constexpr int kVecRegisters = 16;
#else
constexpr int kVecBytes = 16;
constexpr int kVecRegisters = 16;
#endif

#define ATTN_INLINE inline __attribute__((always_inline))

template <typename T>
struct VecTraits;
template <>
struct VecTraits<float> {
  using Bits = int32_t;
  typedef float Vec __attribute__((vector_size(kVecBytes)));
  typedef int32_t BitsVec __attribute__((vector_size(kVecBytes)));
  typedef float Unaligned __attribute__((vector_size(kVecBytes), aligned(4), may_alias));
};
template <>
struct VecTraits<double> {
  using Bits = int64_t;
  typedef double Vec __attribute__((vector_size(kVecBytes)));
  typedef int64_t BitsVec __attribute__((vector_size(kVecBytes)));
  typedef double Unaligned __attribute__((vector_size(kVecBytes), aligned(8), may_alias));
};

template <typename T>
using Vec = typename VecTraits<T>::Vec;
template <typename T>
using BitsVec = typename VecTraits<T>::BitsVec;
template <typename T>
constexpr int kLanes = kVecBytes / int(sizeof(T));

template <typename T>
ATTN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecTraits<T>::Unaligned*>(p);
}
template <typename T>
ATTN_INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename VecTraits<T>::Unaligned*>(p) = x;
}
template <typename T>
ATTN_INLINE Vec<T> set1(T x) {
  return x - Vec<T>{};
}
template <typename T>
ATTN_INLINE BitsVec<T> lane_numbers() {
  BitsVec<T> lanes;
  for (int i = 0; i < kLanes<T>; ++i) lanes[i] = i;
  return lanes;
}

// a * b + c, rounded once where the machine can; the larger of two (b if either is NaN); nearest
// integer.
#if defined(ATTN_AVX512)
ATTN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
ATTN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
ATTN_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
ATTN_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }
// x minus the nearest integer, 0 for infinities; x * 2^n for a whole n, 0 for -inf.
ATTN_INLINE Vec<float> distance_to_integer(Vec<float> x) { return _mm512_reduce_ps(x, 0); }
ATTN_INLINE Vec<double> distance_to_integer(Vec<double> x) { return _mm512_reduce_pd(x, 0); }
ATTN_INLINE Vec<float> scale_by_power(Vec<float> x, Vec<float> n) { return _mm512_scalef_ps(x, n); }
ATTN_INLINE Vec<double> scale_by_power(Vec<double> x, Vec<double> n) {
  return _mm512_scalef_pd(x, n);
}
#elif defined(ATTN_AVX2)
ATTN_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
ATTN_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
ATTN_INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
ATTN_INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
#else
template <typename V>
ATTN_INLINE V fma(V a, V b, V c) {
  return a * b + c;
}
template <typename V>
ATTN_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
#endif

// 16-bit numbers in memory, one per 32-bit lane. GCC 12 takes five instructions to convert a
// vector.
typedef uint32_t Words __attribute__((vector_size(kVecBytes)));
ATTN_INLINE Words load_wide(const uint16_t* p) {
#if defined(ATTN_AVX512)
  return Words(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(ATTN_AVX2)
  return Words(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  typedef uint16_t Halves __attribute__((vector_size(kVecBytes / 2), aligned(2), may_alias));
  return __builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words);
#endif
}

// A vector of float16 in memory; rounds to nearest even. Compilers convert them one at a time.
ATTN_INLINE Vec<float> load_float16(const _Float16* p) {
#if defined(ATTN_AVX512)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(ATTN_AVX2)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec<float> x;
  for (int i = 0; i < kLanes<float>; ++i) x[i] = float(p[i]);
  return x;
#endif
}
ATTN_INLINE void store_float16(_Float16* p, Vec<float> x) {
#if defined(ATTN_AVX512)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#elif defined(ATTN_AVX2)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) p[i] = static_cast<_Float16>(x[i]);
#endif
}

// Lanes whose bit is set in kMask come from b, the others from a.
template <uint32_t kMask, typename T>
ATTN_INLINE Vec<T> blend(Vec<T> a, Vec<T> b) {
#if defined(ATTN_AVX512)
  if constexpr (sizeof(T) == 4)
    return _mm512_mask_blend_ps(__mmask16(kMask), a, b);
  else
    return _mm512_mask_blend_pd(__mmask8(kMask), a, b);
#elif defined(ATTN_AVX2)
  if constexpr (sizeof(T) == 4)
    return _mm256_blend_ps(a, b, int(kMask));
  else
    return _mm256_blend_pd(a, b, int(kMask & 15));
#else
  Vec<T> x = a;
  for (int i = 0; i < kLanes<T>; ++i) x[i] = kMask >> i & 1 ? b[i] : a[i];
  return x;
#endif
}

// Lanes whose bit is set come from a, the others from b.
template <typename T>
ATTN_INLINE Vec<T> select(uint32_t bits, Vec<T> a, Vec<T> b) {
#if defined(ATTN_AVX512)
  if constexpr (sizeof(T) == 4)
    return _mm512_mask_blend_ps(__mmask16(bits), b, a);
  else
    return _mm512_mask_blend_pd(__mmask8(bits), b, a);
#else
  BitsVec<T> bit;
  for (int i = 0; i < kLanes<T>; ++i) bit[i] = 1 << i;
  return ((BitsVec<T>{} + typename VecTraits<T>::Bits(bits)) & bit) != 0 ? a : b;
#endif
}

template <typename T>
ATTN_INLINE bool all_lanes(BitsVec<T> condition) {
#if defined(ATTN_AVX512)
  return _mm512_movepi8_mask(__m512i(condition)) == ~__mmask64(0);
#elif defined(ATTN_AVX2)
  return _mm256_movemask_epi8(__m256i(condition)) == -1;
#else
  bool all = true;
  for (int i = 0; i < kLanes<T>; ++i) all &= condition[i] != 0;
  return all;
#endif
}

// Polynomials for 2^x on [-1/2, 1/2] (interpolation in Chebyshev points): relative error 2.5e-9 and
// 5.6e-20, far below the rounding of the evaluation.
template <typename T>
struct Exp2;
template <>
struct Exp2<float> {
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kBias = 127, kMantissa = 23, kDegree = 6;
  static constexpr float kPoly[kDegree + 1] = {
      1.0f,           0.69314720670283f,  0.24022650922289f, 0.05550327226671f,
      0.00961805668f, 0.001340042817762f, 0.000154614447f};
};
template <>
struct Exp2<double> {
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kBias = 1023, kMantissa = 52, kDegree = 12;
  static constexpr double kPoly[kDegree + 1] = {1.0,
                                                0.69314718055994530835,
                                                0.24022650695910071228,
                                                0.055504108664821698992,
                                                0.0096181291076284830543,
                                                0.0013333558146390352775,
                                                0.00015403530393362755291,
                                                0.000015252733856293466416,
                                                1.3215486815999976975e-6,
                                                1.017805119296064896e-7,
                                                7.0548943863483480445e-9,
                                                4.4566753410492058782e-10,
                                                2.5733568308756891235e-11};
};

// 2^x for x <= kBias; exactly 0 below the normal numbers and at -inf.
template <typename T>
ATTN_INLINE Vec<T> exp2(Vec<T> x) {
  using E = Exp2<T>;
#if defined(ATTN_AVX512)
  const Vec<T> rest = distance_to_integer(x);
#else
  x = larger(set1<T>(-T(E::kBias)), x);
  const Vec<T> shifted = x + set1<T>(E::kMagic);
  const Vec<T> rest = x - (shifted - set1<T>(E::kMagic));
#endif
  Vec<T> y = set1<T>(E::kPoly[E::kDegree]);
#pragma GCC unroll 16
  for (int i = E::kDegree - 1; i >= 0; --i) y = fma(y, rest, set1<T>(E::kPoly[i]));
#if defined(ATTN_AVX512)
  return scale_by_power(y, x - rest);
#else
  const BitsVec<T> whole = BitsVec<T>(shifted) - BitsVec<T>(set1<T>(E::kMagic));
  return y * Vec<T>((whole + typename VecTraits<T>::Bits(E::kBias)) << E::kMantissa);
#endif
}

// --- Elements of matrix products ---
//
// An element is what a product multiplies and adds in one step. A number; or a Pair of bfloat16
// numbers that are neighbours in the summed dimension, where the machine multiplies those; or a
// Split pair, each number the sum of two bfloat16 parts of 8 bits: a float16 number exactly, a
// float to 2^-16.

struct Half {
  uint16_t bits;
};
struct Pair {
  uint16_t first, second;
};
struct Split {
  uint16_t first, second;
};

template <typename E>
struct Element {
  using Sum = E;
  using Operand = Vec<E>;
  using Source = E;  // what keys and values are given in
  static constexpr int kNumbers = 1, kParts = 1;
};
template <>
struct Element<Pair> {
  using Sum = float;
  using Operand = BitsVec<float>;
  using Source = Pair;
  static constexpr int kNumbers = 2, kParts = 1;
};
template <>
struct Element<Split> {
  using Sum = float;
  using Operand = BitsVec<float>;
  using Source = Half;
  static constexpr int kNumbers = 2, kParts = 2;
};
template <>
struct Element<Half> {
  using Sum = float;
  static constexpr int kNumbers = 1, kParts = 1;
};
template <typename E>
using Sum = typename Element<E>::Sum;
template <typename E>
using Source = typename Element<E>::Source;
template <typename E>
constexpr int kNumbers = Element<E>::kNumbers;
template <typename E>
constexpr int kParts = Element<E>::kParts;

template <typename T>
ATTN_INLINE Vec<T> load_operand(const T* p) {
  return load(p);
}
template <typename T>
ATTN_INLINE Vec<T> broadcast(const T* p) {
  return set1(*p);
}
ATTN_INLINE BitsVec<float> load_operand(const Pair* p) {
  BitsVec<float> x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
ATTN_INLINE BitsVec<float> broadcast(const Pair* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return BitsVec<float>{} + bits;
}

#if defined(ATTN_AVX512_BF16)
ATTN_INLINE Vec<float> fma(BitsVec<float> a, BitsVec<float> b, Vec<float> c) {
  return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b);
}
// The first n of 16 numbers, zeros behind them.
ATTN_INLINE __mmask16 first_lanes(int64_t n) { return n >= 16 ? 0xffff : __mmask16((1 << n) - 1); }
ATTN_INLINE Vec<float> load_first(const float* from, int64_t n) {
  return _mm512_maskz_loadu_ps(first_lanes(n), from);
}
// to[i] = (even[i], odd[i]), rounded.
ATTN_INLINE void store_pairs(Pair* to, int64_t, Vec<float> even, Vec<float> odd) {
  const __m512i lanes = _mm512_set_epi32(0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a,
                                         0x190009, 0x180008, 0x170007, 0x160006, 0x150005, 0x140004,
                                         0x130003, 0x120002, 0x110001, 0x100000);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(lanes, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
}
// to[i / 2] holds x[i], rounded.
ATTN_INLINE void store_neighbours(Pair* to, int64_t, Vec<float> x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

#if defined(ATTN_AMX)
// The bits that the next part holds, as a number; they leave x, which is exact. Infinity leaves 0.
ATTN_INLINE BitsVec<float> take_part(Vec<float>& x) {
  const BitsVec<float> part = BitsVec<float>(x) & int32_t(0xffff0000);
  x = _mm512_maskz_sub_ps(_mm512_cmpneq_ps_mask(x, Vec<float>(part)), x, Vec<float>(part));
  return part;
}
// The same for numbers in parts, `plane` elements apart.
ATTN_INLINE void store_pairs(Split* to, int64_t plane, Vec<float> even, Vec<float> odd) {
#pragma GCC unroll 2
  for (int part = 0; part < kParts<Split>; ++part, to += plane) {
    const BitsVec<float> first = take_part(even), second = take_part(odd);
    _mm512_storeu_si512(to,
                        _mm512_or_si512(_mm512_srli_epi32(__m512i(first), 16), __m512i(second)));
  }
}
ATTN_INLINE void store_neighbours(Split* to, int64_t plane, Vec<float> x) {
#pragma GCC unroll 2
  for (int part = 0; part < kParts<Split>; ++part, to += plane) {
    const __m512i high = _mm512_srli_epi32(__m512i(take_part(x)), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(high));
  }
}
ATTN_INLINE Vec<float> load_first(const Half* from, int64_t n) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), from));
}
#endif
