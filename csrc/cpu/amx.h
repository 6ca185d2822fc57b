// Matrix products of pairs in AMX tiles: 16 rows of 64 bytes, c[16, 16] += a[16, 16 pairs] b[16
// pairs, 16].
//
// Tiles 0 .. 3 hold sums, 4 and 5 parts of a, 6 and 7 parts of b. Fewer rows, or pairs, are tiles
// of another shape: nothing outside the matrices is ever read.

constexpr int kAmxRows = 16, kAmxPairs = 16;

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  TileShapes(int n_rows, int n_pairs) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = uint16_t(tile == 4 || tile == 5 ? 4 * n_pairs : 64);
      rows[tile] = uint8_t(tile < 6 ? n_rows : n_pairs);
    }
  }
  void use() const { asm volatile("ldtilecfg %0" ::"m"(*this)); }
};

// Changing shapes costs as much as ten products: a task starts with whole tiles in use, and who
// needs others puts them back.
inline void use_tiles() { TileShapes(kAmxRows, kAmxPairs).use(); }
// Tiles left in use would be saved at every switch of threads.
inline void release_tiles() { asm volatile("tilerelease"); }

template <int kTile>
ATTN_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
ATTN_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,4), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
ATTN_INLINE void store_tile(float* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,4)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kSum, int kLeft, int kRight>
ATTN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

template <int... I, typename Work>
ATTN_INLINE void each(Ints<I...>, const Work& work) {
  (work(Ints<I>{}), ...);
}

// Which parts are multiplied, small ones first: sums of small products lose nothing.
struct Parts {
  int left, right;
};
template <typename E>
constexpr Parts kProducts[1] = {{0, 0}};
template <>
constexpr Parts kProducts<Split>[4] = {{1, 1}, {1, 0}, {0, 1}, {0, 0}};

// kM x kN tiles of c; the tiles' shapes are set.
template <int kM, int kN, typename E>
inline void amx_block(int64_t depth, Matrix<E> a, Matrix<E> b, float* c, int64_t c_stride,
                      bool accumulate) {
  static_assert(kM <= 2 && kM * kN <= 4);
  constexpr auto ms = Count<kM>{};
  constexpr auto ns = Count<kN>{};
  each(ms, [&](auto m) {
    each(ns, [&](auto n) {
      constexpr int i = count_of(m), j = count_of(n), tile = i * kN + j;
      if (accumulate) {
        load_tile<tile>(c + i * kAmxRows * c_stride + j * kAmxRows, c_stride);
      } else {
        zero_tile<tile>();
      }
    });
  });
  for (const Parts& parts : kProducts<E>) {
    const E* left = a.data + parts.left * a.plane;
    const E* right = b.data + parts.right * b.plane;
    for (int64_t k = 0; k < depth; k += kAmxPairs) {
      each(ms, [&](auto m) {
        constexpr int i = count_of(m);
        load_tile<4 + i>(left + i * kAmxRows * a.stride + k, a.stride);
      });
      each(ns, [&](auto n) {
        constexpr int j = count_of(n);
        load_tile<6 + j % 2>(right + k * b.stride + j * kAmxRows, b.stride);
        each(ms, [&](auto m) {
          constexpr int i = count_of(m);
          multiply_tiles<i * kN + j, 4 + i, 6 + j % 2>();
        });
      });
    }
  }
  each(ms, [&](auto m) {
    each(ns, [&](auto n) {
      constexpr int i = count_of(m), j = count_of(n);
      store_tile<i * kN + j>(c + i * kAmxRows * c_stride + j * kAmxRows, c_stride);
    });
  });
}

// kM tiles high, as wide as c.
template <int kM, typename E>
inline void amx_panel(int64_t cols, int64_t depth, Matrix<E> a, Matrix<E> b, float* c,
                      int64_t c_stride, bool accumulate) {
  constexpr int most = 4 / kM;
  int64_t n = 0;
  const auto block = [&](auto width) {
    amx_block<kM, count_of(width)>(depth, a, b.from(n), c + n, c_stride, accumulate);
    n += count_of(width) * kAmxRows;
  };
  while (n + most * kAmxRows <= cols) block(Ints<most>{});
  if constexpr (most == 4) {
    if (n + 3 * kAmxRows <= cols) block(Ints<3>{});
    if (n + 2 * kAmxRows <= cols) block(Ints<2>{});
  }
  if (n < cols) block(Ints<1>{});
}

template <typename E>
inline void amx_depth(int64_t rows, int64_t cols, int64_t depth, int pairs, Matrix<E> a,
                      Matrix<E> b, float* c, int64_t c_stride, bool accumulate) {
  int64_t m = 0;
  const bool whole = pairs == kAmxPairs && rows % kAmxRows == 0;
  if (pairs < kAmxPairs && rows >= kAmxRows) TileShapes(kAmxRows, pairs).use();
  for (; m + 2 * kAmxRows <= rows; m += 2 * kAmxRows) {
    amx_panel<2>(cols, depth, a.from(m * a.stride), b, c + m * c_stride, c_stride, accumulate);
  }
  for (; m < rows; m += kAmxRows) {
    const int n_rows = int(at_most(rows - m, kAmxRows));
    if (n_rows < kAmxRows) TileShapes(n_rows, pairs).use();
    amx_panel<1>(cols, depth, a.from(m * a.stride), b, c + m * c_stride, c_stride, accumulate);
  }
  if (!whole) use_tiles();
}

// gemm() for pairs: a in rows, `depth` in pairs.
template <typename E>
inline void amx_gemm(int64_t rows, int64_t cols, int64_t depth, Matrix<E> a, Matrix<E> b, float* c,
                     int64_t c_stride, bool accumulate) {
  const int64_t whole = depth / kAmxPairs * kAmxPairs;
  if (whole > 0) amx_depth(rows, cols, whole, kAmxPairs, a, b, c, c_stride, accumulate);
  if (depth > whole) {
    amx_depth(rows, cols, depth - whole, int(depth - whole), a.from(whole),
              b.from(whole * b.stride), c, c_stride, accumulate || whole > 0);
  }
}

template <Left kLeft>
ATTN_INLINE void gemm(int64_t rows, int64_t cols, int64_t depth, Matrix<Pair> a, Matrix<Pair> b,
                      float* c, int64_t c_stride, bool accumulate, Ahead* = nullptr) {
  static_assert(kLeft == Left::kRows, "AMX reads rows");
  amx_gemm(rows, cols, depth, a, b, c, c_stride, accumulate);
}
template <Left kLeft>
ATTN_INLINE void gemm(int64_t rows, int64_t cols, int64_t depth, Matrix<Split> a, Matrix<Split> b,
                      float* c, int64_t c_stride, bool accumulate, Ahead* = nullptr) {
  static_assert(kLeft == Left::kRows, "AMX reads rows");
  amx_gemm(rows, cols, depth, a, b, c, c_stride, accumulate);
}
