// Matrices as elements of products: numbers are used as they are, pairs are brought together.
//
// A product sums over dims (logits), keys (outputs, gradients of queries) or lanes (gradients of
// keys and values); its operands need pairs of neighbours in that dimension. What a function has
// nothing to do for, it returns as it is.

template <typename T>
constexpr int kTileQueries =
    256 / int(sizeof(T));       // lanes of a tile: also the row pitch of its matrices
constexpr int kStepKeys = 128;  // keys a tile takes up at a time
constexpr int kSlabKeys = 16;   // granularity at which masked steps are cut

// What stands left in a product over keys: rows of keys as they lie, or, for AMX, transposed.
#if defined(ATTN_AMX)
template <typename E>
constexpr Left kOverKeys = kNumbers<E> == 2 ? Left::kRows : Left::kColumns;
#else
template <typename E>
constexpr Left kOverKeys = Left::kColumns;
#endif

template <typename T>
ATTN_INLINE int64_t padded(int64_t n) {
  return ceil_div(n, kLanes<T>) * kLanes<T>;
}

// Elements of the buffers below: of rows [n, dim] paired along dim; of keys paired; of a transposed
// matrix [rows, lanes] paired along rows; of rows [lanes, width] paired along lanes.
template <typename E>
ATTN_INLINE int64_t row_elements(int64_t n, int64_t dim) {
  return kParts<E> * n * padded<Sum<E>>(dim) / kNumbers<E>;
}
template <typename E>
ATTN_INLINE int64_t key_elements(int64_t dim) {
  return kParts<E> * kStepKeys / kNumbers<E> * padded<Sum<E>>(dim);
}

// How a step's keys or values lie as elements of a sum over dims: in rows; and over keys: in rows
// of pairs of them, or, with kOverKeys in mind, transposed.
template <typename E>
ATTN_INLINE Matrix<E> dim_pairs(const E* data, int64_t dim) {
  const int64_t stride = padded<Sum<E>>(dim) / kNumbers<E>;
  return {data, stride, kStepKeys * stride};
}
template <typename E>
ATTN_INLINE Matrix<E> key_pairs(const E* data, int64_t dim) {
  const int64_t pairs = kStepKeys / 2;
  if (kOverKeys<E> == Left::kColumns) return {data, dim};
  return {data, pairs, pairs * padded<Sum<E>>(dim)};
}

// Rows [n, width], `stride` apart, as elements of a sum over the rows (pairs lie below each other),
// and of a sum over `width`. A last row, or number, without neighbour is paired with zeros.
template <typename T>
ATTN_INLINE Matrix<T> pair_down(const T* rows, int64_t stride, int64_t, int64_t, T*) {
  return {rows, stride};
}
template <typename T>
ATTN_INLINE Matrix<T> pair_across(const T* rows, int64_t stride, int64_t, int64_t, T*) {
  return {rows, stride};
}

#if defined(ATTN_AVX512_BF16)
template <typename E>
inline Matrix<E> pair_down(const float* rows, int64_t stride, int64_t n, int64_t width, E* buffer) {
  const int64_t pitch = padded<float>(width), plane = ceil_div(n, 2) * pitch;
  for (int64_t r = 0; r < n; r += 2) {
    for (int64_t i = 0; i < width; i += kLanes<float>) {
      const float* from = rows + r * stride + i;
      const Vec<float> odd = r + 1 < n ? load_first(from + stride, width - i) : Vec<float>{};
      store_pairs(buffer + r / 2 * pitch + i, plane, load_first(from, width - i), odd);
    }
  }
  return {buffer, pitch, plane};
}

// S: float or Half. At most kBandRows rows.
template <typename S, typename E>
inline Matrix<E> pair_across(const S* rows, int64_t stride, int64_t n, int64_t width, E* buffer) {
  const int64_t pairs = padded<float>(width) / 2, plane = at_least(n, kStepKeys) * pairs;
  for (int64_t r = 0; r < n; ++r) {
    for (int64_t i = 0; i < width; i += kLanes<float>) {
      const Vec<float> x = load_first(rows + r * stride + i, width - i);
      store_neighbours(buffer + r * pairs + i / 2, plane, x);
    }
  }
  return {buffer, pairs, plane};
}

// (a[i], b[i]) of 16 numbers each; `dim` of them exist.
ATTN_INLINE BitsVec<float> zip_pairs(const uint16_t* a, const uint16_t* b, int64_t dim) {
  constexpr int w = kLanes<float>;
  uint16_t whole[2][w] = {};
  if (dim < w) {
    for (int64_t d = 0; d < dim; ++d) whole[0][d] = a[d], whole[1][d] = b ? b[d] : uint16_t(0);
    a = whole[0], b = whole[1];
  }
  const Words even = load_wide(a);
  if (b == nullptr) return BitsVec<float>(even);
  return BitsVec<float>(even | load_wide(b) << 16);
}

// Keys or values [n, dim] as key_pairs(); a last key without neighbour is paired with zeros.
inline void pair_keys(Matrix<Pair> rows, int64_t dim, int n, Pair* buffer) {
  constexpr int w = kLanes<float>, key_pitch = kStepKeys / 2;
  const auto* from = reinterpret_cast<const uint16_t*>(rows.data);
  const int64_t stride = 2 * rows.stride;
  const auto zipped = [&](int64_t key, int64_t d) {
    const uint16_t* a = from + key * stride + d;
    return key >= n ? BitsVec<float>{}
                    : zip_pairs(a, key + 1 < n ? a + stride : nullptr, at_most(dim - d, w));
  };
  for (int64_t d = 0; d < dim; d += w) {
    if constexpr (kOverKeys<Pair> == Left::kRows) {
      for (int64_t key = 0; key < n; key += 2 * w) {
        Vec<float> x[w];
#pragma GCC unroll 16
        for (int i = 0; i < w; ++i) x[i] = Vec<float>(zipped(key + 2 * i, d));
        zip_rounds<1, float>(x);
        Pair* to = buffer + d * key_pitch + key / 2;
        for (int i = 0; i < at_most(dim - d, w); ++i) {
          __builtin_memcpy(to + i * key_pitch, &x[i], sizeof(x[i]));
        }
      }
    } else {
      for (int64_t key = 0; key < n; key += 2) {
        const BitsVec<float> both = zipped(key, d);
        __builtin_memcpy(buffer + key / 2 * dim + d, &both, at_most(dim - d, w) * sizeof(Pair));
      }
    }
  }
}
#endif

#if defined(ATTN_AMX)
inline void pair_keys(Matrix<Half> rows, int64_t dim, int n, Split* buffer) {
  constexpr int w = kLanes<float>, key_pitch = kStepKeys / 2;
  const int64_t plane = padded<float>(dim) * key_pitch;
  for (int64_t key = 0; key < n; key += w) {
    for (int64_t d = 0; d < dim; d += w) {
      Vec<float> x[w];
      const Half* from = rows.data + key * rows.stride + d;
#pragma GCC unroll 16
      for (int i = 0; i < w; ++i) {
        x[i] = key + i < n ? load_first(from + i * rows.stride, dim - d) : Vec<float>{};
      }
      zip_rounds<1, float>(x);
      Split* to = buffer + d * key_pitch + key / 2;
      for (int i = 0; i < w; ++i) store_neighbours(to + i * key_pitch, plane, x[i]);
    }
  }
}
#endif
