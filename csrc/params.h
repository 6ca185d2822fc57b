// Plain structs that describe one call: shared by the binding, the CPU kernels and CUDA.
#pragma once

#include <cstdint>

namespace attn_kernels {

enum class DType : int32_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

// A [batch, heads, length, dim] tensor, dim contiguous. Strides are in elements.
struct View {
  void* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
};

enum class GeometryKind : int32_t { kFull, kCausal, kLocal1d, kLocal2d, kPattern, kWindow };

// The numbers of a geometry; which of them count depends on `kind`. See geometry.h.
struct Geometry {
  GeometryKind kind = GeometryKind::kFull;
  bool causal = false;
  int64_t window = 0;                                // 0: unlimited
  int64_t block = 0, look_back = 0, look_ahead = 0;  // a Window has the last two
  // A canvas; or a Pattern's queries and keys.
  int64_t rows = 0, cols = 0, block_rows = 0, block_cols = 0, halo_rows = 0, halo_cols = 0;
  const int64_t* table = nullptr;  // of a Pattern, which has n_runs runs; see pattern.h
  int64_t n_runs = 0;
};

// A relative table [1 or heads, rows, dim], contiguous, in kv_dtype (few_queries: in the arithmetic
// type).
struct Table {
  const void* data = nullptr;
  int64_t head_stride = 0;  // 0: one table for all heads
  int64_t rows = 0;
};

// A term of the score: scale * (query_i . keys[row(j - p_i)]), with rows of `values` added to the
// values. Without keys there is no such term; without a query of its own it is q that is
// multiplied.
struct RelativeTerm {
  Table keys, values;
  View query;
  int64_t zero_row = 0;
  bool clip = true;
  double scale = 1;
};

// A term of the score: table[row(j - p_i)], numbers of the arithmetic type; rows of dim 1.
struct BiasTerm {
  Table table;
  int64_t zero_row = 0;
  bool clip = true;
};

struct RelativeGrads {
  View query;
  void* keys = nullptr;  // [1 or heads, rows, dim], contiguous
  void* values = nullptr;
};

struct AttentionParams {
  int64_t batch = 0, heads = 0, k_heads = 0, q_len = 0, k_len = 0, dim = 0, v_dim = 0;
  DType dtype = DType::kFloat32;     // of q, out, the terms' queries and everything returned
  DType kv_dtype = DType::kFloat32;  // of k and v: the arithmetic type, unless few_queries
  View q, k, v, out;
  void* lse = nullptr;  // [batch, heads, q_len], in the arithmetic type
  Geometry geometry;
  double scale = 1;
  RelativeTerm relative;
  BiasTerm bias;
  const int64_t* key_lengths = nullptr;    // [batch] or null
  const int64_t* query_offsets = nullptr;  // [batch] or null: query_offset for all
  int64_t query_offset = 0;
};

struct ForwardParams : AttentionParams {
  // Keys are cut in `splits` parts where queries are few. A part leaves its unscaled sum, maximum
  // and denominator in `partial`, [tasks, splits, partial_size]; merging is a second step.
  int64_t splits = 1;
  void* partial = nullptr;
  bool few_queries = false;
};

struct BackwardParams : AttentionParams {
  View grad_out;
  const void* grad_lse = nullptr;  // like lse, or null
  View grad_q, grad_k, grad_v;
  RelativeGrads grad_relative;
  void* grad_bias = nullptr;  // [1 or heads, rows], contiguous
  DType bias_dtype = DType::kFloat32;
  // The queries of a key head are cut in `chunks` parts; each part sums the gradients of keys,
  // values and tables by itself, and a second step adds the parts in order.
  int64_t chunks = 1;
  void* key_parts = nullptr;    // [batch * k_heads * chunks, k_len, dim + v_dim, padded]
  void* table_parts = nullptr;  // [batch * heads * chunks, TableGrads::size]
};

}  // namespace attn_kernels
