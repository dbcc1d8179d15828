// The Python module wals_gpu._cuda, and the same module over the emulator for tests: calls of cuda/launch.h with
// addresses of device memory as integers. A stream is (device, handle): the device is current while the call lasts; or
// a handle alone, of whatever device is. wals_gpu/backends/cuda_memory.py owns the memory and has checked every shape.
#include <pybind11/pybind11.h>

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
    void* stream = nullptr;
    std::optional<wals::cuda::DeviceGuard> guard;
};

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

template <class T>
T* at(const On& on) {
    return static_cast<T*>(on.stream);
}

wals::Broadcast<float> broadcast(const py::tuple& values) {
    return {at<const float>(values[0].cast<Address>()), values[1].cast<int64_t>()};
}

wals::cuda::RotatedRows make_rows(int64_t n_rows, int64_t factors, Address row_ptr, Address col_idx,
                                  const py::tuple& rhs, const py::tuple& gram, float gram_offset,
                                  const py::tuple& background, const py::tuple& ridge, Address table,
                                  Address column_max, Address spectrum, Address gram_bound, Address prior, Address z,
                                  Address status, float relaxation) {
    wals::cuda::RotatedRows p;
    p.terms.n_rows = n_rows;
    p.terms.row_ptr = at<const int64_t>(row_ptr);
    p.terms.col_idx = at<const int32_t>(col_idx);
    p.terms.rhs = broadcast(rhs);
    p.terms.gram_array = broadcast(gram);
    p.terms.gram_offset = gram_offset;
    p.terms.background = broadcast(background);
    p.terms.ridge = broadcast(ridge);
    p.D = int(factors);
    p.P = int(wals::cuda::padded(factors));
    p.table = at<const float>(table);
    p.column_max = at<const float>(column_max);
    p.spectrum = at<const double>(spectrum);
    p.gram_bound = at<const float>(gram_bound);
    p.prior = at<const float>(prior);
    p.z = at<float>(z);
    p.status = at<int32_t>(status);
    p.relaxation = relaxation;
    return p;
}

wals::cuda::Form form(const std::string& name) {
    if (name == "diagonal") return wals::cuda::Form::kDiagonal;
    if (name == "primal") return wals::cuda::Form::kPrimal;
    if (name == "dual") return wals::cuda::Form::kDual;
    throw py::value_error("form must be 'diagonal', 'primal' or 'dual', got '" + name + "'");
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
        value.stream = reinterpret_cast<void*>(handle_of.cast<Address>());
        if (has_device) value.guard.emplace(source.cast<tuple>()[0].cast<int>());
        return true;
    }
};
}  // namespace pybind11::detail

