// The operators' CPU implementations: the only C++ that knows torch, over its stable ABI.
//
// Shapes and dtypes were checked in Python (core/validate.py); here only what memory safety needs.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/plan.h"

namespace attn_kernels {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Sizes = std::initializer_list<int64_t>;  // no vectors: a small call is mostly allocations

// --- Memory ---

// Tests set ATTN_KERNELS_POISON: fresh memory is then filled with NaN.
bool poison() {
  static const bool on = std::getenv("ATTN_KERNELS_POISON") != nullptr;
  return on;
}

Tensor empty_strided(Sizes sizes, Sizes strides, ScalarType dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.begin(), strides.begin(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  if (poison() && tensor.numel() > 0)
    std::memset(tensor.data_ptr(), 0xff, tensor.numel() * tensor.element_size());
  return tensor;
}

Tensor empty(int64_t n, ScalarType dtype) { return empty_strided({n}, {1}, dtype); }

Tensor empty(int64_t a, int64_t b, int64_t c, ScalarType dtype) {
  const int64_t row = at_least(c, 1);
  return empty_strided({a, b, c}, {at_least(b, 1) * row, row, 1}, dtype);
}

// [B, H, L, last] in memory [B, L, H, last] where `like` is a view of that kind: as core/ops.py
// promises.
Tensor empty_in_layout(const Tensor& like, int64_t last) {
  const int64_t batch = like.size(0), heads = like.size(1), length = like.size(2);
  const int64_t width = at_least(last, 1), entry = at_least(heads, 1) * at_least(length, 1) * width;
  const bool heads_within = like.stride(1) < like.stride(2);
  const int64_t head = heads_within ? width : at_least(length, 1) * width;
  const int64_t row = heads_within ? at_least(heads, 1) * width : width;
  return empty_strided({batch, heads, length, last}, {entry, head, row, 1}, like.scalar_type());
}

// A thread's scratch memory: small ones are kept, for allocating would cost more than a small call.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) {
    bytes = ceil_div(bytes, 64) * 64;
    static thread_local Kept kept;
    if (bytes <= kKeptBytes) {
      if (kept.size < bytes) {
        std::free(kept.data);
        kept.data = std::aligned_alloc(64, bytes), kept.size = bytes;
      }
      data_ = kept.data;
    } else {
      data_ = own_ = std::aligned_alloc(64, bytes);
    }
    if (poison()) std::memset(data_, 0xff, bytes);
  }
  ~Scratch() { std::free(own_); }
  Scratch(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  static constexpr int64_t kKeptBytes = 2 << 20;
  struct Kept {
    void* data = nullptr;
    int64_t size = 0;
    ~Kept() { std::free(data); }
  };
  void* data_ = nullptr;
  void* own_ = nullptr;
};

// Runs all tasks on torch's threads, each taking the next few when it is done: a task may find in
// its scratch what the one before it has made.
template <typename Params>
void run(const Work<Params>& work, const Params& params) {
  const int64_t tasks = work.tasks(params), scratch_bytes = at_least(work.scratch(params), 64);
  const int64_t threads = at_most(torch::stable::get_num_threads(), tasks);
  const int64_t turn = at_least(at_most(tasks / (at_least(threads, 1) * 32), 8), 1);
  std::atomic<int64_t> next{0};
  const auto worker = [&](int64_t, int64_t) {
    Scratch scratch(scratch_bytes);
    work.start(params, scratch.data());
    for (int64_t task; (task = next.fetch_add(turn, std::memory_order_relaxed)) < tasks;) {
      const int64_t end = at_most(task + turn, tasks);
      for (; task < end; ++task) work.run(params, task, scratch.data());
    }
  };
  if (threads <= 1) return worker(0, 1);
  torch::stable::parallel_for(0, threads, 1, worker);
}

// --- Arguments ---

DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, "attn_kernels: q must be float32, float64, bfloat16 or float16");
  }
}

ScalarType arithmetic_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor rows_contiguous(const Tensor& x) {
  return x.size(-1) == 1 || x.stride(-1) == 1 ? x : torch::stable::contiguous(x);
}

Tensor as_type(const Tensor& x, ScalarType dtype) {
  return x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
}

// Conversion comes first: it gives memory that overlapped an order of its own.
Tensor rows_as_type(const Tensor& x, ScalarType dtype) {
  return rows_contiguous(as_type(x, dtype));
}

Tensor whole_as_type(const Tensor& x, ScalarType dtype) {
  return torch::stable::contiguous(as_type(x, dtype));
}

View view_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

