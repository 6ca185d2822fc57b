// The kernels without torch, over exactly sized buffers and plain threads: for the sanitizers.
//
// Forward is compared with loops in double; backward with finite differences of the same loops.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/plan.h"
#include "score.h"

using namespace attn_kernels;

extern "C" void attn_kernels_cpu_use_isa(const char* name);
extern "C" const char* attn_kernels_cpu_isas();

namespace {

template <typename Params>
void run(const Work<Params>& work, const Params& params, int threads) {
  const int64_t tasks = work.tasks(params),
                bytes = ceil_div(at_least(work.scratch(params), 64), 64) * 64;
  std::atomic<int64_t> next{0};
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&] {
      void* scratch = std::aligned_alloc(64, bytes);
      work.start(params, scratch);
      for (int64_t task; (task = next++) < tasks;) work.run(params, task, scratch);
      std::free(scratch);
    });
  }
  for (std::thread& thread : pool) thread.join();
}

struct Sizes {
  int64_t batch, heads, k_heads, q_len, k_len, dim, v_dim;
};

// What the patterns show: a prefix, a band that leaves gaps, and keys that nobody sees.
bool pattern_sees(int64_t row, int64_t key) {
  return key < 20 || (key / 16 % 3 != 1 && key % 7 != 3 && std::abs(row - key) < 60);
}

// A Pattern's table as core/pattern.py compiles it, but with every run in cells of its own.
std::vector<int64_t> pattern_table(int64_t rows, int64_t cols, int64_t* n_runs) {
  const int64_t kCell = 16;
  std::vector<int64_t> first{0};
  std::vector<PatternRun> runs;
  std::vector<int64_t> words;
  for (int64_t top = 0; top < rows; top += kGroupRows) {
    int64_t before = 0;
    for (int64_t start = 0; start < cols; start += kCell) {
      const int64_t stop = at_most(start + kCell, cols);
      std::vector<int64_t> cell;
      bool any = false, all = true;
      for (int64_t key = start; key < stop; ++key) {
        uint64_t word = 0;
        for (int64_t row = top; row < at_most(top + kGroupRows, rows); ++row) {
          const bool sees = pattern_sees(row, key);
          word |= uint64_t(sees) << (row - top), any |= sees, all &= sees;
        }
        cell.push_back(int64_t(word));
      }
      if (!any) continue;
      runs.push_back({start, stop, before, all ? -1 : int64_t(words.size())});
      if (!all) words.insert(words.end(), cell.begin(), cell.end());
      before += stop - start;
    }
    first.push_back(int64_t(runs.size()));
  }
  std::vector<int64_t> table = first;
  for (const PatternRun& run : runs) {
    const int64_t place = run.place < 0 ? -1 : run.place + int64_t(first.size() + 4 * runs.size());
    table.insert(table.end(), {run.start, run.stop, run.before, place});
  }
  table.insert(table.end(), words.begin(), words.end());
  *n_runs = int64_t(runs.size());
  return table;
}

struct Problem {
  std::string name;
  Sizes sizes;
  Geometry geometry;
  int64_t table_rows;  // 0: no relative term
  bool clip, has_lengths;
};

template <typename T>
struct Call {
  std::vector<T> q, k, v, q_rel, rel_k, rel_v, out, lse, grad_out, grad_lse;
  std::vector<T> grad_q, grad_k, grad_v, grad_q_rel, grad_rel_k, grad_rel_v;
  std::vector<int64_t> lengths, table;
  BackwardParams p;

