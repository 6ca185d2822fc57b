// The operators' CPU implementations: the only C++ that knows torch, over its stable ABI.
//
// Shapes and dtypes were checked in Python (core/validate.py); here only what memory safety needs.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
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
#include "score.h"

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

// The arguments that both operators share; core/call.py says what they are.
struct Call {
  const Tensor &q, &k, &v;
  const std::vector<Tensor>& terms;
  const OptionalTensor &key_lengths, &query_offsets, &table;
  int64_t query_offset;
  const std::string& names;
  const std::vector<int64_t>& integers;
  const std::vector<double>& numbers;
};

// What a geometry and the terms of a score have, read one after the other.
template <typename T>
class Parts {
 public:
  explicit Parts(const std::vector<T>& parts) : parts_(parts) {}
  const T& next() {
    STD_TORCH_CHECK(read_ < parts_.size(),
                    "attn_kernels: a part of the call lacks; call attn_kernels.attention");
    return parts_[read_++];
  }
  void finish() const {
    STD_TORCH_CHECK(read_ == parts_.size(),
                    "attn_kernels: a part of the call is too many; call attn_kernels.attention");
  }

 private:
  const std::vector<T>& parts_;
  size_t read_ = 0;
};

Geometry geometry_of(const std::string& name, Parts<int64_t>& numbers) {
  Geometry g;
  const auto read = [&](auto&... fields) { ((fields = numbers.next()), ...); };
  if (name == "full") {
  } else if (name == "causal") {
    g.kind = GeometryKind::kCausal, g.causal = true;
    read(g.window);
  } else if (name == "local_1d") {
    g.kind = GeometryKind::kLocal1d;
    read(g.block, g.look_back, g.look_ahead, g.causal);
  } else if (name == "window") {
    g.kind = GeometryKind::kWindow;
    read(g.look_back, g.look_ahead);
  } else if (name == "local_2d") {
    g.kind = GeometryKind::kLocal2d;
    read(g.rows, g.cols, g.block_rows, g.block_cols, g.halo_rows, g.halo_cols, g.causal);
  } else if (name == "pattern") {
    g.kind = GeometryKind::kPattern;
    read(g.rows, g.cols, g.n_runs);
  } else {
    STD_TORCH_CHECK(false, "attn_kernels: unknown geometry ", name);
  }
  return g;
}

// A call's tensors as the kernels read them: what has to stay alive while their pointers are in
// use.
struct Inputs {
  Tensor q, k, v;
  OptionalTensor rel_k, rel_v, q_rel, key_lengths, query_offsets, pattern;
  std::vector<std::string> terms;  // their names, in order
  OptionalTensor bias_table;
  RelativeTerm relative;
  BiasTerm bias;
  double scale = 1;

  Geometry geometry;

  explicit Inputs(const Call& call)
      : q(rows_contiguous(call.q)),
        k(rows_contiguous(call.k)),
        v(rows_contiguous(call.v)),
        key_lengths(per_entry(call.key_lengths)),
        query_offsets(per_entry(call.query_offsets)),
        pattern(call.table) {
    const bool shapes_fit =
        q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && k.size(0) == q.size(0) &&
        v.size(0) == q.size(0) && k.size(3) == q.size(3) && v.size(1) == k.size(1) &&
        v.size(2) == k.size(2) && (k.size(1) == 0 || q.size(1) % k.size(1) == 0);
    STD_TORCH_CHECK(
        shapes_fit,
        "attn_kernels: the shapes of q, k and v do not fit; call attn_kernels.attention");
    // names: the backend, the geometry and the terms of the score
    const size_t first = call.names.find(' '), second = call.names.find(' ', first + 1);
    STD_TORCH_CHECK(second != std::string::npos, "attn_kernels: names must be three, got ",
                    call.names);
    Parts<Tensor> tensors(call.terms);
    Parts<int64_t> integers(call.integers);
    Parts<double> numbers(call.numbers);
    scale = numbers.next();
    geometry = geometry_of(call.names.substr(first + 1, second - first - 1), integers);
    for (size_t begin = second + 1; begin < call.names.size();) {
      const size_t end = std::min(call.names.find('+', begin), call.names.size());
      terms.push_back(call.names.substr(begin, end - begin));
      read_term(terms.back(), tensors, integers, numbers);
      begin = end + 1;
    }
    tensors.finish(), integers.finish(), numbers.finish();
  }