Geometry geometry_of(const std::string& name, const std::vector<int64_t>& n) {
  Geometry g;
  const auto expect = [&](size_t count) {
    STD_TORCH_CHECK(n.size() == count, "attn_kernels: geometry ", name, " has ", count,
                    " numbers, got ", n.size());
  };
  if (name == "full") {
    expect(0);
  } else if (name == "causal") {
    expect(1);
    g.kind = GeometryKind::kCausal, g.causal = true, g.window = n[0];
  } else if (name == "local_1d") {
    expect(4);
    g.kind = GeometryKind::kLocal1d, g.block = n[0], g.look_back = n[1], g.look_ahead = n[2],
    g.causal = n[3];
  } else if (name == "local_2d") {
    expect(7);
    g.kind = GeometryKind::kLocal2d, g.rows = n[0], g.cols = n[1], g.block_rows = n[2],
    g.block_cols = n[3];
    g.halo_rows = n[4], g.halo_cols = n[5], g.causal = n[6];
  } else if (name == "pattern") {
    expect(3);
    g.kind = GeometryKind::kPattern, g.rows = n[0], g.cols = n[1], g.n_runs = n[2];
  } else {
    STD_TORCH_CHECK(false, "attn_kernels: unknown geometry ", name);
  }
  return g;
}

// Both operators' shared arguments, and what has to stay alive while their pointers are in use.
struct Inputs {
  Tensor q, k, v;
  OptionalTensor rel_k, rel_v, q_rel, key_lengths, query_offsets, pattern;

  Table table(const OptionalTensor& x) const {
    if (!x.has_value()) return {};
    return {x->data_ptr(), x->size(0) == 1 ? 0 : x->size(1) * x->size(2), x->size(1)};
  }

  void fill(AttentionParams& p) const {
    p.batch = q.size(0), p.heads = q.size(1), p.q_len = q.size(2), p.dim = q.size(3);
    p.k_heads = k.size(1), p.k_len = k.size(2), p.v_dim = v.size(3);
    p.dtype = dtype_of(q);
    p.q = view_of(q);
    if (q_rel.has_value()) p.q_rel = view_of(*q_rel);
    if (key_lengths.has_value())
      p.key_lengths = static_cast<const int64_t*>(key_lengths->data_ptr());
    if (query_offsets.has_value())
      p.query_offsets = static_cast<const int64_t*>(query_offsets->data_ptr());
    if (p.geometry.kind == GeometryKind::kPattern) set_table(p.geometry);
    STD_TORCH_CHECK(fits(p.geometry, p.q_len, p.k_len),
                    "attn_kernels: the geometry does not fit q; call attn_kernels.attention");
  }

  void set_table(Geometry& g) const {
    STD_TORCH_CHECK(pattern.has_value() && pattern->scalar_type() == ScalarType::Long &&
                        pattern->dim() == 1 && pattern->is_contiguous() && pattern->is_cpu(),
                    "attn_kernels: a pattern's table must be one dimension of int64 on the CPU");
    g.table = static_cast<const int64_t*>(pattern->data_ptr());
    STD_TORCH_CHECK(is_sound(g, pattern->numel()),
                    "attn_kernels: not a pattern's table; call attn_kernels.attention");
  }

  // Keys and values in `dtype`, which is theirs or the arithmetic type; tables in `table_dtype`.
  void use_types(ScalarType dtype, ScalarType table_dtype, AttentionParams& p) {
    k = rows_as_type(k, dtype), v = rows_as_type(v, dtype);
    p.k = view_of(k), p.v = view_of(v), p.kv_dtype = dtype_of(k);
    if (rel_k.has_value()) rel_k = whole_as_type(*rel_k, table_dtype);
    if (rel_v.has_value()) rel_v = whole_as_type(*rel_v, table_dtype);
    p.rel_k = table(rel_k), p.rel_v = table(rel_v);
  }
};

Inputs make_inputs(const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& rel_k,
                   const OptionalTensor& rel_v, const OptionalTensor& q_rel,
                   const OptionalTensor& key_lengths, const OptionalTensor& query_offsets,
                   const OptionalTensor& pattern) {
  const bool shapes_fit = q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && k.size(0) == q.size(0) &&
                          v.size(0) == q.size(0) && k.size(3) == q.size(3) &&
                          v.size(1) == k.size(1) && v.size(2) == k.size(2) &&
                          (k.size(1) == 0 || q.size(1) % k.size(1) == 0);
  STD_TORCH_CHECK(shapes_fit,
                  "attn_kernels: the shapes of q, k and v do not fit; call attn_kernels.attention");
  Inputs in{
      rows_contiguous(q), rows_contiguous(k), rows_contiguous(v), {}, {}, {}, {}, {}, pattern};
  const auto table = [&](const OptionalTensor& x, int64_t dim) -> OptionalTensor {
    if (!x.has_value()) return {};
    STD_TORCH_CHECK(
        x->dim() == 3 && x->size(2) == dim && (x->size(0) == 1 || x->size(0) == q.size(1)),
        "attn_kernels: a relative table does not fit q; call attn_kernels.attention");
    return x;
  };
  const auto per_entry = [&](const OptionalTensor& x) -> OptionalTensor {
    if (!x.has_value()) return {};
    STD_TORCH_CHECK(x->dim() == 1 && x->size(0) == q.size(0),
                    "attn_kernels: one number per batch entry");
    return whole_as_type(*x, ScalarType::Long);
  };
  in.rel_k = table(rel_k, q.size(3)), in.rel_v = table(rel_v, v.size(3));
  if (q_rel.has_value()) in.q_rel = rows_contiguous(*q_rel);
  in.key_lengths = per_entry(key_lengths), in.query_offsets = per_entry(query_offsets);
  return in;
}

