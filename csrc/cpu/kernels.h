// What an instruction set's file exports: one table of functions. Tasks are independent of one
// another and of the number of threads; each needs scratch memory of its own thread.
#pragma once

#include "../params.h"

namespace attn_kernels {

// One kind of work: `tasks` calls of `run`, in any order, each with `scratch` bytes (64-byte
// aligned). A task may find there what an earlier one of the same call has left; `start` comes
// before the first.
template <typename Params>
struct Work {
  int64_t (*tasks)(const Params&);
  int64_t (*scratch)(const Params&);
  void (*start)(const Params&, void* scratch);
  void (*run)(const Params&, int64_t task, void* scratch);
};

struct Kernels {
  int64_t (*part_bytes)(const ForwardParams&);       // of ForwardParams::partial, if splits > 1
  Work<ForwardParams> forward, merge_forward;        // merge: only if splits > 1
  int64_t (*key_part_bytes)(const BackwardParams&);  // of BackwardParams::key_parts, if chunks > 1
  int64_t (*table_part_bytes)(const BackwardParams&);       // of BackwardParams::table_parts
  Work<BackwardParams> backward, merge_keys, merge_tables;  // merge_keys: only if chunks > 1
  // For tests: y = 2^x of n numbers; the transpose of n vectors by n vectors; and GradBand's and
  // ScoreBand's shear, to[j] += lane-wise from[j + sign * lane], n rows of one vector.
  int64_t lanes;
  void (*exp2)(const void* x, void* y, int64_t n);
  void (*transpose)(const void* from, void* to, int64_t n);
  void (*shear)(int sign, const void* from, void* to, int64_t n);
};

// One row of kernels.inc: the tables by arithmetic.
struct InstructionSet {
  const char* name;
  bool (*supported)();
  const Kernels* for_float;
  const Kernels* for_double;
  const Kernels* for_bfloat16;  // or null; needs even head dims, keys and values in bfloat16
  const Kernels* for_float16;   // or null; needs keys and values in float16
};

// The set in use, or null with `isa_error` set. The first call takes ATTN_KERNELS_ISA or the best.
const InstructionSet* instruction_set();

}  // namespace attn_kernels