  void read_term(const std::string& name, Parts<Tensor>& tensors, Parts<int64_t>& integers,
                 Parts<double>& numbers) {
    if (name == "relative") {
      // The bits are those of score/relative.py.
      constexpr int64_t kClip = 1, kHasValues = 2, kHasQuery = 4;
      STD_TORCH_CHECK(!rel_k.has_value(), "attn_kernels: at most one term of a score is relative");
      const int64_t flags = integers.next(), zero = integers.next();
      relative.clip = flags & kClip, relative.scale = numbers.next();
      rel_k = head_tables(tensors.next(), q.size(3));
      relative.zero_row = zero_row(zero, rel_k->size(1), geometry.causal);
      if (flags & kHasValues) rel_v = head_tables(tensors.next(), v.size(3));
      if (flags & kHasQuery) {
        q_rel = rows_contiguous(tensors.next());
        relative.query = view_of(*q_rel);
      }
    } else if (name == "bias") {
      STD_TORCH_CHECK(!bias_table.has_value(),
                      "attn_kernels: at most one term of a score is a bias");
      bias.clip = integers.next();
      const int64_t zero = integers.next();
      const Tensor& x = tensors.next();
      STD_TORCH_CHECK(x.dim() == 2 && (x.size(0) == 1 || x.size(0) == q.size(1)),
                      "attn_kernels: a bias does not fit q; call attn_kernels.attention");
      bias.zero_row = zero_row(zero, x.size(1), geometry.causal);
      bias_table = whole_as_type(x, arithmetic_type(q));
      bias.table = {bias_table->data_ptr(), x.size(0) == 1 ? 0 : x.size(1), x.size(1)};
    } else {
      STD_TORCH_CHECK(false, "attn_kernels: unknown term ", name);
    }
  }

  // Room for the gradients of the terms' tensors, in their order and layouts.
  std::vector<Tensor> term_grads(const Call& call, BackwardParams& p) const {
    std::vector<Tensor> grads;
    const auto table_grad = [&](const Tensor& x) {
      return grads.emplace_back(empty(x.size(0), x.size(1), x.size(2), q.scalar_type())).data_ptr();
    };
    for (const std::string& name : terms) {
      if (name == "relative") {
        p.grad_relative.keys = table_grad(*rel_k);
        if (rel_v.has_value()) p.grad_relative.values = table_grad(*rel_v);
        if (q_rel.has_value()) {
          const Tensor& x = call.terms[grads.size()];
          p.grad_relative.query = view_of(grads.emplace_back(empty_in_layout(x, x.size(3))));
        }
      } else {
        const Tensor& x = call.terms[grads.size()];
        grads.push_back(empty_strided({x.size(0), x.size(1)}, {x.size(1), 1}, x.scalar_type()));
        p.grad_bias = grads.back().data_ptr(), p.bias_dtype = dtype_of(x);
      }
    }
    return grads;
  }

  Tensor head_tables(const Tensor& x, int64_t dim) const {
    STD_TORCH_CHECK(x.dim() == 3 && x.size(2) == dim && (x.size(0) == 1 || x.size(0) == q.size(1)),
                    "attn_kernels: a relative table does not fit q; call attn_kernels.attention");
    return x;
  }

  OptionalTensor per_entry(const OptionalTensor& x) const {
    if (!x.has_value()) return {};
    STD_TORCH_CHECK(x->dim() == 1 && x->size(0) == q.size(0),
                    "attn_kernels: one number per batch entry");
    return whole_as_type(*x, ScalarType::Long);
  }

  Table table(const OptionalTensor& x) const {
    if (!x.has_value()) return {};
    return {x->data_ptr(), x->size(0) == 1 ? 0 : x->size(1) * x->size(2), x->size(1)};
  }

  void fill(const Call& call, AttentionParams& p) const {
    p.batch = q.size(0), p.heads = q.size(1), p.q_len = q.size(2), p.dim = q.size(3);
    p.k_heads = k.size(1), p.k_len = k.size(2), p.v_dim = v.size(3);
    p.dtype = dtype_of(q);
    p.q = view_of(q);
    if (key_lengths.has_value())
      p.key_lengths = static_cast<const int64_t*>(key_lengths->data_ptr());
    if (query_offsets.has_value())
      p.query_offsets = static_cast<const int64_t*>(query_offsets->data_ptr());
    p.query_offset = call.query_offset, p.scale = scale, p.relative = relative, p.bias = bias;
    p.geometry = geometry;
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
    p.relative.keys = table(rel_k), p.relative.values = table(rel_v);
  }
};

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