PYBIND11_MODULE(WALS_MODULE, m) {
    m.doc() = "CUDA kernels of wals_gpu; use wals_gpu.backends.cuda. Addresses are device memory, streams are handles.";
#ifdef EMULATED_MODULE
    emu::bind_controls(m);
#endif
    using Release = py::call_guard<py::gil_scoped_release>;
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
            const wals::cuda::DeviceProperties is = wals::cuda::device_properties(device);
            return py::dict("name"_a = is.name, "capability"_a = py::make_tuple(is.major, is.minor),
                            "processors"_a = is.processors, "threads"_a = is.threads, "registers"_a = is.registers,
                            "shared"_a = is.shared, "shared_reserved"_a = is.shared_reserved,
                            "shared_of_block"_a = is.shared_of_block, "cache_bytes"_a = is.cache_bytes,
                            "memory_bytes"_a = is.memory_bytes);
        },
        "device"_a = -1, "What a device has, -1: the current one; see cuda/launch.h.");
    m.def("padded", &wals::cuda::padded, "factors"_a, "Stride of the tables of so many factors.");
    py::class_<wals::cuda::RotatedRows>(m, "Rows", py::module_local(), "Rows to be solved; see cuda/problem.h.")
        .def(py::init(&make_rows), py::kw_only(), "n_rows"_a, "factors"_a, "row_ptr"_a, "col_idx"_a, "rhs"_a, "gram"_a,
             "gram_offset"_a, "background"_a, "ridge"_a, "table"_a, "column_max"_a, "spectrum"_a, "gram_bound"_a,
             "prior"_a, "z"_a, "status"_a, "relaxation"_a);

    m.def("gram_bytes", &wals::cuda::gram_bytes, "n"_a, "factors"_a);
    m.def(
        "gram",
        [](Address y, int64_t n, int64_t D, const py::tuple& weight, Address out, Address workspace, const On& stream) {
            const auto w = broadcast(weight);
            py::gil_scoped_release release;
            wals::cuda::gram(at<const float>(y), n, D, w, at<double>(out), at<void>(workspace), at<void>(stream));
        },
        "y"_a, "n"_a, "factors"_a, "weight"_a, "out"_a, "workspace"_a, "stream"_a,
        "out (D, D) float64 = sum of weight y y'.");
    m.def("spectrum_bytes", &wals::cuda::spectrum_bytes, "factors"_a);
    m.def(
        "spectrum",
        [](Address gram, int64_t D, Address start, Address values, Address vectors, Address workspace,
           const On& stream) {
            wals::cuda::spectrum(at<const double>(gram), D, at<const double>(start), at<double>(values),
                                 at<double>(vectors), at<void>(workspace), at<void>(stream));
        },
        "gram"_a, "factors"_a, "start"_a, "values"_a, "vectors"_a, "workspace"_a, "stream"_a, Release(),
        "Eigenvalues and eigenvectors of a Gram matrix; start 0: from scratch.");
    m.def(
        "rotate",
        [](Address y, int64_t n, int64_t D, int64_t in_stride, Address q, Address status, Address out,
           int64_t out_stride, const On& stream) {
            wals::cuda::rotate(at<const float>(y), n, D, in_stride, at<const double>(q), at<const int32_t>(status),
                               at<float>(out), out_stride, at<void>(stream));
        },
        "y"_a, "n"_a, "factors"_a, "in_stride"_a, "q"_a, "status"_a, "out"_a, "out_stride"_a, "stream"_a, Release(),
        "out = y q in float64; q 0: a copy. Rows with a status stay as they are.");
    m.def("split_basis_bytes", &wals::cuda::split_basis_bytes, "factors"_a);
    m.def(
        "split_basis",
        [](Address q, int64_t D, bool transposed, Address tiles, const On& stream) {
            wals::cuda::split_basis(at<const double>(q), D, transposed, at<void>(tiles), at<void>(stream));
        },
        "q"_a, "factors"_a, "transposed"_a, "tiles"_a, "stream"_a, Release(), "q or q' for rotate_split.");
    m.def(
        "rotate_split",
        [](Address y, int64_t n, int64_t D, int64_t in_stride, Address tiles, Address status, Address out,
           int64_t out_stride, const On& stream) {
            wals::cuda::rotate_split(at<const float>(y), n, D, in_stride, at<const void>(tiles),
                                     at<const int32_t>(status), at<float>(out), out_stride, at<void>(stream));
        },
        "y"_a, "n"_a, "factors"_a, "in_stride"_a, "tiles"_a, "status"_a, "out"_a, "out_stride"_a, "stream"_a, Release(),
        "out = y q by split products.");
    m.def(
        "clear",
        [](Address words, int64_t n, const On& stream) { wals::cuda::clear(at<void>(words), n, at<void>(stream)); },
        "words"_a, "n"_a, "stream"_a, Release(), "n words of 32 bits become 0.");
    m.def(
        "column_max",
        [](Address table, int64_t n, int64_t D, Address out, const On& stream) {
            wals::cuda::column_max(at<const float>(table), n, D, at<float>(out), at<void>(stream));
        },
        "table"_a, "n"_a, "factors"_a, "out"_a, "stream"_a, Release(),
        "Largest |value| of each column; out is 0 before.");
    m.def(
        "relax",
        [](const wals::cuda::RotatedRows& p, int64_t most, Address list, Address count, Address from,
           const On& stream) {
            wals::cuda::relax(p, most, at<const int32_t>(list), at<const int32_t>(count), at<const float>(from),
                              at<void>(stream));
        },
        "rows"_a, "most"_a, "list"_a, "count"_a, "from_"_a, "stream"_a, Release(), "z = from + relaxation (z - from).");
    m.def(
        "row_loss",
        [](const wals::cuda::RotatedRows& p, bool wide, Address loss, const On& stream) {
            wals::cuda::row_loss(p, wide, at<double>(loss), at<void>(stream));
        },
        "rows"_a, "wide"_a, "loss"_a, "stream"_a, Release(), "Each row's part of the loss, (R) float64.");
    m.def(
        "ridge_loss",
        [](Address x, Address prior, int64_t n, int64_t D, const py::tuple& ridge, Address loss, const On& stream) {
            const auto r = broadcast(ridge);
            py::gil_scoped_release release;
            wals::cuda::ridge_loss(at<const float>(x), at<const float>(prior), n, D, r, at<double>(loss),
                                   at<void>(stream));
        },
        "x"_a, "prior"_a, "n"_a, "factors"_a, "ridge"_a, "loss"_a, "stream"_a, "Each row's ridge |x - prior|^2.");
    m.def(
        "map_features",
        [](Address features, int64_t n, int64_t E, Address weights, int64_t D, const py::tuple& scale, Address status,
           bool add, Address out, const On& stream) {
            const auto s = broadcast(scale);
            py::gil_scoped_release release;
            wals::cuda::map_features(at<const float>(features), n, E, at<const float>(weights), D, s,
                                     at<const int32_t>(status), add, at<float>(out), at<void>(stream));
        },
        "features"_a, "n"_a, "n_features"_a, "weights"_a, "factors"_a, "scale"_a, "status"_a, "add"_a, "out"_a,
        "stream"_a, "Factors that a map gives for features.");
    m.def("cross_bytes", &wals::cuda::cross_bytes, "n"_a, "n_features"_a, "factors"_a);
    m.def(
        "cross",
        [](Address features, int64_t n, int64_t E, const py::tuple& weight, Address x, Address mean, int64_t D,
           Address out, Address workspace, const On& stream) {
            const auto w = broadcast(weight);
            py::gil_scoped_release release;
            wals::cuda::cross(at<const float>(features), n, E, w, at<const float>(x), at<const float>(mean), D,
                              at<double>(out), at<void>(workspace), at<void>(stream));
        },
        "features"_a, "n"_a, "n_features"_a, "weight"_a, "x"_a, "mean"_a, "factors"_a, "out"_a, "workspace"_a,
        "stream"_a, "Weighted sums of features times factors.");
    m.def(
        "line",
        [](const wals::cuda::RotatedRows& p, Address v, Address slope, Address curvature, const On& stream) {
            wals::cuda::line(p, at<const float>(v), at<double>(slope), at<double>(curvature), at<void>(stream));
        },
        "rows"_a, "v"_a, "slope"_a, "curvature"_a, "stream"_a, Release(), "The data part of the loss along a line.");
    m.def(
        "scale",
        [](Address values, int64_t n, float factor, const On& stream) {
            wals::cuda::scale(at<float>(values), n, factor, at<void>(stream));
        },
        "values"_a, "n"_a, "factor"_a, "stream"_a, Release(), "Values times a factor.");
    m.def(
        "sum",
        [](Address values, Address weights, int64_t n, Address out, const On& stream) {
            wals::cuda::sum(at<const double>(values), at<const double>(weights), n, at<double>(out), at<void>(stream));
        },
        "values"_a, "weights"_a, "n"_a, "out"_a, "stream"_a, Release(),
        "Adds a sum of float64 values, weighted or not, to out.");

    m.def(
        "solve_exact",
        [](const wals::cuda::RotatedRows& p, const std::string& name, int size, Address rows, int64_t n,
           const On& stream) {
            wals::cuda::solve_exact(p, form(name), size, at<const int32_t>(rows), n, at<void>(stream));
        },
        "rows"_a, "form"_a, "size"_a, "numbers"_a, "n"_a, "stream"_a, Release(), "Rows of one form and size.");
    m.def("exact_bytes", &wals::cuda::exact_bytes, "size"_a, "Shared memory of a block of that size.");
    m.def("slot_bytes", &wals::cuda::slot_bytes, "factors"_a);
    m.def(
        "solve_sliced",
        [](const wals::cuda::RotatedRows& p, Address slices, int64_t n_slices, Address numbers, int64_t n,
           Address workspace, const On& stream) {
            wals::cuda::solve_sliced(p, at<const wals::cuda::GramSlice>(slices), n_slices,
                                     at<const wals::cuda::SlicedRow>(numbers), n, at<void>(workspace),
                                     at<void>(stream));
        },
        "rows"_a, "slices"_a, "n_slices"_a, "numbers"_a, "n"_a, "workspace"_a, "stream"_a, Release(),
        "Rows whose matrices are in the workspace.");
    m.def(
        "solve_large",
        [](const wals::cuda::RotatedRows& p, Address numbers, int64_t n, int64_t n_slots, Address workspace,
           const On& stream) {
            wals::cuda::solve_large(p, at<const int32_t>(numbers), n, n_slots, at<void>(workspace), at<void>(stream));
        },
        "rows"_a, "numbers"_a, "n"_a, "n_slots"_a, "workspace"_a, "stream"_a, Release(),
        "Rows whose factors are in the workspace, one for each slot at a time.");
    m.def(
        "review",
        [](const wals::cuda::RotatedRows& p, bool search, Address before, Address list, Address count,
           const On& stream) {
            wals::cuda::review(p, search, at<const int32_t>(before), at<int32_t>(list), at<int32_t>(count),
                               at<void>(stream));
        },
        "rows"_a, "search"_a, "before"_a, "list"_a, "count"_a, "stream"_a, Release(),
        "Lists rows that were not solved.");
    m.def("wide_bytes", &wals::cuda::wide_bytes, "factors"_a);
    m.def(
        "solve_wide",
        [](const wals::cuda::RotatedRows& p, Address list, Address count, int64_t slots, Address workspace,
           Address failed, const On& stream) {
            wals::cuda::solve_wide(p, at<const int32_t>(list), at<const int32_t>(count), slots, at<void>(workspace),
                                   at<int32_t>(failed), at<void>(stream));
        },
        "rows"_a, "list"_a, "count"_a, "slots"_a, "workspace"_a, "failed"_a, "stream"_a, Release(), "Rows in float64.");
    m.def("cg_staged_rows", &wals::cuda::cg_staged_rows, "factors"_a, "smem_bytes"_a);
    m.def(
        "solve_cg",
        [](const wals::cuda::RotatedRows& p, Address numbers, int64_t n, int64_t staged, int steps, double tolerance,
           const On& stream) {
            wals::cuda::solve_cg(p, at<const int32_t>(numbers), n, staged, steps, tolerance, at<void>(stream));
        },
        "rows"_a, "numbers"_a, "n"_a, "staged"_a, "steps"_a, "tolerance"_a, "stream"_a, Release(),
        "Conjugate gradients.");
    m.def(
        "solve_subspace",
        [](const wals::cuda::RotatedRows& p, int64_t block, Address numbers, int64_t n, Address errors,
           const On& stream) {
            wals::cuda::solve_subspace(p, block, at<const int32_t>(numbers), n, at<float>(errors), at<void>(stream));
        },
        "rows"_a, "block"_a, "numbers"_a, "n"_a, "errors"_a, "stream"_a, Release(), "One pass of subspace steps.");

    m.def("cg_slot_bytes", &wals::cuda::cg_slot_bytes, "factors"_a);
    m.def(
        "solve_cg_sliced",
        [](const wals::cuda::RotatedRows& p, Address slices, int64_t n_slices, Address numbers, int64_t n, int steps,
           double tolerance, Address workspace, const On& stream) {
            wals::cuda::solve_cg_sliced(p, at<const wals::cuda::GramSlice>(slices), n_slices,
                                        at<const wals::cuda::SlicedRow>(numbers), n, steps, tolerance,
                                        at<void>(workspace), at<void>(stream));
        },
        "rows"_a, "slices"_a, "n_slices"_a, "numbers"_a, "n"_a, "steps"_a, "tolerance"_a, "workspace"_a, "stream"_a,
        Release(), "Conjugate gradients on giant rows.");
    m.def("subspace_slot_bytes", &wals::cuda::subspace_slot_bytes, "block"_a);
    m.def(
        "solve_subspace_sliced",
        [](const wals::cuda::RotatedRows& p, int64_t block, Address slices, int64_t n_slices, Address numbers,
           int64_t n, Address errors, Address workspace, const On& stream) {
            wals::cuda::solve_subspace_sliced(p, block, at<const wals::cuda::GramSlice>(slices), n_slices,
                                              at<const wals::cuda::SlicedRow>(numbers), n, at<float>(errors),
                                              at<void>(workspace), at<void>(stream));
        },
        "rows"_a, "block"_a, "slices"_a, "n_slices"_a, "numbers"_a, "n"_a, "errors"_a, "workspace"_a, "stream"_a,
        Release(), "Subspace steps on giant rows.");

    m.def("topk_table_bytes", &wals::cuda::topk_table_bytes, "n_items"_a, "factors"_a);
    m.def(
        "topk_table",
        [](Address x, int64_t n, int64_t D, Address norms, Address table, int64_t first, int64_t n_items,
           const On& stream) {
            wals::cuda::topk_table(at<const float>(x), n, D, at<const float>(norms), at<void>(table), first, n_items,
                                   at<void>(stream));
        },
        "items"_a, "n"_a, "factors"_a, "norms"_a, "table"_a, "first"_a, "n_items"_a, "stream"_a, Release(),
        "Some items of the table that topk searches.");
    m.def("topk_bound", &wals::cuda::topk_bound, "factors"_a);
    m.def("topk_segments", &wals::cuda::topk_segments, "n_queries"_a, "n_items"_a, "k"_a, "blocks"_a);
    m.def("topk_bytes", &wals::cuda::topk_bytes, "n_queries"_a, "n_items"_a, "factors"_a, "k"_a, "blocks"_a);
    m.def(
        "topk",
        [](Address queries, int64_t B, Address table, int64_t n_items, int64_t D, int64_t k, int64_t blocks,
           Address excluded_ptr, Address excluded_idx, Address permitted, Address ids, Address scores,
           Address workspace, const On& stream) {
            wals::cuda::topk(at<const float>(queries), B, at<void>(table), n_items, D, k, blocks,
                             at<const int64_t>(excluded_ptr), at<const int32_t>(excluded_idx),
                             at<const uint32_t>(permitted), at<int32_t>(ids), at<float>(scores), at<void>(workspace),
                             at<void>(stream));
        },
        "queries"_a, "n_queries"_a, "table"_a, "n_items"_a, "factors"_a, "k"_a, "blocks"_a, "excluded_ptr"_a,
        "excluded_idx"_a, "permitted"_a, "ids"_a, "scores"_a, "workspace"_a, "stream"_a, Release(),
        "The k best items of each query.");
    m.def("transpose_bytes", &wals::cuda::transpose_bytes, "n_entries"_a);
    m.def(
        "transpose",
        [](int64_t n_rows, int64_t n_cols, int64_t Z, Address row_ptr, Address col_idx, Address value,
           Address t_row_ptr, Address t_col_idx, Address t_value, Address workspace, const On& stream) {
            wals::cuda::transpose(n_rows, n_cols, Z, at<const int64_t>(row_ptr), at<const int32_t>(col_idx),
                                  at<const float>(value), at<int64_t>(t_row_ptr), at<int32_t>(t_col_idx),
                                  at<float>(t_value), at<void>(workspace), at<void>(stream));
        },
        "n_rows"_a, "n_cols"_a, "n_entries"_a, "row_ptr"_a, "col_idx"_a, "value"_a, "t_row_ptr"_a, "t_col_idx"_a,
        "t_value"_a, "workspace"_a, "stream"_a, Release(), "CSR arrays of the transposed matrix.");
}
