// The Python module of the emulator's own tests.
#include "../python.h"
#include "kernels.h"

namespace py = pybind11;
using namespace py::literals;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

PYBIND11_MODULE(EMULATED_MODULE, m) {
    emu::bind_controls(m);
    m.def(
        "planted",
        [](int bug, const Array<int64_t>& row_ptr, const Array<int32_t>& col_idx, const Array<float>& table,
           Array<float> out) {
            if (bug < 0 || bug > 8) throw py::value_error("bug must be 0 to 8");
            run_planted(bug, int(row_ptr.size() - 1), row_ptr.data(), col_idx.data(), table.data(), out.mutable_data());
        },
        "bug"_a, "row_ptr"_a.noconvert(), "col_idx"_a.noconvert(), "table"_a.noconvert(), "out"_a.noconvert());
    m.def(
        "feature",
        [](const std::string& name, int n_blocks, int block, int smem, const Array<uint32_t>& in, Array<uint32_t> out,
           const emu::Place& on, bool own_limit) {
            uint32_t* const to = out.mutable_data();
            py::gil_scoped_release release;
            struct Before {
                int device = 0;
                ~Before() { cudaSetDevice(device); }
            } before;
            cudaGetDevice(&before.device);
            if (on.device >= 0) cudaSetDevice(on.device);
            run_feature(name, n_blocks, block, smem, on.stream, own_limit, in.data(), to);
        },
        "name"_a, "n_blocks"_a, "block"_a, "smem"_a, "in"_a.noconvert(), "out"_a.noconvert(), "stream"_a = 0,
        "own_limit"_a = false);
}