std::tuple<Tensor, Tensor> forward(const Call& call) {
  Inputs in(call);
  const Tensor &q = call.q, &v = call.v;
  const Tensor out = empty_in_layout(q, v.size(3));
  const Tensor lse = empty(q.size(0), q.size(1), q.size(2), arithmetic_type(q));
  if (lse.numel() == 0) return {out, lse};

  const auto [kernels, key_type] = choose(in);
  ForwardParams p;
  in.fill(call, p);
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

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> backward(const Tensor& grad_out,
                                                                 const OptionalTensor& grad_lse,
                                                                 const Tensor& out,
                                                                 const Tensor& lse,
                                                                 const Call& call) {
  Inputs in(call);
  const Tensor &q = call.q, &k = call.k, &v = call.v;
  const ScalarType dtype = q.scalar_type();
  const Tensor grad_q = empty_in_layout(q, q.size(3)), grad_k = empty_in_layout(k, k.size(3));
  const Tensor grad_v = empty_in_layout(v, v.size(3));
  const auto [kernels, key_type] = choose(in);
  BackwardParams p;
  in.fill(call, p);
  in.use_types(key_type, key_type, p);
  const Tensor out_rows = rows_as_type(out, dtype), grad_rows = rows_as_type(grad_out, dtype);
  const Tensor lse_whole = whole_as_type(lse, arithmetic_type(q));
  OptionalTensor grad_lse_whole;
  if (grad_lse.has_value()) grad_lse_whole = whole_as_type(*grad_lse, arithmetic_type(q));
  p.out = view_of(out_rows), p.lse = lse_whole.data_ptr(), p.grad_out = view_of(grad_rows);
  if (grad_lse_whole.has_value()) p.grad_lse = grad_lse_whole->data_ptr();
  p.grad_q = view_of(grad_q), p.grad_k = view_of(grad_k), p.grad_v = view_of(grad_v);
  const std::vector<Tensor> grad_terms = in.term_grads(call, p);
  if (p.k_heads == 0) {  // there are no queries either
    for (const Tensor& x : grad_terms) {
      if (x.numel() > 0) std::memset(x.data_ptr(), 0, x.numel() * x.element_size());
    }
    return {grad_q, grad_k, grad_v, grad_terms};
  }

  plan_backward(p, tile_queries(q));
  OptionalTensor key_parts, table_parts;
  if (p.chunks > 1) {
    key_parts = empty(kernels.key_part_bytes(p) / 4, ScalarType::Float);
    p.key_parts = key_parts->data_ptr();
  }
  if (!call.terms.empty()) {
    table_parts = empty(kernels.table_part_bytes(p) / 4, ScalarType::Float);
    p.table_parts = table_parts->data_ptr();
  }
  run(kernels.backward, p);
  if (p.chunks > 1) run(kernels.merge_keys, p);
  if (!call.terms.empty()) run(kernels.merge_tables, p);
  return {grad_q, grad_k, grad_v, grad_terms};
}

// --- Registered: the operators' arguments in the order of their schema ---

std::tuple<Tensor, Tensor> fwd(const Tensor& q, const Tensor& k, const Tensor& v,
                               const std::vector<Tensor>& terms, const OptionalTensor& key_lengths,
                               const OptionalTensor& query_offsets, const OptionalTensor& table,
                               int64_t query_offset, const std::string& names,
                               const std::vector<int64_t>& integers,
                               const std::vector<double>& numbers) {
  return forward(
      {q, k, v, terms, key_lengths, query_offsets, table, query_offset, names, integers, numbers});
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> bwd(
    const Tensor& grad_out, const OptionalTensor& grad_lse, const Tensor& out, const Tensor& lse,
    const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<Tensor>& terms,
    const OptionalTensor& key_lengths, const OptionalTensor& query_offsets,
    const OptionalTensor& table, int64_t query_offset, const std::string& names,
    const std::vector<int64_t>& integers, const std::vector<double>& numbers) {
  return backward(
      grad_out, grad_lse, out, lse,
      {q, k, v, terms, key_lengths, query_offsets, table, query_offset, names, integers, numbers});
}

}  // namespace
}  // namespace attn_kernels

STABLE_TORCH_LIBRARY_IMPL(attn_kernels, CPU, m) {
  m.impl("fwd", TORCH_BOX(&attn_kernels::fwd));
  m.impl("bwd", TORCH_BOX(&attn_kernels::bwd));
}

// For explain(): how a call of these sizes is cut, and the memory it takes beside its results.
// sizes: batch, heads, k_heads, q_len, k_len, dim, v_dim, table heads, table rows, has rel_v, bias
// heads, bias rows.
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
    if (sizes[8] > 0) p.relative.keys = {sizes, sizes[7] == 1 ? 0 : sizes[8] * sizes[5], sizes[8]};
    if (sizes[9] > 0)
      p.relative.values = {sizes, sizes[7] == 1 ? 0 : sizes[8] * sizes[6], sizes[8]};
    if (sizes[11] > 0) p.bias.table = {sizes, sizes[10] == 1 ? 0 : sizes[11], sizes[11]};
    const std::vector<int64_t> integers(extent, extent + n_extent);
    Parts<int64_t> parts(integers);
    p.geometry = geometry_of(geometry, parts);
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
            (sizes[8] + sizes[11] > 0 ? kernels.table_part_bytes(b) : 0);
}
