// Rows of any dtype in and out of the arithmetic type, and transposition in registers.

ATTN_INLINE float from_bfloat16(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

// Rounds to nearest even; NaN stays NaN.
ATTN_INLINE uint16_t to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return x != x ? 0x7fc0 : uint16_t(rounded);
}

// to[0, n) = factor * from[0, n), without a call: rows are short.
template <typename T>
ATTN_INLINE void scale_row(const T* from, int64_t n, T factor, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) store<T>(to + i, load(from + i) * set1(factor));
  for (; i < n; ++i) to[i] = from[i] * factor;
}

// from[0, n) of `dtype`, times `factor`, into to[0, n).
template <typename T>
inline void load_row(DType dtype, const void* from, int64_t n, T factor, T* __restrict to) {
  if constexpr (sizeof(T) == 8) {
    scale_row(static_cast<const T*>(from), n, factor, to);
  } else if (dtype == DType::kBFloat16) {
    const uint16_t* x = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = T(from_bfloat16(x[i])) * factor;
  } else if (dtype == DType::kFloat16) {
    const _Float16* x = static_cast<const _Float16*>(from);
    int64_t i = 0;
    for (; i + kLanes<float> <= n; i += kLanes<float>) {
      store<T>(to + i, load_float16(x + i) * set1(factor));
    }
    for (; i < n; ++i) to[i] = float(x[i]) * factor;
  } else {
    scale_row(static_cast<const T*>(from), n, factor, to);
  }
}

// from[0, n), times `factor`, into to[0, n) of `dtype`: the one rounding of a result.
template <typename T>
inline void store_row(DType dtype, const T* __restrict from, int64_t n, T factor, void* to) {
  if constexpr (sizeof(T) == 8) {
    scale_row(from, n, factor, static_cast<T*>(to));
  } else if (dtype == DType::kBFloat16) {
    uint16_t* y = static_cast<uint16_t*>(to);
    for (int64_t i = 0; i < n; ++i) y[i] = to_bfloat16(from[i] * factor);
  } else if (dtype == DType::kFloat16) {
    _Float16* y = static_cast<_Float16*>(to);
    int64_t i = 0;
    for (; i + kLanes<float> <= n; i += kLanes<float>) {
      store_float16(y + i, load(from + i) * set1(factor));
    }
    for (; i < n; ++i) y[i] = static_cast<_Float16>(from[i] * factor);
  } else {
    scale_row(from, n, factor, static_cast<T*>(to));
  }
}

ATTN_INLINE int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

ATTN_INLINE char* row_of(const View& view, DType dtype, int64_t batch, int64_t head, int64_t row) {
  return static_cast<char*>(view.data) +
         (batch * view.batch + head * view.head + row * view.row) * element_size(dtype);
}

// copy() without a call: rows are short.
template <typename E>
ATTN_INLINE void copy_row(const E* from, int64_t n, E* to) {
  typedef uint8_t Bytes __attribute__((vector_size(kVecBytes), aligned(1), may_alias));
  constexpr int w = kVecBytes / int(sizeof(E));
  int64_t i = 0;
  for (; i + w <= n; i += w) {
    *reinterpret_cast<Bytes*>(to + i) = *reinterpret_cast<const Bytes*>(from + i);
  }
  for (; i < n; ++i) to[i] = from[i];
}

template <typename T>
ATTN_INLINE T sum_lanes(Vec<T> x) {
#if defined(ATTN_AVX512)
  if constexpr (sizeof(T) == 4)
    return _mm512_reduce_add_ps(x);
  else
    return _mm512_reduce_add_pd(x);
#else
  T sum = x[0];
  for (int i = 1; i < kLanes<T>; ++i) sum += x[i];
  return sum;
#endif
}

// a . b for n numbers, a whole number of vectors.
template <typename T>
ATTN_INLINE T dot(const T* a, const T* b, int64_t n) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < n; i += kLanes<T>) sum = fma(load(a + i), load(b + i), sum);
  return sum_lanes<T>(sum);
}

template <typename T>
inline void copy(T* to, const T* from, int64_t n) {
  __builtin_memmove(to, from, uint64_t(n) * sizeof(T));
}