  explicit Call(const Problem& problem) {
    const Sizes& s = problem.sizes;
    std::mt19937 random(7);
    const auto numbers = [&](int64_t n) {
      std::normal_distribution<double> normal;
      std::vector<T> x(n);
      for (T& value : x) value = T(normal(random));
      return x;
    };
    const int64_t n_q = s.batch * s.heads * s.q_len, n_k = s.batch * s.k_heads * s.k_len;
    q = numbers(n_q * s.dim), k = numbers(n_k * s.dim), v = numbers(n_k * s.v_dim);
    out = numbers(n_q * s.v_dim), lse = numbers(n_q), grad_out = numbers(n_q * s.v_dim),
    grad_lse = numbers(n_q);
    grad_q = q, grad_k = k, grad_v = v;
    p.batch = s.batch, p.heads = s.heads, p.k_heads = s.k_heads, p.q_len = s.q_len,
    p.k_len = s.k_len;
    p.dim = s.dim, p.v_dim = s.v_dim;
    p.dtype = p.kv_dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
    p.geometry = problem.geometry;
    if (p.geometry.kind == GeometryKind::kPattern) {
      Geometry& g = p.geometry;
      table = pattern_table(g.rows, g.cols, &g.n_runs);
      g.table = table.data();
      if (!is_sound(g, int64_t(table.size()))) std::abort();
    }
    p.relative.clip = problem.clip, p.scale = 0.3, p.relative.scale = 0.2;
    p.query_offset = problem.geometry.kind == GeometryKind::kLocal2d ? 0 : s.k_len - s.q_len;
    const auto view = [](std::vector<T>& x, int64_t heads, int64_t length, int64_t dim) {
      return View{x.data(), heads * length * dim, length * dim, dim};
    };
    p.q = view(q, s.heads, s.q_len, s.dim), p.grad_q = view(grad_q, s.heads, s.q_len, s.dim);
    p.k = view(k, s.k_heads, s.k_len, s.dim), p.grad_k = view(grad_k, s.k_heads, s.k_len, s.dim);
    p.v = view(v, s.k_heads, s.k_len, s.v_dim),
    p.grad_v = view(grad_v, s.k_heads, s.k_len, s.v_dim);
    p.out = view(out, s.heads, s.q_len, s.v_dim),
    p.grad_out = view(grad_out, s.heads, s.q_len, s.v_dim);
    p.lse = lse.data(), p.grad_lse = grad_lse.data();
    if (problem.has_lengths) {
      for (int64_t b = 0; b < s.batch; ++b) lengths.push_back(s.k_len * (b + 1) / (s.batch + 1));
      p.key_lengths = lengths.data();
    }
    if (const int64_t rows = problem.table_rows) {
      q_rel = numbers(q.size()), rel_k = numbers(s.heads * rows * s.dim),
      rel_v = numbers(rows * s.v_dim);
      grad_q_rel = q_rel, grad_rel_k = rel_k, grad_rel_v = rel_v;
      p.relative.query = view(q_rel, s.heads, s.q_len, s.dim),
      p.grad_relative.query = view(grad_q_rel, s.heads, s.q_len, s.dim);
      p.relative.keys = {rel_k.data(), rows * s.dim, rows};
      p.relative.zero_row = zero_row(-1, rows, p.geometry.causal);
      p.relative.values = {rel_v.data(), 0, rows};
      p.grad_relative.keys = grad_rel_k.data(), p.grad_relative.values = grad_rel_v.data();
    }
  }

  void compute(const Kernels& kernels, int threads) {
    ForwardParams f;
    static_cast<AttentionParams&>(f) = p;
    plan_forward(f, 256 / sizeof(T));
    std::vector<char> partial(f.splits > 1 ? kernels.part_bytes(f) : 0);
    f.partial = partial.data();
    run(kernels.forward, f, threads);
    if (f.splits > 1) run(kernels.merge_forward, f, threads);
    plan_backward(p, 256 / sizeof(T));
    std::vector<char> key_parts(p.chunks > 1 ? kernels.key_part_bytes(p) : 0);
    std::vector<char> table_parts(p.relative.keys.data ? kernels.table_part_bytes(p) : 0);
    p.key_parts = key_parts.data(), p.table_parts = table_parts.data();
    run(kernels.backward, p, threads);
    if (p.chunks > 1) run(kernels.merge_keys, p, threads);
    if (p.relative.keys.data) run(kernels.merge_tables, p, threads);
  }

