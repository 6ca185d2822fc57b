// Keys and values as elements of products, made once per step of keys and kept for the next tiles.

enum class Sums { kDims, kKeys };  // what the products with them sum over

// Whether making the elements is work: then they are kept.
template <Sums kSums, typename E>
constexpr bool kMade = kSums == Sums::kDims ? kParts<E> > 1 : kNumbers<E> == 2;

// Rows [n, dim] as elements of a sum over dims, and (kStepKeys rows at most) over rows: as they
// lie, or in `at`.
template <typename E>
inline Matrix<E> over_dims(Matrix<Source<E>> rows, int64_t dim, int n, E* at) {
  if constexpr (kMade<Sums::kDims, E>) {
    return pair_across(rows.data, rows.stride, n, dim, at);
  } else {
    return rows;
  }
}
template <typename E>
inline Matrix<E> over_keys(Matrix<Source<E>> rows, int64_t dim, int n, E* at) {
  if constexpr (kMade<Sums::kKeys, E>) {
    pair_keys(rows, dim, n, at);
    return key_pairs(at, dim);
  } else {
    return rows;
  }
}

template <Sums kSums, typename E>
struct KeptRows {
  // Pairs of keys as they lie are made as fast as they are read again.
  static constexpr bool kKeeps = kSums == Sums::kDims || kOverKeys<E> == Left::kRows;
  static constexpr int64_t kMostBytes = 16 << 20;

  // Of boxes that blocks side by side share: a block has three. They part the canvas's columns, so
  // that a step's first position tells which columns it has.
  static constexpr int64_t kBoxes = 3;
  struct KeptBox {
    int64_t head, position, n;
  };

  Source<E>* gathered;  // a step's rows, where they do not lie together
  E* steps;             // one after the other; the last one is for what is not kept
  int64_t* made;        // [0]: the head they belong to; then for each step whether it is made
  int64_t n_kept;
  KeptBox* boxes;     // what the steps hold instead where columns are shared, or null
  int64_t* next_box;  // the one to be replaced

  static int64_t step_size(int64_t dim) {
    return kSums == Sums::kDims ? row_elements<E>(kStepKeys, dim) : key_elements<E>(dim);
  }

  void layout(Arena& arena, const AttentionParams& p, int64_t dim) {
    const bool shared = columns_are_shared(p.geometry);
    gathered = arena.take<Source<E>>(row_elements<Source<E>>(kStepKeys, dim));
    n_kept = 0, boxes = nullptr;
    if (shared) {
      boxes = arena.take<KeptBox>(kBoxes);
      next_box = arena.take<int64_t>(1);
      steps = arena.take<E>(kBoxes * step_size(dim));
      return;
    }
    if (!kMade<kSums, E>) return;
    if (kKeeps && keys_in_sequence(p.geometry)) n_kept = ceil_div(p.k_len, kStepKeys);
    if (n_kept * step_size(dim) * int64_t(sizeof(E)) > kMostBytes) n_kept = 0;
    made = arena.take<int64_t>(1 + n_kept);
    steps = arena.take<E>((n_kept + 1) * step_size(dim));
  }

  void forget() {
    if (n_kept > 0) made[0] = -1;
    for (int64_t i = 0; boxes && i < kBoxes; ++i) boxes[i].head = -1;
    if (boxes) *next_box = 0;
  }

  // The rows [start, start + n) of the tile's keys.
  template <typename T>
  Matrix<E> get(const Tile<T>& tile, const View& view, int64_t dim, int64_t start, int n,
                const uint64_t* seen_by) {
    if (boxes) return get_box(tile, view, dim, start, n);
    if constexpr (!kMade<kSums, E>) {
      return gather_rows(tile, view, dim, start, n, seen_by, gathered);
    } else {
      const int64_t position = tile.queries.k_pos + start, step = position / kStepKeys;
      const int64_t whole = at_most(tile.k_len - step * kStepKeys, kStepKeys);
      // A last key without neighbour is paired with zeros, and not with a key that nobody sees.
      if (n_kept == 0 || position % kStepKeys != 0 || (n % 2 == 1 && n < whole)) {
        return make(gather_rows(tile, view, dim, start, n, seen_by, gathered), dim, n,
                    steps + n_kept * step_size(dim));
      }
      const int64_t head = tile.batch * tile.k_heads + tile.k_head;
      if (made[0] != head) {
        made[0] = head;
        fill<int64_t>(made + 1, n_kept, 0);
      }
      E* const at = steps + step * step_size(dim);
      if (made[1 + step]) return arranged(at, dim);
      made[1 + step] = 1;
      const auto* const rows = head_rows<Source<E>>(tile, view);
      const int64_t stride = view.row / kNumbers<Source<E>>;
      return make({rows + step * kStepKeys * stride, stride}, dim, int(whole), at);
    }
  }

 private:
  // The step is a box or a part of one; `steps` has room for kBoxes.
  template <typename T>
  Matrix<E> get_box(const Tile<T>& tile, const View& view, int64_t dim, int64_t start, int n) {
    const int64_t head = tile.batch * tile.k_heads + tile.k_head;
    const int64_t position = key_run(tile.geometry, tile.queries, start).start;
    const auto rows_at = [&](E* at) {
      return kMade<kSums, E> ? arranged(at, dim) : Matrix<E>{at, dim / kNumbers<Source<E>>};
    };
    for (int64_t i = 0; i < kBoxes; ++i) {
      const KeptBox& kept = boxes[i];
      if (kept.head == head && kept.position == position && kept.n == n) {
        return rows_at(steps + i * step_size(dim));
      }
    }
    const int64_t i = *next_box;
    E* const at = steps + i * step_size(dim);
    if constexpr (kMade<kSums, E>) {
      make(gather_rows(tile, view, dim, start, n, nullptr, gathered), dim, n, at);
    } else {
      const Matrix<E> rows = gather_rows(tile, view, dim, start, n, nullptr, at);
      if (rows.data != at) return rows;
    }
    *next_box = (i + 1) % kBoxes;
    boxes[i] = {head, position, n};
    return rows_at(at);
  }

  static Matrix<E> arranged(const E* at, int64_t dim) {
    return kSums == Sums::kDims ? dim_pairs(at, dim) : key_pairs(at, dim);
  }
  static Matrix<E> make(Matrix<Source<E>> rows, int64_t dim, int n, E* at) {
    return kSums == Sums::kDims ? over_dims<E>(rows, dim, n, at) : over_keys<E>(rows, dim, n, at);
  }
};
