// The emulator's controls as functions of a Python module.
#pragma once

#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "control.h"
#include "emulator.h"

namespace pybind11::detail {
template <>
struct type_caster<emu::Place> {  // as (device, handle), or a handle of the current device
    PYBIND11_TYPE_CASTER(emu::Place, const_name("Stream"));

    bool load(handle source, bool) {
        const bool has_device = isinstance<tuple>(source);
        const object handle_of = has_device ? object(source.cast<tuple>()[1]) : source.cast<object>();
        value.stream = reinterpret_cast<CUstream_st*>(handle_of.cast<uintptr_t>());
        if (has_device) value.device = source.cast<tuple>()[0].cast<int>();
        return true;
    }
};
}  // namespace pybind11::detail

namespace emu {

inline pybind11::array bytes_at(void* p, size_t bytes, void (*free)(void*)) {
    if (!p) throw std::bad_alloc();
    return pybind11::array(pybind11::dtype("u1"), std::vector<pybind11::ssize_t>{pybind11::ssize_t(bytes)}, p,
                           pybind11::capsule(p, free));
}

inline void bind_controls(pybind11::module_& m) {
    namespace py = pybind11;
    using namespace py::literals;
    py::register_local_exception<Error>(m, "EmulatorError", PyExc_RuntimeError);
    m.attr("checked") = kChecked;
    m.def(
        "configure",
        [](const std::string& order, unsigned long long seed, int resident_blocks, int architecture, bool eager_copies,
           bool profile, double seconds, const std::string& tensor, bool lazy, int devices, size_t memory) {
            static const std::map<std::string, Order> orders{
                {"forward", Order::kForward}, {"reverse", Order::kReverse}, {"random", Order::kRandom}};
            const auto o = orders.find(order);
            if (o == orders.end()) throw py::value_error("order must be forward, reverse or random, got " + order);
            static const std::map<std::string, Tensor> tensors{
                {"v100", {0, 4}}, {"t4", {1, 4}}, {"a100", {1, 8}}, {"h100", {2, 16}}, {"exact", {29, 16}}};
            const auto t = tensors.find(tensor);
            if (t == tensors.end())
                throw py::value_error("tensor must be v100, t4, a100, h100 or exact, got " + tensor);
            const Config config{o->second, seed, resident_blocks, architecture, eager_copies, profile, seconds,
                                t->second, lazy, devices,         memory};
            py::gil_scoped_release release;
            configure(config);
        },
        "order"_a = "forward", "seed"_a = 1, "resident_blocks"_a = 1, "architecture"_a = 80, "eager_copies"_a = false,
        "profile"_a = false, "seconds"_a = 300.0, "tensor"_a = "v100", "lazy"_a = false, "devices"_a = 1,
        "memory"_a = 0, "How launches run from now on.");
    m.def(
        "device_array",
        [](const py::array& a, const std::string& name) {
            const py::array c = py::array::ensure(a, py::array::c_style);
            const size_t bytes = size_t(c.nbytes());
            void* const p = allocate(bytes, name);
            copy(uintptr_t(p), uintptr_t(c.data()), bytes, {});
            return py::array(c.dtype(), std::vector<py::ssize_t>(c.shape(), c.shape() + c.ndim()), p,
                             py::capsule(p, release));
        },
        "array"_a, "name"_a, "A copy in device memory that knows its bounds; freed with the array.");
    using Release = py::call_guard<py::gil_scoped_release>;  // others may be running kernels
    m.def(
        "empty",
        [](size_t bytes, const std::string& name, Place stream) {
            return bytes_at(allocate(bytes, name, stream), bytes, release);
        },
        "nbytes"_a, "name"_a, "stream"_a, "Bytes in device memory; MemoryError when there is no more.");
    m.def(
        "pinned", [](size_t bytes) { return bytes_at(allocate_host(bytes), bytes, release_host); }, "nbytes"_a,
        "Bytes of the host that copies read and write when they run.");
    m.def("copy", &copy, "to"_a, "from_"_a, "nbytes"_a, "stream"_a, Release(), "Between device and host.");
    m.def("fill", &fill, "pointer"_a, "value"_a, "nbytes"_a, "stream"_a, Release());
    m.def("synchronize", &synchronize, "stream"_a, Release());
    m.def("record", &record, "stream"_a, Release(), "An event behind what the stream has been given.");
    m.def("wait", &wait, "stream"_a, "event"_a, Release(), "What the stream is given next comes after the event.");
    m.def("share", &share, "pointer"_a, "stream"_a, Release(), "The memory is freed after what this stream has now.");
    m.def("free_memory", &free_memory, "device"_a, Release());
    m.def("reset_device", &reset_device, "device"_a, Release(), "Drops the error that sticks to it.");
    m.def("new_stream", [](int device) { return uintptr_t(new_stream(device)); }, "device"_a, Release(), "A handle.");
    m.def("begin_graph", &begin_graph, "stream"_a, Release(), "Notes what the stream is given, which is not done.");
    m.def("end_graph", &end_graph, "stream"_a, Release(), "The number of what was noted.");
    m.def("replay", &replay, "stream"_a, "graph"_a, Release(), "Gives the stream what was noted.");
    m.def("current_device", [] {
        int device = 0;
        cudaGetDevice(&device);
        return device;
    });
    m.def(
        "set_device",
        [](int device) {
            if (const cudaError_t status = cudaSetDevice(device)) throw Error(cudaGetErrorString(status));
        },
        "device"_a, "Of this thread.");
    m.def("counts", &counts, "What the host asked for since reset_counts(); waits: how often it stood still.");
    m.def("reset_counts", &reset_counts);
    m.def("arrays", &arrays, "(begin, end, name) of all memory that kernels may touch.");
    m.def(
        "run_elsewhere",
        [](const py::object& runner) {
            elsewhere = nullptr;
            if (runner.is_none()) return;
            elsewhere = [runner](const Launched& l) {
                const py::gil_scoped_acquire gil;
                Dl_info image;
                dladdr(l.shape.kernel, &image);
                const auto shape = [](const dim3& d) { return py::make_tuple(d.x, d.y, d.z); };
                runner(uintptr_t(l.shape.kernel) - uintptr_t(image.dli_fbase), shape(l.shape.grid),
                       shape(l.shape.block), l.shape.smem, l.parameters, py::bytes(l.bytes));
            };
        },
        "runner"_a,
        "Has runner(kernel, grid, block, shared_bytes, parameters, bytes) run each launch, until it is None: kernel is "
        "an "
        "address in this file, parameters are (offset, size, alignment) of each in `bytes`.");
    m.def("profile", [] {
        py::list lines;
        for (const auto& [line, traffic] : profile()) {
            const auto& [file, number, shared, kind, bytes] = line;
            const auto& [requests, units, ideal] = traffic;
            lines.append(py::dict("file"_a = file, "line"_a = number, "space"_a = shared ? "shared" : "global",
                                  "kind"_a = kind, "bytes"_a = bytes, "requests"_a = requests, "units"_a = units,
                                  "ideal"_a = ideal));
        }
        return lines;
    });
    m.def("reset_profile", &reset_profile);
}

}  // namespace emu