  // out, lse and the loss sum(out * grad_out) + sum(lse * grad_lse), by definition.
  double loss(std::vector<double>& outs, std::vector<double>& lses) const {
    const auto at = [](const std::vector<T>& x, int64_t row, int64_t dim, int64_t d) {
      return double(x[row * dim + d]);
    };
    double total = 0;
    outs.clear(), lses.clear();
    for (int64_t b = 0; b < p.batch; ++b) {
      const int64_t k_len = p.key_lengths ? p.key_lengths[b] : p.k_len;
      for (int64_t h = 0; h < p.heads; ++h) {
        const int64_t k_row = (b * p.k_heads + h / (p.heads / p.k_heads)) * p.k_len;
        for (int64_t i = 0; i < p.q_len; ++i) {
          const int64_t q_row = (b * p.heads + h) * p.q_len + i, pos = i + p.query_offset;
          std::vector<double> s(p.k_len, -INFINITY);
          double highest = -INFINITY;
          for (int64_t j = 0; j < k_len; ++j) {
            if (!sees(pos, j)) continue;
            double dot = 0, rel = 0;
            for (int64_t d = 0; d < p.dim; ++d)
              dot += at(q, q_row, p.dim, d) * at(k, k_row + j, p.dim, d);
            const int64_t row = table_row(j - pos);
            for (int64_t d = 0; row >= 0 && d < p.dim; ++d) {
              rel +=
                  at(q_rel, q_row, p.dim, d) * at(rel_k, h * p.relative.keys.rows + row, p.dim, d);
            }
            s[j] = p.scale * dot + p.relative.scale * rel;
            highest = std::max(highest, s[j]);
          }
          double sum = 0;
          for (double x : s) sum += x == -INFINITY ? 0 : std::exp(x - highest);
          const double lse_i = sum > 0 ? highest + std::log(sum) : -INFINITY;
          lses.push_back(lse_i);
          if (sum > 0) total += lse_i * grad_lse[q_row];
          for (int64_t d = 0; d < p.v_dim; ++d) {
            double o = 0;
            for (int64_t j = 0; j < k_len; ++j) {
              if (s[j] == -INFINITY) continue;
              const int64_t row = table_row(j - pos);
              o += std::exp(s[j] - lse_i) *
                   (at(v, k_row + j, p.v_dim, d) + (row < 0 ? 0 : at(rel_v, row, p.v_dim, d)));
            }
            outs.push_back(o);
            total += o * grad_out[q_row * p.v_dim + d];
          }
        }
      }
    }
    return total;
  }

  bool sees(int64_t pos, int64_t key) const {
    const Geometry& g = p.geometry;
    if (g.kind == GeometryKind::kPattern) return pos >= 0 && pos < g.rows && pattern_sees(pos, key);
    if (g.kind == GeometryKind::kLocal2d) {
      const int64_t top = pos / g.cols / g.block_rows * g.block_rows,
                    left = pos % g.cols / g.block_cols * g.block_cols;
      const int64_t row = key / g.cols, col = key % g.cols;
      const bool in_box = row >= top - g.halo_rows && row < top + g.block_rows + g.halo_rows &&
                          col >= left - g.halo_cols && col < left + g.block_cols + g.halo_cols;
      const bool own =
          row >= top && row < top + g.block_rows && col >= left && col < left + g.block_cols;
      const bool before =
          row < top || (row < top + g.block_rows && col < left) || (own && key <= pos);
      return in_box && (!g.causal || before);
    }
    const Span span = visible_keys(g, pos, p.k_len);
    return key >= span.start && key < span.stop;
  }

  int64_t table_row(int64_t offset) const {
    if (p.relative.keys.rows == 0) return -1;
    const int64_t row = offset + p.relative.zero_row;
    if (row >= 0 && row < p.relative.keys.rows) return row;
    return !p.relative.clip ? -1 : row < 0 ? 0 : p.relative.keys.rows - 1;
  }
};

int failures = 0;

void expect_near(const Problem& problem, const char* what, double got, double want,
                 double tolerance) {
  if (got == want || std::fabs(got - want) <= tolerance * (1 + std::fabs(want))) return;
  std::printf("FAILED %s: %s is %g and should be %g\n", problem.name.c_str(), what, got, want);
  ++failures;
}

template <typename T>
void check(const Problem& problem, const Kernels& kernels) {
  const double tolerance = sizeof(T) == 8 ? 1e-10 : 2e-4;
  Call<T> call(problem);
  call.compute(kernels, 3);
  std::vector<double> outs, lses;
  call.loss(outs, lses);
  for (size_t i = 0; i < outs.size(); ++i)
    expect_near(problem, "out", call.out[i], outs[i], tolerance);
  for (size_t i = 0; i < lses.size(); ++i)
    expect_near(problem, "lse", call.lse[i], lses[i], tolerance);
  if (sizeof(T) != 8) return;
  const std::pair<std::vector<T>*, const std::vector<T>*> grads[] = {
      {&call.q, &call.grad_q},         {&call.k, &call.grad_k},
      {&call.v, &call.grad_v},         {&call.q_rel, &call.grad_q_rel},
      {&call.rel_k, &call.grad_rel_k}, {&call.rel_v, &call.grad_rel_v}};
  for (const auto& [input, grad] : grads) {
    for (size_t i = 0; i < input->size(); i += input->size() / 3 + 1) {
      const T before = (*input)[i];
      const double step = 1e-5;
      (*input)[i] = before + step;
      const double high = call.loss(outs, lses);
      (*input)[i] = before - step;
      const double low = call.loss(outs, lses);
      (*input)[i] = before;
      expect_near(problem, "gradient", (*grad)[i], (high - low) / (2 * step), 1e-6);
    }
  }
}

