// glomo_kernels._cpu: the kernels of kernels.h for Python. Arrays come as addresses (0 for none), so that no
// torch header is needed; the Python callers (glomo_kernels/*/cpp.py) see to shapes, types and lifetimes.

#include <pybind11/pybind11.h>

#include <tuple>
#include <variant>
#include <vector>

#include "bfloat16.h"
#include "kernels.h"
#include "look.h"
#include "simd.h"

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using Size = std::int64_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Calls f with a null pointer of the element type: f(float*) or f(double*).
template <class F>
void with_type(bool is_double, const F& f) {
  const py::gil_scoped_release release;
  if (is_double) {
    f(static_cast<double*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

// The same of the elements' type, which may be half of a float, too.
template <class F>
void with_element(bool is_double, bool is_half, const F& f) {
  with_type(is_double, [&](auto* type) {
    if (is_half) {
      f(static_cast<glomo::Half*>(nullptr));
    } else {
      f(type);
    }
  });
}

struct AffinityArguments {
  bool is_double;
  Address q, k, theta, spans, topk;
  Size batch, heads, units, width;
  int kind;
  Size keep;
  bool renormalise;

  template <class T>
  glomo::Affinity<T> as() const {
    return {at<const T>(q), at<const T>(k), at<const T>(theta), at<const Size>(spans), at<const Size>(topk),
            batch, heads, units, width, static_cast<glomo::Kind>(kind), keep, renormalise};
  }
};

struct FoundEdges {
  FoundEdges() = default;
  FoundEdges(FoundEdges&&) = default;  // and no copy: a vector of what cannot be copied claims that it can

  std::variant<std::vector<glomo::EdgeRun<float>>, std::vector<glomo::EdgeRun<double>>> runs;
};

using RowsArguments = std::tuple<Address, Size, Size, Size>;  // address and strides of sample, head, row

template <class T>
glomo::Rows<T> rows(const RowsArguments& r) {
  return {at<const T>(std::get<0>(r)), std::get<1>(r), std::get<2>(r), std::get<3>(r)};
}

struct MixArguments {
  bool is_double, is_half;
  RowsArguments q, k, v;
  Address theta, spans, topk;
  Size batch, heads, rows_count, units, width, values;
  int kind;

  template <class E>
  glomo::Mix<E> as() const {
    return {rows<E>(q), rows<E>(k), rows<E>(v), at<const glomo::Sum<E>>(theta), at<const Size>(spans),
            at<const Size>(topk),
            batch, heads, rows_count, units, width, values, static_cast<glomo::Kind>(kind)};
  }
};

struct GraphArguments {
  bool is_double;
  Address offsets, columns, values;
  Size batch, components, units, first, count;

  template <class T>
  glomo::Graphs<T> as() const {
    return {at<const Size>(offsets), at<const std::int32_t>(columns), at<const T>(values), batch, components,
            units, first, count};
  }
};

struct LayeredArguments {
  GraphArguments graphs;
  Size heads;
  Address weights;
  bool per_unit;
  Size width;

  template <class T>
  glomo::LayeredMix<T> as() const {
    return {graphs.as<T>(), heads, at<const T>(weights), per_unit, width};
  }
};

struct DecoderArguments {
  bool is_double, is_half;
  Address hidden, weight, target;
  int stored;
  Size rows, words, width;

  template <class E>
  glomo::Decoder<E> as() const {
    return {at<const E>(hidden), at<const void>(weight), static_cast<glomo::Stored>(stored), at<const Size>(target),
            rows, words, width};
  }
};

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "Compiled CPU kernels; called by glomo_kernels, not by users.";
  m.attr("interface") = glomo::INTERFACE;
  m.def("instruction_set", [] { return glomo::simd<float>().name; });
  m.def("bfloat16", [] { return glomo::bfloat16() ? glomo::bfloat16()->name : ""; });
  m.def("look", [] { return glomo::Look::name(); });

  py::class_<AffinityArguments>(m, "Affinity")
      .def(py::init([](bool is_double, Address q, Address k, Address theta, Address spans, Address topk, Size batch,
                       Size heads, Size units, Size width, int kind, Size keep, bool renormalise) {
             return AffinityArguments{is_double, q,     k,     theta, spans, topk,       batch,
                                      heads,     units, width, kind,  keep,  renormalise};
           }),
           py::kw_only(), py::arg("is_double"), py::arg("q"), py::arg("k"), py::arg("theta"), py::arg("spans"),
           py::arg("topk"), py::arg("batch"), py::arg("heads"), py::arg("units"), py::arg("width"),
           py::arg("kind"), py::arg("keep"), py::arg("renormalise"));
  py::class_<FoundEdges>(m, "FoundEdges")
      .def("place", [](FoundEdges& found, Address offsets, Address columns, Address weights, int threads) {
        const py::gil_scoped_release release;
        std::visit([&](auto& runs) {
          using T = typename std::remove_reference_t<decltype(runs)>::value_type::Element;
          glomo::place_edges<T>(runs, at<const Size>(offsets), at<std::int32_t>(columns), at<T>(weights), threads);
        }, found.runs);
      });
  m.def("find_edges", [](const AffinityArguments& a, Address counts, int threads) {
    FoundEdges found;
    with_type(a.is_double, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      found.runs = glomo::find_edges<T>(a.as<T>(), at<Size>(counts), threads);
    });
    return found;
  });
  m.def("affinity_graph_backward",
        [](const AffinityArguments& a, Address offsets, Address columns, Address weights, Address grad, Address dq,
           Address dk, Address dtheta, int threads) {
          with_type(a.is_double, [&](auto* type) {
            using T = std::remove_pointer_t<decltype(type)>;
            glomo::affinity_graph_backward<T>(a.as<T>(), at<const Size>(offsets), at<const std::int32_t>(columns),
                                              at<const T>(weights), at<const T>(grad), at<T>(dq), at<T>(dk),
                                              at<T>(dtheta), threads);
          });
        });

  py::class_<MixArguments>(m, "Mix")
      .def(py::init([](bool is_double, bool is_half, RowsArguments q, RowsArguments k, RowsArguments v, Address theta,
                       Address spans, Address topk, Size batch, Size heads, Size rows, Size units, Size width,
                       Size values, int kind) {
             return MixArguments{is_double, is_half, q,     k,     v,      theta, spans, topk,
                                 batch,     heads,   rows,  units, width,  values, kind};
           }),
           py::kw_only(), py::arg("is_double"), py::arg("is_half"), py::arg("q"), py::arg("k"), py::arg("v"),
           py::arg("theta"), py::arg("spans"), py::arg("topk"), py::arg("batch"), py::arg("heads"), py::arg("rows"),
           py::arg("units"), py::arg("width"), py::arg("values"), py::arg("kind"));
  m.def("affinity_mix", [](const MixArguments& a, Address mixed, Address norm, Address live, Address edges,
                           Address entropy, Address kept, int most, int threads) {
    with_element(a.is_double, a.is_half, [&](auto* type) {
      using E = std::remove_pointer_t<decltype(type)>;
      using T = glomo::Sum<E>;
      glomo::affinity_mix<E>(a.as<E>(), at<E>(mixed), at<T>(norm), at<std::uint8_t>(live), at<std::int32_t>(edges),
                             at<T>(entropy), at<T>(kept), static_cast<glomo::Keep>(most), threads);
    });
  });
  m.def("affinity_mix_backward", [](const MixArguments& a, RowsArguments grad, Address norm, Address live, Address kept,
                                    int most, Address dq, Address dk, Address dv, Address dtheta, int threads) {
    with_element(a.is_double, a.is_half, [&](auto* type) {
      using E = std::remove_pointer_t<decltype(type)>;
      using T = glomo::Sum<E>;
      glomo::affinity_mix_backward<E>(a.as<E>(), rows<E>(grad), at<const T>(norm), at<const std::uint8_t>(live),
                                      at<const T>(kept), static_cast<glomo::Keep>(most), at<E>(dq), at<E>(dk),
                                      at<E>(dv), at<T>(dtheta), threads);
    });
  });

  py::class_<GraphArguments>(m, "Graphs")
      .def(py::init([](bool is_double, Address offsets, Address columns, Address values, Size batch,
                       Size components, Size units, Size first, Size count) {
             return GraphArguments{is_double, offsets, columns, values, batch, components, units, first, count};
           }),
           py::kw_only(), py::arg("is_double"), py::arg("offsets"), py::arg("columns"), py::arg("values"),
           py::arg("batch"), py::arg("components"), py::arg("units"), py::arg("first"), py::arg("count"));
  m.def("apply", [](const GraphArguments& g, Address x, Size width, Address result, int threads) {
    with_type(g.is_double, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      glomo::apply<T>(g.as<T>(), at<const T>(x), false, width, at<T>(result), threads);
    });
  });
  m.def("apply_backward", [](const GraphArguments& g, Address grad, Size width, Address dx, int threads) {
    with_type(g.is_double, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      glomo::apply_backward<T>(g.as<T>(), at<const T>(grad), false, width, at<T>(dx), threads);
    });
  });

  py::class_<LayeredArguments>(m, "LayeredMix")
      .def(py::init([](const GraphArguments& graphs, Size heads, Address weights, bool per_unit, Size width) {
             return LayeredArguments{graphs, heads, weights, per_unit, width};
           }),
           py::kw_only(), py::arg("graphs"), py::arg("heads"), py::arg("weights"), py::arg("per_unit"),
           py::arg("width"));
  m.def("mix", [](const LayeredArguments& p, Address features, Address result, int threads) {
    with_type(p.graphs.is_double, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      glomo::mix_products<T>(p.as<T>(), at<const T>(features), at<T>(result), threads);
    });
  });
  m.def("mix_backward", [](const LayeredArguments& p, Address grad, Address features, Address d_weights,
                           Address d_features, int threads) {
    with_type(p.graphs.is_double, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      const auto problem = p.as<T>();
      const T* dy = at<const T>(grad);
      if (d_weights) {
        glomo::mix_products_backward_weights<T>(problem, dy, at<const T>(features), at<T>(d_weights), threads);
      }
      if (d_features) glomo::mix_products_backward_features<T>(problem, dy, at<T>(d_features), threads);
    });
  });

  py::class_<DecoderArguments>(m, "Decoder")
      .def(py::init([](bool is_double, bool is_half, Address hidden, Address weight, Address target, int stored,
                       Size rows, Size words, Size width) {
             return DecoderArguments{is_double, is_half, hidden, weight, target, stored, rows, words, width};
           }),
           py::kw_only(), py::arg("is_double"), py::arg("is_half"), py::arg("hidden"), py::arg("weight"),
           py::arg("target"), py::arg("stored"), py::arg("rows"), py::arg("words"), py::arg("width"));
  m.attr("decoder_block") = glomo::DECODER_BLOCK;
  m.def("decoder_exponentials", [](const DecoderArguments& d, Address kept, Address peak, Address sum,
                                   Address likelihood, int threads) {
    with_element(d.is_double, d.is_half, [&](auto* type) {
      using E = std::remove_pointer_t<decltype(type)>;
      using T = glomo::Sum<E>;
      glomo::decoder_exponentials<E>(d.as<E>(), at<T>(kept), at<T>(peak), at<T>(sum), at<T>(likelihood), threads);
    });
  });
  m.def("decoder_gradients", [](const DecoderArguments& d, Address kept, Address factor, Address slope,
                                Address d_hidden, Address d_weight, bool accumulate, int threads) {
    with_element(d.is_double, d.is_half, [&](auto* type) {
      using E = std::remove_pointer_t<decltype(type)>;
      using T = glomo::Sum<E>;
      glomo::decoder_gradients<E>(d.as<E>(), at<T>(kept), at<const T>(factor), at<const T>(slope), at<T>(d_hidden),
                                  at<T>(d_weight), accumulate, threads);
    });
  });
}
