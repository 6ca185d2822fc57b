// The terms of a score at work: the only place that knows which there are. A term is a struct with
// the hooks that are called here; which of them a call has is asked at run time.

// A step of gathered keys, as the terms need it.
struct Step {
  int64_t offset;  // from the tile's first query to the step's first key; one dimension
  int lanes, keys;
  const Slab* slabs;
  int n_slabs;
};

// A matrix [kStepKeys, lanes] with kLanes rows of zeros on both sides, as GradBand needs it.
template <typename T>
inline T* zero_bordered(Arena& arena) {
  constexpr int pitch = kTileQueries<T>, border = kLanes<T> * pitch;
  T* matrix = arena.take<T>(kStepKeys * pitch + 2 * border);
  return matrix ? matrix + border : nullptr;
}

// Zeroes what no slab covers, and the borders, of which the one behind the last key may hold what
// the step before has written.
template <typename T>
inline void zero_around(const Step& step, T* matrix) {
  constexpr int pitch = kTileQueries<T>, border = kLanes<T> * pitch;
  zero_outside(step.lanes, step.keys, step.slabs, step.n_slabs, matrix);
  fill<T>(matrix - border, border, 0);
  fill<T>(matrix + step.keys * pitch, border, 0);
}

// A tile's queries and the gradients of its outputs in the orders that products want.
template <typename T, typename E>
struct QueryForms {
  const T* rows;                                       // [lanes, padded dim]
  Matrix<E> columns, grad_columns, lanes, grad_lanes;  // [dim, lanes] and [lanes, dim]
};

// Where the gradient of one table goes: `data` [heads, rows, dim] from the rows [rows, padded dim]
// that lie from `start` on in every part.
struct TableGrad {
  const Table* table;
  int64_t dim, start;
  void* data;
  double scale;
};

// The tables of a call that have gradients, and the numbers of a part: one for each head and chunk
// of its queries.
template <typename T>
struct TableGrads {
  TableGrad grads[2];
  int count = 0;
  int64_t size = 0;

  explicit TableGrads(const BackwardParams& p) {
    add(p.relative.keys, p.dim, p.grad_relative.keys, p.relative.scale);
    add(p.relative.values, p.v_dim, p.grad_relative.values, 1);
  }

  void add(const Table& table, int64_t dim, void* data, double scale) {
    if (table.data == nullptr) return;
    grads[count++] = {&table, dim, size, data, scale};
    size += table.rows * padded<T>(dim);
  }

  T* sums(T* part, const Table& table) const {
    for (int i = 0; i < count; ++i) {
      if (grads[i].table == &table) return part + grads[i].start;
    }
    return nullptr;
  }
};

#include "relative.h"

// Whether a term wants a step's keys to lie next to each other.
inline bool wants_neighbours(const AttentionParams& p) { return p.relative.keys.data != nullptr; }

// Whether a term reads the weights themselves, also where products take them as pairs.
inline bool keeps_weights(const AttentionParams& p) { return p.relative.values.data != nullptr; }

// The largest scale that a term has beside that of the logits, 0 if there is none.
inline double term_scale(const AttentionParams& p) {
  return p.relative.keys.data ? p.relative.scale : 0;
}

template <typename T, typename E>
struct ForwardTerms {
  RelativeForward<T, E> relative;

  void layout(Arena& arena, const AttentionParams& p) {
    if (p.relative.keys.data) relative.layout(arena, p);
  }
  void start(const AttentionParams& p, const Tile<T>& tile, T factor, T* rows, T* acc) {
    if (p.relative.keys.data) relative.start(p, tile, factor, rows, acc);
  }
  void add(const AttentionParams& p, const Step& step, T* logits) {
    if (p.relative.keys.data) relative.add(step, logits);
  }
  void add_values(const AttentionParams& p, const Step& step, T* weights) {
    if (p.relative.values.data) relative.add_values(step, weights);
  }
  // A rescaled softmax rescales what the terms have not yet added to its sums.
  void rescale(const AttentionParams& p, int lane, Vec<T> factor) {
    if (p.relative.values.data) relative.values.rescale(lane, factor);
  }
  void finish(const AttentionParams& p) {
    if (p.relative.values.data) relative.values.finish();
  }
};

template <typename T, typename E>
struct BackwardTerms {
  RelativeBackward<T, E> relative;

  void layout(Arena& arena, const AttentionParams& p) {
    if (p.relative.keys.data) relative.layout(arena, p);
  }
  // `part` holds the chunk's sums for the tables, of the tile's head.
  void start(const BackwardParams& p, const Tile<T>& tile, T factor, const QueryForms<T, E>& q,
             T* part) {
    if (p.relative.keys.data) {
      const TableGrads<T> grads(p);
      relative.start(p, tile, factor, q, grads.sums(part, p.relative.keys),
                     grads.sums(part, p.relative.values));
    }
  }
  void add(const AttentionParams& p, const Step& step, T* logits) {
    if (p.relative.keys.data) relative.forward.add(step, logits);
  }
  void add_value_grads(const AttentionParams& p, const Step& step, T* grads) {
    if (p.relative.values.data) relative.add_value_grads(step, grads);
  }
  // Whether a term reads P and dS themselves, also where products take them as pairs.
  static bool keeps_grads(const AttentionParams& p) { return p.relative.keys.data != nullptr; }
  void collect(const AttentionParams& p, const Step& step, T* weights, T* grads) {
    if (p.relative.keys.data) relative.collect(p, step, weights, grads);
  }
  // Returns whether grad_q has its scale already.
  bool finish(const BackwardParams& p, const Tile<T>& tile, T* rows, T* grad_q) {
    return p.relative.keys.data && relative.finish(p, tile, rows, grad_q);
  }
};
