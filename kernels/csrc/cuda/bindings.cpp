// glomo_kernels._cuda: the launchers of kernels.h for Python. Arrays come as addresses (0 for none) and the stream as
// an integer, so that no torch header is needed; the Python callers (glomo_kernels/*/cuda.py) see to shapes, types,
// devices and lifetimes.

#include "kernels.h"

#include <pybind11/pybind11.h>

#include <cstdint>

namespace py = pybind11;

namespace {

using namespace glomo::cuda;
using Address = std::uintptr_t;
using Size = std::int64_t;

template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Stream stream_of(Address stream) { return reinterpret_cast<Stream>(stream); }

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "Compiled CUDA kernels; called by glomo_kernels, not by users.";
  m.attr("interface") = INTERFACE;
  m.def("set_device", &set_device);
  m.def("problem", &problem, "Why the kernels cannot run on the current device; empty if they can.");

  // module_local: the tests load a second build of this module, for their emulator, into the same process.
  py::class_<Affinity>(m, "Affinity", py::module_local())
      .def(py::init([](int type, Address q, Address k, Address theta, Address spans, Size batch, Size heads,
                       Size units, Size width, Size first, Size rows, int kind) {
             return Affinity{static_cast<Type>(type), at<const void>(q), at<const void>(k), at<const void>(theta),
                             at<const Size>(spans), batch, heads, units, width, first, rows,
                             static_cast<Kind>(kind)};
           }),
           py::kw_only(), py::arg("type"), py::arg("q"), py::arg("k"), py::arg("theta"), py::arg("spans"),
           py::arg("batch"), py::arg("heads"), py::arg("units"), py::arg("width"), py::arg("first"),
           py::arg("rows"), py::arg("kind"));
  py::class_<Cut>(m, "Cut", py::module_local()).def(py::init([](Address limits, Address last) {
    return Cut{at<const void>(limits), at<const std::int32_t>(last)};
  }));
  py::class_<Rows>(m, "Rows", py::module_local()).def(py::init([](Address offsets, Address columns) {
    return Rows{at<const Size>(offsets), at<const std::int32_t>(columns)};
  }));
  m.def("select", [](const Affinity& problem, Size keep, Address topk, Address limits, Address last, Address stream) {
    select(problem, keep, at<const Size>(topk), at(limits), at<std::int32_t>(last), stream_of(stream));
  });
  m.def("count", [](const Affinity& problem, Cut edges, Cut whole, Address counts, Address totals, Address stream) {
    count(problem, edges, whole, at<Size>(counts), at<double>(totals), stream_of(stream));
  });
  m.def("fill", [](const Affinity& problem, Cut edges, Address totals, Address offsets, Address columns,
                   Address values, Address stream) {
    fill(problem, edges, at<const double>(totals), at<const Size>(offsets), at<std::int32_t>(columns), at(values),
         stream_of(stream));
  });
  m.def("roots", [](const Affinity& problem, Address offsets, Address columns, Address result, Address stream) {
    roots(problem, at<const Size>(offsets), at<const std::int32_t>(columns), at(result), stream_of(stream));
  });
  m.def("slopes", [](int type, Size rows, Rows edges, Address weights, Address grad, Rows whole, Address roots,
                     Address result, Address d_theta, Address stream) {
    slopes(static_cast<Type>(type), rows, edges, at(weights), at(grad), whole, at(roots), at(result), at(d_theta),
           stream_of(stream));
  });

  py::class_<Combine>(m, "Combine", py::module_local())
      .def(py::init([](int type, Address offsets, Address sources, Address values, Address weights, bool per_unit,
                       Address x, bool shared, Size batch, Size outer, Size inner, Size components, Size first,
                       Size units, Size source_rows, Size width) {
             return Combine{static_cast<Type>(type), at<const Size>(offsets), at<const std::int32_t>(sources),
                            at<const void>(values), at<const void>(weights), per_unit, at<const void>(x), shared,
                            batch, outer, inner, components, first, units, source_rows, width};
           }),
           py::kw_only(), py::arg("type"), py::arg("offsets"), py::arg("sources"), py::arg("values"),
           py::arg("weights") = 0, py::arg("per_unit") = false, py::arg("x"), py::arg("shared") = false,
           py::arg("batch"), py::arg("outer") = 1, py::arg("inner") = 1, py::arg("components") = 1,
           py::arg("first") = 0, py::arg("units"), py::arg("source_rows"), py::arg("width"));
  m.def("combine", [](const Combine& problem, Address result, bool wide, Address stream) {
    combine(problem, at(result), wide, stream_of(stream));
  });
  m.def("combine_weights", [](const Combine& problem, Address grad, Address d_weights, Address stream) {
    combine_weights(problem, at<const void>(grad), at(d_weights), stream_of(stream));
  });
}