const InstructionSet& isa() {
  const InstructionSet* set = instruction_set();
  STD_TORCH_CHECK(set != nullptr,
                  "attn_kernels: no instruction set to run on; see attn_kernels.backends()");
  return *set;
}

// Whether rows of x can be read as pairs of bfloat16.
bool has_pairs(const Tensor& x) {
  bool even = x.size(3) % 2 == 0;
  for (int64_t dim = 0; dim < 3; ++dim) even = even && x.stride(dim) % 2 == 0;
  return even;
}

// The kernels for these inputs; keys and values stay in their dtype if those multiply it.
struct Choice {
  const Kernels& kernels;
  ScalarType key_type;
};

Choice choose(const Inputs& in) {
  const ScalarType dtype = in.q.scalar_type();
  if (dtype == ScalarType::Double) return {*isa().for_double, dtype};
  if (dtype == ScalarType::BFloat16 && isa().for_bfloat16 && has_pairs(in.k) && has_pairs(in.v)) {
    return {*isa().for_bfloat16, dtype};
  }
  if (dtype == ScalarType::Half && isa().for_float16) return {*isa().for_float16, dtype};
  return {*isa().for_float, ScalarType::Float};
}

int64_t tile_queries(bool is_double) { return 256 / (is_double ? 8 : 4); }
int64_t tile_queries(const Tensor& q) {
  return tile_queries(q.scalar_type() == ScalarType::Double);
}

// --- Operators ---

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                   const OptionalTensor& rel_k, const OptionalTensor& rel_v,
                                   const OptionalTensor& q_rel, const OptionalTensor& key_lengths,
                                   const OptionalTensor& query_offsets,
                                   const OptionalTensor& pattern, int64_t query_offset,
                                   const std::string& geometry, const std::vector<int64_t>& extent,
                                   bool clip, double scale, double rel_scale) {
  Inputs in = make_inputs(q, k, v, rel_k, rel_v, q_rel, key_lengths, query_offsets, pattern);
  const Tensor out = empty_in_layout(q, v.size(3));
  const Tensor lse = empty(q.size(0), q.size(1), q.size(2), arithmetic_type(q));
  if (lse.numel() == 0) return {out, lse};

  const auto [kernels, key_type] = choose(in);
  ForwardParams p;
  p.geometry = geometry_of(geometry, extent);
  in.fill(p);
  p.query_offset = query_offset, p.clip = clip, p.scale = scale, p.rel_scale = rel_scale;
  p.out = view_of(out), p.lse = lse.data_ptr();
  plan_forward(p, tile_queries(q));
  if (p.few_queries) {
    in.use_types(q.scalar_type(), arithmetic_type(q), p);
  } else {
    in.use_types(key_type, key_type, p);
  }
  if (p.splits == 1) {
    run(kernels.forward, p);
  } else {
    const Tensor partial = empty(kernels.part_bytes(p) / 4, ScalarType::Float);
    p.partial = partial.data_ptr();
    run(kernels.forward, p);
    run(kernels.merge_forward, p);
  }
  return {out, lse};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& out, const Tensor& lse,
    const Tensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& rel_k,
    const OptionalTensor& rel_v, const OptionalTensor& q_rel, const OptionalTensor& key_lengths,
    const OptionalTensor& query_offsets, const OptionalTensor& pattern, int64_t query_offset,
    const std::string& geometry, const std::vector<int64_t>& extent, bool clip, double scale,
    double rel_scale) {
  Inputs in = make_inputs(q, k, v, rel_k, rel_v, q_rel, key_lengths, query_offsets, pattern);
  const ScalarType dtype = q.scalar_type();
  const Tensor grad_q = empty_in_layout(q, q.size(3)), grad_k = empty_in_layout(k, k.size(3));
  const Tensor grad_v = empty_in_layout(v, v.size(3));
  const auto table_grad = [&](const OptionalTensor& x) {
    if (!x.has_value()) return empty(0, dtype);
    return empty(x->size(0), x->size(1), x->size(2), dtype);
  };
  const Tensor grad_rel_k = table_grad(rel_k), grad_rel_v = table_grad(rel_v);
  const Tensor grad_q_rel =
      q_rel.has_value() ? empty_in_layout(*q_rel, q.size(3)) : empty(0, dtype);

  const auto [kernels, key_type] = choose(in);
  BackwardParams p;
  p.geometry = geometry_of(geometry, extent);
  in.fill(p);
  p.query_offset = query_offset, p.clip = clip, p.scale = scale, p.rel_scale = rel_scale;
  in.use_types(key_type, key_type, p);
  const Tensor out_rows = rows_as_type(out, dtype), grad_rows = rows_as_type(grad_out, dtype);
  const Tensor lse_whole = whole_as_type(lse, arithmetic_type(q));
  OptionalTensor grad_lse_whole;
  if (grad_lse.has_value()) grad_lse_whole = whole_as_type(*grad_lse, arithmetic_type(q));
  p.out = view_of(out_rows), p.lse = lse_whole.data_ptr(), p.grad_out = view_of(grad_rows);
  if (grad_lse_whole.has_value()) p.grad_lse = grad_lse_whole->data_ptr();
  p.grad_q = view_of(grad_q), p.grad_k = view_of(grad_k), p.grad_v = view_of(grad_v);
  if (q_rel.has_value()) p.grad_q_rel = view_of(grad_q_rel);
  p.grad_rel_k = grad_rel_k.data_ptr(), p.grad_rel_v = grad_rel_v.data_ptr();
  if (p.k_heads == 0) {
    for (const Tensor& x : {grad_rel_k, grad_rel_v}) {
      if (x.numel() > 0) std::memset(x.data_ptr(), 0, x.numel() * x.element_size());
    }
    return {grad_q, grad_k, grad_v, grad_rel_k, grad_rel_v, grad_q_rel};
  }

  plan_backward(p, tile_queries(q));
  OptionalTensor key_parts, table_parts;
  if (p.chunks > 1) {
    key_parts = empty(kernels.key_part_bytes(p) / 4, ScalarType::Float);
    p.key_parts = key_parts->data_ptr();
  }
  if (rel_k.has_value()) {
    table_parts = empty(kernels.table_part_bytes(p) / 4, ScalarType::Float);
    p.table_parts = table_parts->data_ptr();
  }
  run(kernels.backward, p);
  if (p.chunks > 1) run(kernels.merge_keys, p);
  if (rel_k.has_value()) run(kernels.merge_tables, p);
  return {grad_q, grad_k, grad_v, grad_rel_k, grad_rel_v, grad_q_rel};
}

}  // namespace
}  // namespace attn_kernels

