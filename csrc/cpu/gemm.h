// Matrix products of a tile: c (+)= a b, with b and c in rows of whole vectors.
//
// a is read one element at a time and broadcast, so it may lie in either order and needs no
// packing: keys and values are used where they are. `depth` counts elements: numbers, or pairs of
// them. kRows: a(m, k) = a[m * stride + k]; kColumns: a[k * stride + m].

enum class Left { kRows, kColumns };

// One side of a product: its rows lie `stride` apart; elements in several parts (Split) have these
// `plane` apart.
template <typename E>
struct Matrix {
  const E* data;
  int64_t stride, plane = 0;

  Matrix from(int64_t offset) const { return {data + offset, stride, plane}; }
};

// Register tile: kTileVecs vectors wide at most; tile_rows(n) rows of n vectors use most registers.
constexpr int kTileVecs = kVecRegisters == 32 ? 4 : 2;
constexpr int tile_rows(int vecs) {
  return kVecRegisters == 32 ? (vecs == 1 ? 14 : 24 / vecs) : (vecs == 1 ? 8 : 6);
}

template <int kM, int kN, Left kLeft, typename E>
inline __attribute__((noinline)) void gemm_tile(int64_t depth, const E* a, int64_t a_stride,
                                                const E* b, int64_t b_stride, Sum<E>* c,
                                                int64_t c_stride, bool accumulate) {
  using T = Sum<E>;
  using Operand = typename Element<E>::Operand;
  constexpr int w = kLanes<T>;
  Vec<T> sum[kM][kN] = {};
  if (accumulate) {
    T* row = c;
#pragma GCC unroll 32
    for (int m = 0; m < kM; ++m, row += c_stride) {
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) sum[m][n] = load(row + n * w);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Operand right[kN];
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) right[n] = load_operand(b + n * w);
#pragma GCC unroll 32
    for (int m = 0; m < kM; ++m) {
      const Operand left = broadcast(kLeft == Left::kRows ? a + m * a_stride : a + m);
#pragma GCC unroll 4
      for (int n = 0; n < kN; ++n) sum[m][n] = fma(left, right[n], sum[m][n]);
    }
    a += kLeft == Left::kRows ? 1 : a_stride;
    b += b_stride;
  }
#pragma GCC unroll 32
  for (int m = 0; m < kM; ++m, c += c_stride) {
#pragma GCC unroll 4
    for (int n = 0; n < kN; ++n) store(c + n * w, sum[m][n]);
  }
}

// The last `rows` <= kM rows of a panel.
template <int kM, int kN, Left kLeft, typename E>
ATTN_INLINE void gemm_rest(int64_t rows, int64_t depth, const E* a, int64_t a_stride, const E* b,
                           int64_t b_stride, Sum<E>* c, int64_t c_stride, bool accumulate) {
  if constexpr (kM > 0) {
    if (rows == kM) {
      gemm_tile<kM, kN, kLeft>(depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
    } else {
      gemm_rest<kM - 1, kN, kLeft>(rows, depth, a, a_stride, b, b_stride, c, c_stride, accumulate);
    }
  }
}

template <int kN, Left kLeft, typename E>
inline void gemm_panel(int64_t rows, int64_t depth, const E* a, int64_t a_stride, const E* b,
                       int64_t b_stride, Sum<E>* c, int64_t c_stride, bool accumulate,
                       Ahead* ahead) {
  constexpr int kM = tile_rows(kN);
  const int64_t a_step = kLeft == Left::kRows ? a_stride : 1;
  int64_t m = 0;
  for (; m + kM <= rows; m += kM) {
    if (ahead) ahead->fetch_some();
    gemm_tile<kM, kN, kLeft>(depth, a + m * a_step, a_stride, b, b_stride, c + m * c_stride,
                             c_stride, accumulate);
  }
  gemm_rest<kM - 1, kN, kLeft>(rows - m, depth, a + m * a_step, a_stride, b, b_stride,
                               c + m * c_stride, c_stride, accumulate);
}

// c[rows, cols] (+)= a[rows, depth] b[depth, cols]; cols is a multiple of kLanes; strides in
// elements. Meanwhile, what `ahead` holds is fetched.
template <Left kLeft, typename E>
inline void gemm(int64_t rows, int64_t cols, int64_t depth, Matrix<E> a, Matrix<E> b, Sum<E>* c,
                 int64_t c_stride, bool accumulate, Ahead* ahead = nullptr) {
  constexpr int w = kLanes<Sum<E>>;
  for (int64_t n = 0; n < cols;) {
    int vecs = int(at_most((cols - n) / w, kTileVecs));
    if (kTileVecs == 4 && (cols - n) / w == 5) vecs = 3;  // 3 + 2 keeps more registers busy
    const auto panel = [&](auto width) {
      gemm_panel<count_of(width), kLeft>(rows, depth, a.data, a.stride, b.data + n, b.stride, c + n,
                                         c_stride, accumulate, ahead);
    };
    if constexpr (kTileVecs == 4) {
      if (vecs == 4) panel(Ints<4>{});
      if (vecs == 3) panel(Ints<3>{});
    }
    if (vecs == 2) panel(Ints<2>{});
    if (vecs == 1) panel(Ints<1>{});
    n += vecs * w;
  }
}
