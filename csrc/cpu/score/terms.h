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
  int64_t rows, dim, start;
  void* data;
  DType dtype;
  double scale;
};

// The tables of a call that have gradients, and the numbers of a part: one for each head and chunk
// of its queries.
template <typename T>
struct TableGrads {
  TableGrad grads[3];
  int count = 0;
  int64_t size = 0;

  explicit TableGrads(const BackwardParams& p) {
    const RelativeTerm& relative = p.relative;
    add(relative.keys, relative.keys.rows, p.dim, p.grad_relative.keys, p.dtype, relative.scale);
    add(relative.values, relative.values.rows, p.v_dim, p.grad_relative.values, p.dtype, 1);
    add(p.bias.table, 1, p.bias.table.rows, p.grad_bias, p.bias_dtype, 1);  // one row of numbers
  }

  void add(const Table& table, int64_t rows, int64_t dim, void* data, DType dtype, double scale) {
    if (table.data == nullptr) return;
    grads[count++] = {&table, rows, dim, size, data, dtype, scale};
    size += rows * padded<T>(dim);
  }

  T* sums(T* part, const Table& table) const {
    for (int i = 0; i < count; ++i) {
      if (grads[i].table == &table) return part + grads[i].start;
    }
    return nullptr;
  }
};

#include "bias.h"
#include "relative.h"

inline bool has_relative(const AttentionParams& p) { return p.relative.keys.data != nullptr; }
inline bool has_bias(const AttentionParams& p) { return p.bias.table.data != nullptr; }

// Whether a term wants a step's keys to lie next to each other.
inline bool wants_neighbours(const AttentionParams& p) { return has_relative(p) || has_bias(p); }

// Whether a term reads the weights themselves, also where products take them as pairs.
inline bool keeps_weights(const AttentionParams& p) { return p.relative.values.data != nullptr; }

// The largest scale of a term, 0 if there is none.
inline double term_scale(const AttentionParams& p) {
  const double relative = has_relative(p) ? __builtin_fabs(p.relative.scale) : 0;
  return has_bias(p) && relative < 1 ? 1 : relative;
}

template <typename T, typename E>
struct ForwardTerms {
  RelativeForward<T, E> relative;
  BiasForward<T> bias;

  void layout(Arena& arena, const AttentionParams& p) {
    if (has_relative(p)) relative.layout(arena, p);
    if (has_bias(p)) bias.layout(arena);
  }
  // `unit` is what a natural logit is multiplied by.
  void start(const AttentionParams& p, const Tile<T>& tile, T unit, T* rows, T* acc) {
    if (has_relative(p)) relative.start(p, tile, unit, rows, acc);
    if (has_bias(p)) bias.start(p, tile.head, unit);
  }
  void add(const AttentionParams& p, const Step& step, T* logits) {
    if (has_relative(p)) relative.add(step, logits);
    if (has_bias(p)) bias.add(step, logits);
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
  BiasBackward<T> bias;

  void layout(Arena& arena, const AttentionParams& p) {
    if (has_relative(p)) relative.layout(arena, p);
    if (has_bias(p)) bias.layout(arena);
  }
  // `part` holds the chunk's sums for the tables, of the tile's head.
  void start(const BackwardParams& p, const Tile<T>& tile, T unit, const QueryForms<T, E>& q,
             T* part) {
    const TableGrads<T> grads(p);
    if (has_relative(p)) {
      relative.start(p, tile, unit, q, grads.sums(part, p.relative.keys),
                     grads.sums(part, p.relative.values));
    }
    if (has_bias(p)) bias.start(p, tile.head, unit, grads.sums(part, p.bias.table));
  }
  void add(const AttentionParams& p, const Step& step, T* logits) {
    if (has_relative(p)) relative.forward.add(step, logits);
    if (has_bias(p)) bias.forward.add(step, logits);
  }
  void add_value_grads(const AttentionParams& p, const Step& step, T* grads) {
    if (p.relative.values.data) relative.add_value_grads(step, grads);
  }
  // Whether a term reads P and dS themselves, also where products take them as pairs.
  static bool keeps_grads(const AttentionParams& p) { return has_relative(p) || has_bias(p); }
  void collect(const AttentionParams& p, const Step& step, T* weights, T* grads) {
    if (has_bias(p)) bias.collect(step, grads);
    if (has_relative(p)) relative.collect(p, step, weights, grads);
  }
  // Returns whether grad_q has its scale already.
  bool finish(const BackwardParams& p, const Tile<T>& tile, T* rows, T* grad_q) {
    return has_relative(p) && relative.finish(p, tile, rows, grad_q);
  }
};
