// The algorithm, compiled once per instruction set: a file defines ATTN_ISA and includes this.
//
// No torch and no std containers in here: an inline function instantiated for a better CPU could
// win at link time and crash an older one. Everything but the tables lies in an anonymous
// namespace.

#include "../geometry.h"
#include "../score.h"
#include "kernels.h"

namespace attn_kernels {
namespace ATTN_ISA {
namespace {

#include "vec.h"
#include "rows.h"
#include "ahead.h"
#include "gemm.h"
#if defined(ATTN_AMX)
#include "amx.h"
#else
inline void use_tiles() {}
inline void release_tiles() {}
#endif
#include "elements.h"
#include "tile.h"
#include "pattern_tile.h"
#include "kept.h"
#include "band.h"
#include "score/terms.h"
#include "forward.h"
#include "few.h"
#include "backward.h"

// Objects of kMember's layout over a task's scratch.
template <typename Object, typename Params>
int64_t scratch_of(const Params& p) {
  Object object;
  Arena arena{nullptr};
  object.layout(arena, p);
  return arena.used;
}

template <typename Object, typename Params>
Object over(const Params& p, void* scratch) {
  Object object;
  Arena arena{static_cast<char*>(scratch)};
  object.layout(arena, p);
  return object;
}

template <typename T, typename E = T>
struct Entry {
  using Forward = ForwardTile<T, E>;
  using Few = FewQueries<T>;
  using Backward = BackwardChunk<T, E>;

  // --- Forward ---
  static int64_t forward_units(const ForwardParams& p) {
    return p.few_queries ? p.batch * p.k_heads : Forward::units(p);
  }
  static int64_t forward_tasks(const ForwardParams& p) { return forward_units(p) * p.splits; }
  static int64_t forward_scratch(const ForwardParams& p) {
    return p.few_queries ? scratch_of<Few>(p) : scratch_of<Forward>(p);
  }
  static int64_t part_bytes(const ForwardParams& p) {
    const int64_t size =
        p.few_queries ? Few::queries(p) * Few::state_size(p) : Forward::part_size(p);
    return forward_tasks(p) * size * int64_t(sizeof(T));
  }
  static void start_forward(const ForwardParams& p, void* scratch) {
    if (!p.few_queries) over<Forward>(p, scratch).forget_keys();
  }
  static void forward(const ForwardParams& p, int64_t task, void* scratch) {
    const int64_t unit = task / p.splits, split = task % p.splits;
    use_tiles();
    if (p.few_queries) {
      over<Few>(p, scratch).run(p, unit / p.k_heads, unit % p.k_heads, split);
    } else {
      over<Forward>(p, scratch).run(p, unit, split);
    }
    release_tiles();
  }
  static void merge_forward(const ForwardParams& p, int64_t unit, void* scratch) {
    if (p.few_queries) {
      over<Few>(p, scratch).merge(p, unit / p.k_heads, unit % p.k_heads);
    } else {
      over<Forward>(p, scratch).merge(p, unit);
    }
  }

  // --- Backward ---
  static int64_t backward_tasks(const BackwardParams& p) { return p.batch * p.k_heads * p.chunks; }
  static int64_t key_part_bytes(const BackwardParams& p) {
    return backward_tasks(p) * Backward::key_part_size(p) * int64_t(sizeof(T));
  }
  static int64_t table_part_bytes(const BackwardParams& p) {
    return p.batch * p.heads * p.chunks * TableGrads<T>(p).size * int64_t(sizeof(T));
  }
  static void start_backward(const BackwardParams& p, void* scratch) {
    over<Backward>(p, scratch).tile.forget_keys();
  }
  static void backward(const BackwardParams& p, int64_t task, void* scratch) {
    const int64_t head = task / p.chunks;
    use_tiles();
    over<Backward>(p, scratch).run(p, head / p.k_heads, head % p.k_heads, task % p.chunks);
    release_tiles();
  }