Geometry one_dimensional(GeometryKind kind, bool causal, int64_t a = 0, int64_t b = 0,
                         int64_t c = 0) {
  Geometry g;
  g.kind = kind, g.causal = causal;
  if (kind == GeometryKind::kCausal) g.window = a;
  if (kind == GeometryKind::kWindow) g.look_back = a, g.look_ahead = b;
  if (kind == GeometryKind::kLocal1d) g.block = a, g.look_back = b, g.look_ahead = c;
  return g;
}

Geometry canvas(int64_t rows, int64_t cols, int64_t bh, int64_t bw, int64_t hh, int64_t hw,
                bool causal) {
  Geometry g;
  g.kind = GeometryKind::kLocal2d, g.causal = causal;
  g.rows = rows, g.cols = cols, g.block_rows = bh, g.block_cols = bw, g.halo_rows = hh,
  g.halo_cols = hw;
  return g;
}

}  // namespace

int main() {
  const Sizes small{2, 4, 2, 37, 37, 5, 3}, longer{1, 2, 2, 70, 150, 16, 17},
      shorter{1, 2, 1, 90, 41, 8, 8};
  const Sizes few{2, 4, 2, 2, 1100, 19, 18}, chunked{1, 1, 1, 300, 300, 4, 4};
  std::vector<Problem> problems;
  for (const Sizes& sizes : {small, longer, shorter, few, chunked}) {
    for (const Geometry& g :
         {one_dimensional(GeometryKind::kFull, false), one_dimensional(GeometryKind::kCausal, true),
          one_dimensional(GeometryKind::kCausal, true, 19),
          one_dimensional(GeometryKind::kLocal1d, true, 16, 16),
          one_dimensional(GeometryKind::kLocal1d, false, 7, 3, 5),
          one_dimensional(GeometryKind::kWindow, false, 12, 5)}) {
      for (int64_t rows : {0, 9, 801}) {
        const std::string name = "geometry " + std::to_string(int(g.kind)) + ", " +
                                 std::to_string(sizes.q_len) + " queries, table " +
                                 std::to_string(rows);
        problems.push_back({name, sizes, g, rows, rows != 9, rows != 0});
      }
    }
  }
  for (const Sizes& sizes : {small, longer, few}) {
    for (int64_t rows : {0, 33}) {
      Geometry g;
      g.kind = GeometryKind::kPattern, g.rows = sizes.k_len + 3, g.cols = sizes.k_len + 5;
      const std::string name =
          "pattern, " + std::to_string(sizes.q_len) + " queries, table " + std::to_string(rows);
      problems.push_back({name, sizes, g, rows, true, rows != 0});
    }
  }
  for (bool causal : {false, true}) {
    problems.push_back({"canvas 7x13",
                        {1, 2, 1, 91, 91, 6, 5},
                        canvas(7, 13, 3, 4, 2, 5, causal),
                        0,
                        true,
                        causal});
    problems.push_back({"canvas 17x9",
                        {1, 1, 1, 153, 153, 4, 4},
                        canvas(17, 9, 16, 16, 1, 0, causal),
                        0,
                        true,
                        false});
    problems.push_back({"canvas 12x20, shared columns",
                        {1, 2, 1, 240, 240, 16, 16},
                        canvas(12, 20, 8, 8, 4, 4, causal),
                        0,
                        true,
                        false});
  }
  std::string isas = attn_kernels_cpu_isas();
  for (size_t begin = 0; begin < isas.size();) {
    const size_t end = std::min(isas.find(',', begin), isas.size());
    attn_kernels_cpu_use_isa(isas.substr(begin, end - begin).c_str());
    begin = end + 1;
    for (const Problem& problem : problems) {
      check<float>(problem, *instruction_set()->for_float);
      check<double>(problem, *instruction_set()->for_double);
    }
    std::printf("%s: %zu problems\n", instruction_set()->name, problems.size());
  }
  if (failures == 0) std::printf("all well\n");
  return failures != 0;
}