template <typename T>
inline void fill(T* to, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

template <int... I>
struct Ints {};
template <int n, int... I>
struct CountTo : CountTo<n - 1, n - 1, I...> {};
template <int... I>
struct CountTo<0, I...> {
  using Type = Ints<I...>;
};
template <int n>
using Count = typename CountTo<n>::Type;
template <int n>
constexpr int count_of(Ints<n>) {
  return n;
}

// The halves of a and b interleaved: a0 b0 a1 b1 ...
template <typename T, int... I>
ATTN_INLINE void zip(Vec<T> a, Vec<T> b, Vec<T>& low, Vec<T>& high, Ints<I...>) {
  constexpr int n = kLanes<T>;
  low = __builtin_shuffle(a, b, BitsVec<T>{(I / 2 + I % 2 * n)...});
  high = __builtin_shuffle(a, b, BitsVec<T>{(n / 2 + I / 2 + I % 2 * n)...});
}

// log2(kLanes) rounds of zipping the first half of the rows with the second transpose a square. The
// rounds are unrolled by recursion, so that every row stays in a register.
template <int kRound, typename T>
ATTN_INLINE void zip_rounds(Vec<T> (&x)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  if constexpr (kRound < n) {
    Vec<T> y[n];
#pragma GCC unroll 8
    for (int i = 0; i < n / 2; ++i) zip<T>(x[i], x[i + n / 2], y[2 * i], y[2 * i + 1], Count<n>{});
    zip_rounds<2 * kRound, T>(y);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) x[i] = y[i];
  }
}

// x plus its lanes that lie kStep, 2 kStep, ... further on, in all lanes.
template <int kStep, typename T, int... I>
ATTN_INLINE Vec<T> fold_lanes(Vec<T> x, Ints<I...> lanes) {
  constexpr int n = kLanes<T>;
  if constexpr (kStep < n) {
    x = fold_lanes<2 * kStep, T>(x, lanes);
    x += __builtin_shuffle(x, BitsVec<T>{(I + kStep) % n...});
  }
  return x;
}

// Lane r: the sum of x[r]'s lanes. Zipped as in a transposition, with the halves added.
template <typename T, int kRows>
ATTN_INLINE Vec<T> sum_rows(Vec<T> (&x)[kRows]) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 8
  for (int count = kRows; count > 1; count /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < count / 2; ++i) {
      Vec<T> low, high;
      zip<T>(x[i], x[i + count / 2], low, high, Count<n>{});
      x[i] = low + high;
    }
  }
  return fold_lanes<kRows, T>(x[0], Count<n>{});
}

// to[c * to_stride + r] = factor[c] * from[r * from_stride + c] for a square of kLanes rows and
// columns; if not kWhole only `rows` rows are read, the others are zero, and `cols` are written.
template <bool kWhole, typename T>
ATTN_INLINE void transpose_square(int64_t rows, int64_t cols, const T* from, int64_t from_stride,
                                  Vec<T> factor, T* to, int64_t to_stride) {
  constexpr int n = kLanes<T>;
  Vec<T> x[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    x[i] = kWhole || i < rows ? load(from + i * from_stride) * factor : Vec<T>{};
  }
  zip_rounds<1, T>(x);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    if (kWhole || i < cols) store(to + i * to_stride, x[i]);
  }
}

// The same for rows x cols; both `from` and `to` have whole vectors. factor(c): of the vector at c.
template <typename T, typename Factor>
inline void transpose(int64_t rows, int64_t cols, const T* from, int64_t from_stride,
                      const Factor& factor, T* to, int64_t to_stride) {
  constexpr int n = kLanes<T>;
  for (int64_t r = 0; r < rows; r += n) {
    for (int64_t c = 0; c < cols; c += n) {
      const T* square = from + r * from_stride + c;
      T* transposed = to + c * to_stride + r;
      if (r + n <= rows && c + n <= cols) {
        transpose_square<true, T>(n, n, square, from_stride, factor(c), transposed, to_stride);
      } else {
        transpose_square<false, T>(rows - r, cols - c, square, from_stride, factor(c), transposed,
                                   to_stride);
      }
    }
  }
}