  static constexpr int64_t kMergeKeys = 64;  // keys a merging task takes
  static int64_t key_blocks(const BackwardParams& p) { return ceil_div(p.k_len, kMergeKeys); }
  static int64_t merge_keys_tasks(const BackwardParams& p) {
    return p.batch * p.k_heads * key_blocks(p);
  }
  static int64_t no_scratch(const BackwardParams&) { return 0; }
  template <typename Params>
  static void no_start(const Params&, void*) {}
  static void merge_keys(const BackwardParams& p, int64_t task, void*) {
    const int64_t head = task / key_blocks(p), begin = task % key_blocks(p) * kMergeKeys;
    Backward::merge_keys(p, head / p.k_heads, head % p.k_heads, begin,
                         at_most(begin + kMergeKeys, p.k_len));
  }

  static int64_t merge_tables_tasks(const BackwardParams& p) {
    const TableGrads<T> all(p);
    int64_t tasks = 0;
    for (int i = 0; i < all.count; ++i) tasks += rows_of(p, all.grads[i]);
    return tasks;
  }
  static int64_t rows_of(const BackwardParams& p, const TableGrad& grad) {
    return (grad.table->head_stride == 0 ? 1 : p.heads) * grad.rows;
  }
  static int64_t merge_tables_scratch(const BackwardParams& p) {
    const TableGrads<T> all(p);
    int64_t dim = 0;
    for (int i = 0; i < all.count; ++i) dim = at_least(dim, all.grads[i].dim);
    return padded<T>(dim) * int64_t(sizeof(T));
  }
  static void merge_tables(const BackwardParams& p, int64_t task, void* scratch) {
    const TableGrads<T> all(p);
    const TableGrad* grad = all.grads;
    for (; task >= rows_of(p, *grad); ++grad) task -= rows_of(p, *grad);
    Backward::merge_table_row(p, *grad, all.size, task / grad->rows, task % grad->rows,
                              static_cast<T*>(scratch));
  }

  static void exp2_of(const void* x, void* y, int64_t n) {
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(y);
    for (int64_t i = 0; i < n; ++i) to[i] = exp2<T>(set1(from[i]))[0];
  }

  static void transpose_of(const void* from, void* to, int64_t n) {
    const int64_t size = n * kLanes<T>;
    const auto one = [](int64_t) { return set1<T>(1); };
    transpose<T>(size, size, static_cast<const T*>(from), size, one, static_cast<T*>(to), size);
  }
  static void shear_of(int sign, const void* from, void* to, int64_t n) {
    if (sign < 0) {
      add_sheared<-1>(static_cast<const T*>(from), int(n), static_cast<T*>(to));
    } else {
      add_sheared<1>(static_cast<const T*>(from), int(n), static_cast<T*>(to));
    }
  }

  static constexpr Kernels kTable = {
      part_bytes,
      {forward_tasks, forward_scratch, start_forward, forward},
      {forward_units, forward_scratch, no_start, merge_forward},
      key_part_bytes,
      table_part_bytes,
      {backward_tasks, scratch_of<Backward, BackwardParams>, start_backward, backward},
      {merge_keys_tasks, no_scratch, no_start, merge_keys},
      {merge_tables_tasks, merge_tables_scratch, no_start, merge_tables},
      kLanes<T>,
      exp2_of,
      transpose_of,
      shear_of,
  };
};

}  // namespace

#if defined(ATTN_AVX512_BF16)
extern const Kernels kernels_bfloat16 = Entry<float, Pair>::kTable;
#else
extern const Kernels kernels_float = Entry<float>::kTable;
extern const Kernels kernels_double = Entry<double>::kTable;
#endif
#if defined(ATTN_AMX)
extern const Kernels kernels_float16 = Entry<float, Split>::kTable;
#endif

}  // namespace ATTN_ISA
}  // namespace attn_kernels