STABLE_TORCH_LIBRARY_IMPL(attn_kernels, CPU, m) {
  m.impl("fwd", TORCH_BOX(&attn_kernels::forward));
  m.impl("bwd", TORCH_BOX(&attn_kernels::backward));
}

// For explain(): how a call of these sizes is cut, and the memory it takes beside its results.
// sizes: batch, heads, k_heads, q_len, k_len, dim, v_dim, table heads, table rows, has rel_v.
// plan: few_queries, splits, forward scratch (a thread), forward parts, chunks, backward scratch
// (a thread), backward parts; all in bytes but the first, second and fifth.
extern "C" __attribute__((visibility("default"))) void attn_kernels_cpu_plan(
    const int64_t* sizes, int is_double, const char* geometry, const int64_t* extent,
    int64_t n_extent, int64_t* plan) {
  using namespace attn_kernels;
  const InstructionSet& set = isa();
  const Kernels& kernels = is_double ? *set.for_double : *set.for_float;
  const auto describe = [&](AttentionParams& p) {
    p.batch = sizes[0], p.heads = sizes[1], p.k_heads = sizes[2], p.q_len = sizes[3],
    p.k_len = sizes[4];
    p.dim = sizes[5], p.v_dim = sizes[6];
    if (sizes[8] > 0) p.rel_k = {sizes, sizes[7] == 1 ? 0 : sizes[8] * sizes[5], sizes[8]};
    if (sizes[9] > 0) p.rel_v = {sizes, sizes[7] == 1 ? 0 : sizes[8] * sizes[6], sizes[8]};
    p.geometry = geometry_of(geometry, std::vector<int64_t>(extent, extent + n_extent));
  };
  const int64_t tile = tile_queries(is_double);
  ForwardParams f;
  describe(f);
  plan_forward(f, tile);
  BackwardParams b;
  describe(b);
  plan_backward(b, tile);
  plan[0] = f.few_queries, plan[1] = f.splits, plan[2] = kernels.forward.scratch(f);
  plan[3] = f.splits > 1 ? kernels.part_bytes(f) : 0;
  plan[4] = b.chunks, plan[5] = kernels.backward.scratch(b);
  plan[6] = (b.chunks > 1 ? kernels.key_part_bytes(b) : 0) +
            (sizes[8] > 0 ? kernels.table_part_bytes(b) : 0);
}
