// The Python module wals_gpu._cuda, and the same module over the emulator for tests: calls of cuda/launch.h with
// addresses of device memory as integers. A stream is (device, handle): the device is current while the call lasts; or
// a handle alone, of whatever device is. wals_gpu/backends/cuda_memory.py owns the memory and has checked every shape.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>

#include "../cuda/launch.h"
#include "limits.h"

#ifdef EMULATED_MODULE
#include "cuda_emulator/python.h"
#define WALS_MODULE EMULATED_MODULE
#define WALS_OLDEST_CAPABILITY 75
#else
#define WALS_MODULE _cuda
#endif

namespace py = pybind11;
using namespace py::literals;

namespace {

using Address = uintptr_t;

/// Where a call's work goes; its device is current as long as this lives.
struct On {
    wals::cuda::Stream stream = nullptr;
    std::optional<wals::cuda::DeviceGuard> guard;
};

/// What Python gives for an argument of type T of the calls in launch.h, and that argument.
template <class T>
struct Given {
    using Type = T;
    static T argument(const T& given) { return given; }
};
template <class T>
struct Given<T*> {
    using Type = Address;
    static T* argument(Address given) { return reinterpret_cast<T*>(given); }
};
template <>
struct Given<wals::cuda::Stream> {
    using Type = const On&;
    static wals::cuda::Stream argument(const On& given) { return given.stream; }
};

/// A call of launch.h for Python.
template <class R, class... P>
auto native(R (*call)(P...)) {
    return [call](typename Given<P>::Type... given) { return call(Given<P>::argument(given)...); };
}

wals::cuda::RotatedRows make_rows(int64_t n_rows, int64_t factors, const int64_t* row_ptr, const int32_t* col_idx,
                                  wals::Broadcast<float> rhs, wals::Broadcast<float> gram, float gram_offset,
                                  wals::Broadcast<float> background, wals::Broadcast<float> ridge, const float* table,
                                  const float* column_max, const double* spectrum, const float* gram_bound,
                                  const float* prior, float* z, int32_t* status, float relaxation) {
    const wals::RowTerms<float> terms{n_rows, row_ptr, col_idx, rhs, gram, gram_offset, background, ridge};
    return {terms,  int(factors), int(wals::cuda::padded(factors)), table, column_max, spectrum, gram_bound, prior, z,
            status, relaxation};
}

}  // namespace

namespace pybind11::detail {
template <>
struct type_caster<On> {
    PYBIND11_TYPE_CASTER(On, const_name("Stream"));

    bool load(handle source, bool) {
        const bool has_device = isinstance<tuple>(source);
        if (!has_device && !isinstance<int_>(source)) return false;
        const auto handle_of = has_device ? object(source.cast<tuple>()[1]) : source.cast<object>();
        value.stream = reinterpret_cast<wals::cuda::Stream>(handle_of.cast<Address>());
        if (has_device) value.guard.emplace(source.cast<tuple>()[0].cast<int>());
        return true;
    }
};
template <>
struct type_caster<wals::Broadcast<float>> {  // (address, stride)
    PYBIND11_TYPE_CASTER(wals::Broadcast<float>, const_name("Values"));

    bool load(handle source, bool) {
        if (!isinstance<tuple>(source)) return false;
        const tuple values = source.cast<tuple>();
        value = {reinterpret_cast<const float*>(values[0].cast<Address>()), values[1].cast<int64_t>()};
        return true;
    }
};
}  // namespace pybind11::detail

PYBIND11_MODULE(WALS_MODULE, m) {
    m.doc() =
        "CUDA kernels of wals_gpu; use wals_gpu.backends.cuda. The calls of csrc/cuda/launch.h: addresses are device "
        "memory, streams are handles.";
#ifdef EMULATED_MODULE
    emu::bind_controls(m);
#endif
    bind_limits(m);
#ifdef WALS_CUDA_VERSION
    m.attr("CUDA_VERSION") = WALS_CUDA_VERSION;
#endif
    m.def(
        "devices",
        [] {
            const wals::cuda::Devices d = wals::cuda::devices();
            return py::make_tuple(d.count, d.why);
        },
        "Number of CUDA devices, and why there are none.");
    m.attr("OLDEST_CAPABILITY") = py::make_tuple(WALS_OLDEST_CAPABILITY / 10, WALS_OLDEST_CAPABILITY % 10);
    m.def(
        "device_properties",
        [](int device) {
            std::string name;
            py::dict is = py::cast(wals::cuda::device_properties(device, name));
            const int capability = is.attr("pop")("capability").cast<int>();
            is["name"] = name, is["capability"] = py::make_tuple(capability / 10, capability % 10);
            return is;
        },
        "device"_a = -1, "What a device has, -1: the current one; see cuda/launch.h.");
    py::class_<wals::cuda::RotatedRows>(m, "Rows", py::module_local(), "Rows to be solved; see cuda/problem.h.")
        .def(py::init(native(&make_rows)), py::kw_only(), "n_rows"_a, "factors"_a, "row_ptr"_a, "col_idx"_a, "rhs"_a,
             "gram"_a, "gram_offset"_a, "background"_a, "ridge"_a, "table"_a, "column_max"_a, "spectrum"_a,
             "gram_bound"_a, "prior"_a, "z"_a, "status"_a, "relaxation"_a);

#define WALS_NATIVE(name) m.def(#name, native(&wals::cuda::name), py::call_guard<py::gil_scoped_release>())
    WALS_NATIVE(own_stream);
    WALS_NATIVE(padded);
    WALS_NATIVE(gram_bytes);
    WALS_NATIVE(gram);
    WALS_NATIVE(spectrum_bytes);
    WALS_NATIVE(spectrum);
    WALS_NATIVE(rotate);
    WALS_NATIVE(split_basis_bytes);
    WALS_NATIVE(split_basis);
    WALS_NATIVE(rotate_split);
    WALS_NATIVE(clear);
    WALS_NATIVE(column_max);
    WALS_NATIVE(relax);
    WALS_NATIVE(row_loss);
    WALS_NATIVE(ridge_loss);
    WALS_NATIVE(map_features);
    WALS_NATIVE(cross_bytes);
    WALS_NATIVE(cross);
    WALS_NATIVE(line);
    WALS_NATIVE(scale);
    WALS_NATIVE(sum);
    WALS_NATIVE(solve_exact);
    WALS_NATIVE(exact_bytes);
    WALS_NATIVE(slot_bytes);
    WALS_NATIVE(solve_sliced);
    WALS_NATIVE(solve_large);
    WALS_NATIVE(review);
    WALS_NATIVE(wide_bytes);
    WALS_NATIVE(solve_wide);
    WALS_NATIVE(cg_staged_rows);
    WALS_NATIVE(solve_cg);
    WALS_NATIVE(solve_subspace);
    WALS_NATIVE(cg_slot_bytes);
    WALS_NATIVE(solve_cg_sliced);
    WALS_NATIVE(solve_subspace_sliced);
    WALS_NATIVE(topk_table_bytes);
    WALS_NATIVE(topk_table);
    WALS_NATIVE(topk_bound);
    WALS_NATIVE(topk_segments);
    WALS_NATIVE(topk_bytes);
    WALS_NATIVE(topk);
#undef WALS_NATIVE
}
