// The emulator's controls as functions of a Python module.
#pragma once

#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <string>

#include "control.h"
#include "emulator.h"

namespace emu {

inline void bind_controls(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace py::literals;
    py::register_local_exception<Error>(m, "EmulatorError", PyExc_RuntimeError);
#ifdef EMU_CHECKED
    m.attr("checked") = true;
#else
    m.attr("checked") = false;
#endif
    m.def(
        "configure",
        [](const std::string& order, unsigned long long seed, int resident_blocks, int architecture, bool eager_copies,
           bool allow_exited, bool strict, bool profile, double seconds, const std::string& tensor) {
            static const std::map<std::string, Order> orders{
                {"forward", Order::kForward}, {"reverse", Order::kReverse}, {"random", Order::kRandom}};
            const auto o = orders.find(order);
            if (o == orders.end()) throw py::value_error("order must be forward, reverse or random, got " + order);
            static const std::map<std::string, Tensor> tensors{
                {"v100", {0, 4}}, {"t4", {1, 4}}, {"a100", {1, 8}}, {"h100", {2, 16}}, {"exact", {0, 0}}};
            const auto t = tensors.find(tensor);
            if (t == tensors.end())
                throw py::value_error("tensor must be v100, t4, a100, h100 or exact, got " + tensor);
            configure({o->second, seed, resident_blocks, architecture, eager_copies, allow_exited, strict, profile,
                       seconds, t->second});
        },
        "order"_a = "forward", "seed"_a = 1, "resident_blocks"_a = 1, "architecture"_a = 80, "eager_copies"_a = false,
        "allow_exited"_a = false, "strict"_a = true, "profile"_a = false, "seconds"_a = 300.0, "tensor"_a = "v100",
        "How launches run from now on.");
    m.def(
        "device_array",
        [](const py::array& a, const std::string& name) {
            const py::array c = py::array::ensure(a, py::array::c_style);
            const size_t bytes = size_t(c.nbytes());
            void* const p = allocate(bytes, name);
            std::memcpy(p, c.data(), bytes);
            return py::array(c.dtype(), std::vector<py::ssize_t>(c.shape(), c.shape() + c.ndim()), p,
                             py::capsule(p, release));
        },
        "array"_a, "name"_a, "A copy in device memory that knows its bounds; freed with the array.");
    m.def(
        "adopt",
        [](uintptr_t p, size_t bytes, const std::string& name) { adopt(reinterpret_cast<void*>(p), bytes, name); },
        "pointer"_a, "nbytes"_a, "name"_a, "Lets kernels touch memory of others.");
    m.def("forget", [](uintptr_t p) { forget(reinterpret_cast<void*>(p)); }, "pointer"_a, "Takes adopt back.");
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
            if (runner.is_none()) return run_elsewhere(std::function<void(const Launched&)>());
            run_elsewhere([runner](const Launched& l) {
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
        "an "
        "address in this file, parameters are (offset, size, alignment) of each in `bytes`.");
    m.def("profile", [] {
        py::list lines;
        for (const Line& l : profile())
            lines.append(py::dict("file"_a = l.file, "line"_a = l.line, "space"_a = l.shared ? "shared" : "global",
                                  "kind"_a = l.kind, "bytes"_a = l.bytes, "requests"_a = l.requests,
                                  "units"_a = l.units, "ideal"_a = l.ideal));
        return lines;
    });
    m.def("reset_profile", &reset_profile);
}

}  // namespace emu
