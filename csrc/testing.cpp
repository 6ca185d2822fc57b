// attn_kernels._testing: the C++ rules and primitives, shown to the tests. Not part of the library.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "cpu/kernels.h"
#include "score.h"

namespace py = pybind11;
using namespace attn_kernels;

namespace {

struct TileRules {
  std::vector<int64_t> queries;                      // index of each query
  std::vector<int64_t> keys;                         // position of each gathered key
  std::vector<std::pair<int64_t, int64_t>> visible;  // of each query: gathered keys [start, stop)
};

std::vector<TileRules> tiles(int kind, bool causal, const std::vector<int64_t>& n,
                             int64_t tile_size, int64_t q_len, int64_t k_len,
                             int64_t query_offset) {
  Geometry g;
  g.kind = GeometryKind(kind), g.causal = causal;
  if (g.kind == GeometryKind::kCausal) g.window = n[0];
  if (g.kind == GeometryKind::kWindow) g.look_back = n[0], g.look_ahead = n[1];
  if (g.kind == GeometryKind::kLocal1d) g.block = n[0], g.look_back = n[1], g.look_ahead = n[2];
  if (g.kind == GeometryKind::kLocal2d) {
    g.rows = n[0], g.cols = n[1], g.block_rows = n[2], g.block_cols = n[3];
    g.halo_rows = n[4], g.halo_cols = n[5];
  }
  std::vector<TileRules> all;
  for (int64_t index = 0; index < tile_count(g, q_len, tile_size); ++index) {
    const QueryTile tile = query_tile(g, index, tile_size, q_len, k_len, query_offset);
    TileRules rules;
    for_queries(g, tile, [&](int i, int64_t index) {
      rules.queries.push_back(index);
      const Span span = visible_span(g, tile, i, k_len);
      rules.visible.emplace_back(span.start, span.stop);
    });
    while (int64_t(rules.keys.size()) < tile.n_keys) {
      const Span run = key_run(g, tile, int64_t(rules.keys.size()));
      for (int64_t key = run.start; key < run.stop; ++key) rules.keys.push_back(key);
    }
    all.push_back(rules);
  }
  return all;
}

std::tuple<int64_t, int64_t, int64_t, int64_t> cut_band(int64_t first, int64_t count, int64_t rows,
                                                        bool causal) {
  const BandRows cut = band_rows(first, count, rows, zero_row(-1, rows, causal));
  return {cut.below, cut.inside, cut.above, cut.row};
}

// `set` is the address of an InstructionSet, from the library itself: what is tested is what runs.
template <typename T>
const Kernels& table(uintptr_t set) {
  const auto* row = reinterpret_cast<const InstructionSet*>(set);
  return sizeof(T) == 8 ? *row->for_double : *row->for_float;
}

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
void define(py::module_& m) {
  m.def("lanes", [](uintptr_t set, Array<T>) { return table<T>(set).lanes; });
  m.def("exp2", [](uintptr_t set, Array<T> x) {
    Array<T> y(x.size());
    table<T>(set).exp2(x.data(), y.mutable_data(), x.size());
    return y;
  });
  m.def("transpose", [](uintptr_t set, Array<T> x) {
    Array<T> y({x.shape(0), x.shape(1)});
    table<T>(set).transpose(x.data(), y.mutable_data(), x.shape(0) / table<T>(set).lanes);
    return y;
  });
  // from holds `before` rows above row 0; pitch is the arrays' width, which must be the tile's.
  m.def("shear", [](uintptr_t set, int sign, Array<T> from, int64_t before, Array<T> to) {
    Array<T> sum({to.shape(0), to.shape(1)});
    std::copy(to.data(), to.data() + to.size(), sum.mutable_data());
    table<T>(set).shear(sign, from.data() + before * from.shape(1), sum.mutable_data(),
                        to.shape(0));
    return sum;
  });
}

}  // namespace

PYBIND11_MODULE(_testing, m) {
  py::class_<TileRules>(m, "TileRules")
      .def_readonly("queries", &TileRules::queries)
      .def_readonly("keys", &TileRules::keys)
      .def_readonly("visible", &TileRules::visible);
  m.def("tiles", &tiles);
  m.def("band_rows", &cut_band);
  define<float>(m);
  define<double>(m);
}
