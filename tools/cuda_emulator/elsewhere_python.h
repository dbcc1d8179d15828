// elsewhere.h as functions of a Python module.
#pragma once

#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include "emulator.h"

namespace emu {

inline void bind_elsewhere(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace py::literals;
    m.def(
        "arrays",
        [] {
            py::list all;
            for (const Array& a : arrays()) all.append(py::make_tuple(uintptr_t(a.begin), uintptr_t(a.end), a.name));
            return all;
        },
        "(begin, end, name) of all memory that kernels may touch.");
    m.def(
        "run_elsewhere",
        [](const py::object& runner) {
            if (runner.is_none()) return set_elsewhere({});
            set_elsewhere([runner](const Launched& l) {
                const py::gil_scoped_acquire gil;
                Dl_info image;
                dladdr(l.shape.kernel, &image);
                const auto shape = [](const dim3& d) { return py::make_tuple(d.x, d.y, d.z); };
                py::list parameters;
                for (const auto& p : l.parameters) parameters.append(py::make_tuple(p.offset, p.bytes, p.alignment));
                runner(uintptr_t(l.shape.kernel) - uintptr_t(image.dli_fbase), shape(l.shape.grid),
                       shape(l.shape.block), l.shape.smem, parameters, py::bytes(l.bytes));
            });
        },
        "runner"_a,
        "Has runner(kernel, grid, block, shared_bytes, parameters, bytes) run each launch, until it is None: kernel is "
        "an address in this file, parameters are (offset, size, alignment) of each in `bytes`.");
}

}  // namespace emu
