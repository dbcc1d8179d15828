// The Python module wals_gpu._cpu: arrays in, native calls, arrays out. Users' input was checked by the callers in
// wals_gpu/backends/cpu.py; what is checked here is only what memory safety needs.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../cpu/dispatch.h"
#include "../cpu/drivers.h"
#include "../cpu/neighbors.h"
#include "../cpu/transpose.h"
#include "limits.h"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

/// Runs `call(interrupted)` without the GIL; Ctrl-C and other signals' exceptions come out as Python raises them.
template <class Call>
void native(int n_threads, Call&& call) {
    require(n_threads >= 1, "n_threads must be at least 1");
    bool done;
    {
        py::gil_scoped_release release;
        auto last_check = std::chrono::steady_clock::now();
        done = call([last_check]() mutable {
            const auto now = std::chrono::steady_clock::now();
            if (now - last_check < std::chrono::milliseconds(100)) return false;
            last_check = now;
            py::gil_scoped_acquire acquire;
            return PyErr_CheckSignals() != 0;
        });
    }
    if (!done) throw py::error_already_set();
}

template <class T>
wals::Broadcast<T> broadcast(const Array<T>& a, int64_t n) {
    require(a.ndim() == 1 && (a.size() == n || a.size() == 1), "terms: an array is neither (n,) nor (1,)");
    return {a.data(), a.size() == 1 ? 0 : 1};
}

/// A view of a RowTerms object (wals_gpu/objective/terms.py), which it keeps alive.
template <class T>
struct Terms {
    Array<int64_t> row_ptr;
    Array<int32_t> col_idx;
    Array<T> rhs, gram, background, ridge;
    wals::RowTerms<T> view;

    Terms(const py::object& terms, int64_t n_other)
        : row_ptr(terms.attr("row_ptr")),
          col_idx(terms.attr("col_idx")),
          rhs(terms.attr("rhs")),
          background(terms.attr("background")),
          ridge(terms.attr("ridge")) {
        require(row_ptr.ndim() == 1 && row_ptr.size() >= 1, "terms.row_ptr must be (R + 1,)");
        view.n_rows = row_ptr.size() - 1;
        view.row_ptr = row_ptr.data();
        view.col_idx = col_idx.data();
        bool ordered = view.row_ptr[0] == 0;
        for (int64_t r = 0; r < view.n_rows; ++r) ordered &= view.row_ptr[r] <= view.row_ptr[r + 1];
        const int64_t Z = view.row_ptr[view.n_rows];
        require(ordered && col_idx.size() == Z, "terms.row_ptr and terms.col_idx do not fit");
        // The sign of c or of n - 1 - c tells an index outside; sums of signs take half the time of a largest index.
        const auto last = uint32_t(n_other < (int64_t{1} << 31) ? n_other - 1 : (int64_t{1} << 31) - 1);
        uint32_t signs = 0;
        for (int64_t e = 0; e < Z; ++e) {
            const auto c = uint32_t(view.col_idx[e]);
            signs |= c | (last - c);
        }
        require(Z == 0 || (n_other > 0 && signs >> 31 == 0),
                "terms.col_idx has an index outside the other side's factors");
        view.rhs = broadcast(rhs, Z);
        if (!terms.attr("gram").is_none()) {
            gram = Array<T>(terms.attr("gram"));
            view.gram_array = broadcast(gram, Z);
        }
        view.gram_offset = T(terms.attr("gram_offset").cast<double>());
        view.background = broadcast(background, view.n_rows);
        view.ridge = broadcast(ridge, view.n_rows);
    }
};

/// Calls f(T{}) with the array's dtype, float or double.
template <class F>
auto by_dtype(const py::array& a, F&& f) {
    if (py::isinstance<py::array_t<float>>(a)) return f(float{});
    require(py::isinstance<py::array_t<double>>(a), "factors must be float32 or float64");
    return f(double{});
}

const double* square(const char* name, const std::optional<Array<double>>& q, int64_t D) {
    if (!q) return nullptr;
    const bool fits = q->ndim() == 2 && q->shape(0) == D && q->shape(1) == D;
    if (!fits) throw std::invalid_argument(std::string(name) + " must be (D, D)");
    return q->data();
}

py::array gram(const py::array& factors, const py::array& weight, int n_threads) {
    return by_dtype(factors, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Array<T> y(factors), w(weight);
        require(y.ndim() == 2, "factors must be (n, D)");
        Array<double> out({y.shape(1), y.shape(1)});
        double* to = out.mutable_data();
        const auto weights = broadcast(w, y.shape(0));
        native(n_threads, [&](auto check) {
            return wals::cpu::gram<T>(y.data(), y.shape(0), y.shape(1), weights, to, n_threads, check);
        });
        return out;
    });
}

py::array gram_slabs(const py::array& factors, const py::array& weight, const Array<int64_t>& bounds, int n_threads) {
    return by_dtype(factors, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Array<T> y(factors), w(weight);
        require(y.ndim() == 2 && bounds.ndim() == 1 && bounds.size() >= 1,
                "factors must be (n, D), bounds (slabs + 1)");
        const int64_t slabs = bounds.size() - 1, D = y.shape(1);
        for (int64_t s = 0; s < slabs; ++s) require(bounds.data()[s] <= bounds.data()[s + 1], "bounds must not fall");
        require(bounds.data()[0] >= 0 && bounds.data()[slabs] <= y.shape(0), "bounds must be rows of the factors");
        Array<double> out({slabs, D, D});
        double* to = out.mutable_data();
        const auto weights = broadcast(w, y.shape(0));
        native(n_threads, [&](auto check) {
            return wals::cpu::gram_slabs<T>(y.data(), D, weights, bounds.data(), slabs, to, n_threads, check);
        });
        return out;
    });
}

py::array rotate(const py::array& factors, const std::optional<Array<double>>& rotation, int n_threads) {
    return by_dtype(factors, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Array<T> y(factors);
        require(y.ndim() == 2, "factors must be (n, D)");
        const int64_t n = y.shape(0), D = y.shape(1), P = wals::cpu::padded<T>(D);
        const double* q = square("rotation", rotation, D);
        // Kernels use aligned loads, so the table starts on a cache line; NumPy's own arrays may not.
        auto* memory = new wals::cpu::Buffer(std::max<int64_t>(n * P, 1) * int64_t(sizeof(T)));
        py::capsule owner(memory, [](void* p) { delete static_cast<wals::cpu::Buffer*>(p); });
        T* to = memory->as<T>();
        require(n_threads >= 1, "n_threads must be at least 1");
        const wals::cpu::RotationSpace space(q ? D : 0, n_threads);
        native(n_threads, [&](auto check) {
            return wals::cpu::rotate<T>(y.data(), n, D, q, /*wide=*/true, to, n_threads, space, check);
        });
        return Array<T>({n, P}, to, owner);
    });
}

/// What rotates an array in place, without the GIL; it needs no padding: D fills whole cache lines.
template <class T>
auto rotation_in_place(Array<T>& y, int64_t D, const double* q, bool wide, int n_threads,
                       const wals::cpu::RotationSpace& space) {
    require(y.ndim() == 2 && y.writeable() && y.shape(1) == D && D == wals::cpu::padded<T>(D),
            "arrays must be writeable, (n, D), with D a multiple of 16");
    return [&space, D, q, wide, n_threads, data = y.mutable_data(), n = int64_t(y.shape(0))] {
        wals::cpu::rotate<T>(data, n, D, q, wide, data, n_threads, space, /*interrupted=*/{});
    };
}

void rotate_together(py::array factors, py::array other, Array<double> basis, const Array<double>& rotation,
                     bool wide_other, int n_threads) {
    require(n_threads >= 1, "n_threads must be at least 1");
    by_dtype(factors, [&](auto zero) {
        using T = decltype(zero);
        Array<T> x(factors), y(other);
        require(x.ptr() == factors.ptr() && y.ptr() == other.ptr(), "arrays must be C-ordered and of one dtype");
        require(x.ndim() == 2, "factors must be (R, D)");
        const int64_t D = x.shape(1);
        const double* q = square("rotation", rotation, D);
        const wals::cpu::RotationSpace space(q ? D : 0, n_threads);
        const auto rotate_x = rotation_in_place(x, D, q, /*wide=*/false, n_threads, space);
        const auto rotate_y = rotation_in_place(y, D, q, wide_other, n_threads, space);
        const auto rotate_basis = rotation_in_place(basis, D, q, /*wide=*/true, n_threads, space);
        // All three or none: nothing below asks for memory, or for signals.
        const py::gil_scoped_release release;
        rotate_x();
        rotate_y();
        rotate_basis();
        return 0;
    });
}

template <class T>
const T* table_data(const Array<T>& table, int64_t rows, int64_t D) {
    require(table.ndim() == 2 && table.shape(1) == wals::cpu::padded<T>(D) && (rows < 0 || table.shape(0) == rows) &&
                reinterpret_cast<uintptr_t>(table.data()) % 64 == 0,
            "table must be padded to whole cache lines and start on one, as rotate() makes it");
    return table.data();
}

py::array_t<int32_t> solve_rows(const py::object& terms, const py::array& table, const Array<double>& spectrum,
                                const std::optional<Array<double>>& rotation, const std::optional<py::array>& prior,
                                py::array factors, const std::string& solver, int cg_steps, double cg_tolerance,
                                int64_t block, double relaxation, const std::optional<Array<double>>& loss,
                                int n_threads) {
    wals::cpu::Solver options;
    require(solver == "cholesky" || solver == "cg" || solver == "subspace", "unknown solver");
    options.kind = solver == "cg"         ? wals::cpu::Solver::kConjugateGradients
                   : solver == "subspace" ? wals::cpu::Solver::kSubspace
                                          : wals::cpu::Solver::kExact;
    options.cg_steps = cg_steps;
    options.cg_tolerance = cg_tolerance;
    options.block = block;
    options.relaxation = relaxation;
    require(relaxation > 0 && relaxation < 2, "relaxation must be above 0 and below 2");
    require(block >= 16 && block % 16 == 0, "block must be a multiple of 16");
    return by_dtype(factors, [&](auto zero) {
        using T = decltype(zero);
        const Array<T> y(table);
        Array<T> x(factors);
        require(x.ptr() == factors.ptr() && x.ndim() == 2 && x.writeable(), "factors must be writeable, C-ordered");
        const int64_t D = x.shape(1);
        const Terms<T> t(terms, y.shape(0));
        require(t.view.n_rows == x.shape(0), "factors must have one row for each row of terms");
        require(spectrum.size() == D, "spectrum must be (D,)");
        wals::cpu::RotatedRows<T> problem;
        problem.terms = t.view;
        problem.D = D;
        problem.table = table_data(y, -1, D);
        problem.spectrum = spectrum.data();
        Array<T> p;
        if (prior) {
            p = Array<T>(*prior);
            problem.prior = table_data(p, t.view.n_rows, D);
        }
        problem.factors = x.mutable_data();
        problem.factor_stride = D;
        if (loss) {
            require(loss->size() == t.view.n_rows && loss->writeable(), "loss must be (R,) and writeable");
            problem.loss = const_cast<double*>(loss->data());
        }
        const double* q = square("rotation", rotation, D);
        py::array_t<int32_t> status(t.view.n_rows);
        int32_t* info = status.mutable_data();
        native(n_threads,
               [&](auto check) { return wals::cpu::solve_rows<T>(problem, options, q, info, n_threads, check); });
        return status;
    });
}

py::array_t<int32_t> solve_rows_plain(const py::object& terms, const py::array& other, const Array<double>& gram,
                                      py::array factors, int64_t block, double relaxation,
                                      const std::optional<Array<double>>& loss, int n_threads) {
    require(relaxation > 0 && relaxation < 2, "relaxation must be above 0 and below 2");
    require(block >= 16 && block % 16 == 0, "block must be a multiple of 16");
    return by_dtype(factors, [&](auto zero) {
        using T = decltype(zero);
        const Array<T> y(other);
        Array<T> x(factors);
        require(x.ptr() == factors.ptr() && x.ndim() == 2 && x.writeable(), "factors must be writeable, C-ordered");
        const int64_t D = x.shape(1);
        require(y.ndim() == 2 && y.shape(1) == D, "factors must be (R, D) and (n, D)");
        const Terms<T> t(terms, y.shape(0));
        require(t.view.n_rows == x.shape(0), "factors must have one row for each row of terms");
        wals::cpu::PlainRows<T> problem;
        problem.terms = t.view;
        problem.D = D;
        problem.n_other = y.shape(0);
        problem.block = block;
        problem.factors = x.mutable_data();
        if (loss) {
            require(loss->size() == t.view.n_rows && loss->writeable(), "loss must be (R,) and writeable");
            problem.loss = const_cast<double*>(loss->data());
        }
        const double* g = square("gram", gram, D);
        py::array_t<int32_t> status(t.view.n_rows);
        int32_t* info = status.mutable_data();
        native(n_threads, [&](auto check) {
            return wals::cpu::solve_plain_rows<T>(problem, y.data(), g, relaxation, info, n_threads, check);
        });
        return status;
    });
}

double entry_loss(const py::object& terms, const py::array& factors, const py::array& other, int n_threads) {
    return by_dtype(factors, [&](auto zero) {
        using T = decltype(zero);
        const Array<T> x(factors), y(other);
        require(x.ndim() == 2 && y.ndim() == 2 && x.shape(1) == y.shape(1), "factors must be (R, D) and (n, D)");
        const Terms<T> t(terms, y.shape(0));
        require(t.view.n_rows == x.shape(0), "factors must have one row for each row of terms");
        double total = 0;
        native(n_threads, [&](auto check) {
            return wals::cpu::entry_loss<T>(t.view, x.data(), y.data(), x.shape(1), &total, n_threads, check);
        });
        return total;
    });
}

py::array ridge_losses(const py::array& factors, const std::optional<py::array>& prior, const py::array& ridge,
                       int n_threads) {
    return by_dtype(factors, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Array<T> x(factors), weight(ridge);
        require(x.ndim() == 2, "factors must be (R, D)");
        const auto weights = broadcast(weight, x.shape(0));
        Array<T> p;
        if (prior) {
            p = Array<T>(*prior);
            require(p.ndim() == 2 && p.shape(0) == x.shape(0) && p.shape(1) == x.shape(1), "prior must be (R, D)");
        }
        Array<double> losses(wals::cpu::loss_blocks(x.shape(0)));
        double* to = losses.mutable_data();
        native(n_threads, [&](auto check) {
            return wals::cpu::ridge_losses<T>(x.data(), prior ? p.data() : nullptr, x.shape(0), x.shape(1), weights, to,
                                              n_threads, check);
        });
        return losses;
    });
}

py::tuple transpose(const Array<int64_t>& row_ptr, const Array<int32_t>& col_idx, const std::optional<py::array>& value,
                    int64_t n_cols, int n_threads) {
    const int64_t n_rows = row_ptr.size() - 1, Z = col_idx.size();
    require(n_rows >= 0 && row_ptr.data()[0] == 0 && row_ptr.data()[n_rows] == Z, "row_ptr and col_idx do not fit");
    for (int64_t r = 0; r < n_rows; ++r) require(row_ptr.data()[r] <= row_ptr.data()[r + 1], "row_ptr must not fall");
    for (int64_t e = 0; e < Z; ++e)
        require(col_idx.data()[e] >= 0 && col_idx.data()[e] < n_cols, "col_idx out of range");
    Array<int64_t> t_row_ptr(n_cols + 1);
    Array<int32_t> t_col_idx(Z);
    auto call = [&](auto zero) -> py::object {
        using T = decltype(zero);
        Array<T> v, t_value;
        const T* from = nullptr;
        T* to = nullptr;
        if (value) {
            v = Array<T>(*value);
            require(v.size() == Z, "value must be (Z,)");
            t_value = Array<T>(Z);
            from = v.data();
            to = t_value.mutable_data();
        }
        int64_t* ptr = t_row_ptr.mutable_data();
        int32_t* idx = t_col_idx.mutable_data();
        native(n_threads, [&](auto check) {
            return wals::cpu::transpose<T>(n_rows, n_cols, row_ptr.data(), col_idx.data(), from, ptr, idx, to,
                                           n_threads, check);
        });
        if (!value) return py::none();
        return t_value;
    };
    py::object t_value = value ? by_dtype(*value, call) : call(float{});
    return py::make_tuple(t_row_ptr, t_col_idx, t_value);
}

/// A matrix of zeros and ones, checked: all of its columns are below n_cols.
struct Pattern {
    Array<int64_t> ptr;
    Array<int32_t> idx;

    Pattern(const Array<int64_t>& row_ptr, const Array<int32_t>& col_idx, int64_t n_cols) : ptr(row_ptr), idx(col_idx) {
        require(ptr.ndim() == 1 && ptr.size() >= 1 && idx.ndim() == 1, "row_ptr must be (n + 1,), columns (Z,)");
        bool ordered = ptr.data()[0] == 0 && ptr.data()[n_rows()] == idx.size(), known = true;
        for (int64_t r = 0; r < n_rows(); ++r) ordered &= ptr.data()[r] <= ptr.data()[r + 1];
        require(ordered, "row_ptr and columns do not fit");
        for (int64_t e = 0; e < idx.size(); ++e) known &= idx.data()[e] >= 0 && idx.data()[e] < n_cols;
        require(known, "columns has an index outside the matrix");
    }
    int64_t n_rows() const { return ptr.size() - 1; }
};

py::tuple fit_neighbors(const Array<int64_t>& row_ptr, const Array<int32_t>& columns, const Array<int64_t>& row_ptr_t,
                        const Array<int32_t>& columns_t, const py::array& user_weights, int64_t n_neighbors,
                        double ridge, int64_t memory, int n_threads, int64_t first, std::optional<int64_t> last) {
    return by_dtype(user_weights, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const Array<T> v(user_weights);
        const Pattern users(row_ptr, columns, row_ptr_t.size() - 1), items(row_ptr_t, columns_t, row_ptr.size() - 1);
        require(v.ndim() == 1 && v.size() == users.n_rows(), "user_weights must be one for each user");
        require(n_neighbors >= 1 && n_neighbors < int64_t{1} << 31, "n_neighbors must be at least 1");
        wals::cpu::Neighborhoods<T> p;
        p.n_users = users.n_rows();
        p.n_items = items.n_rows();
        p.first = first;
        p.last = last.value_or(p.n_items);
        require(0 <= p.first && p.first <= p.last && p.last <= p.n_items, "first and last must be a range of items");
        p.user_ptr = users.ptr.data();
        p.items = users.idx.data();
        p.item_ptr = items.ptr.data();
        p.users = items.idx.data();
        p.user_weight = v.data();
        p.ridge = ridge;
        p.stride = n_neighbors;
        py::array_t<int32_t> ids({p.last - p.first, n_neighbors});
        Array<T> weights({p.last - p.first, n_neighbors});
        p.ids = ids.mutable_data();
        p.weights = weights.mutable_data();
        native(n_threads, [&](auto check) { return wals::cpu::fit_neighbors<T>(p, memory, n_threads, check); });
        return py::make_tuple(ids, weights);
    });
}

py::tuple neighbor_memory(int64_t n_items, int64_t n_neighbors, bool wide, int n_threads) {
    require(n_items >= 0 && n_neighbors >= 1 && n_threads >= 1, "sizes must be positive");
    const auto memory = wide ? wals::cpu::neighbor_memory<double>(n_items, n_neighbors, n_threads)
                             : wals::cpu::neighbor_memory<float>(n_items, n_neighbors, n_threads);
    return py::make_tuple(memory.least, memory.most);
}

/// Norms (n) of items that are divided by them, or null.
template <class T>
struct Norms {
    std::optional<Array<T>> array;
    const T* data = nullptr;

    Norms(const std::optional<py::array>& norms, int64_t n) {
        if (!norms) return;
        array = Array<T>(*norms);
        require(array->ndim() == 1 && array->size() == n, "norms must be one for each item");
        data = array->data();
    }
};

/// A CSR matrix with values: a tuple of its three arrays.
template <class T>
struct Weighted {
    Array<int64_t> ptr;
    Array<int32_t> idx;
    Array<T> weight;

    explicit Weighted(const py::tuple& arrays) {
        require(arrays.size() == 3, "a matrix is a tuple of row_ptr, columns and weights");
        ptr = arrays[0].cast<Array<int64_t>>();
        idx = arrays[1].cast<Array<int32_t>>();
        weight = arrays[2].cast<Array<T>>();
        require(
            ptr.ndim() == 1 && ptr.size() >= 1 && idx.ndim() == 1 && weight.ndim() == 1 && idx.size() == weight.size(),
            "row_ptr must be (n + 1,), columns and weights (Z,)");
    }
};

/// Bytes of memory for prepared items, which NumPy does not align, so with room to move; 0: they are not prepared.
template <class T>
int64_t prepared_memory(const Array<T>& items) {
    const int64_t n_bytes = wals::cpu::prepared_bytes<T>(items.shape(0), items.shape(1));
    return n_bytes > 0 ? n_bytes + 63 : 0;
}

/// Where prepared items begin within it.
char* aligned(char* memory) {
    return memory + (64 - reinterpret_cast<uintptr_t>(memory) % 64) % 64;
}

std::optional<Array<uint8_t>> prepare_items(const py::array& items, const std::optional<py::array>& norms,
                                            int n_threads) {
    return by_dtype(items, [&](auto zero) -> std::optional<Array<uint8_t>> {
        using T = decltype(zero);
        const Array<T> y(items);
        require(y.ndim() == 2, "items must be (I, D)");
        const Norms<T> norm(norms, y.shape(0));
        const int64_t n_bytes = prepared_memory(y);
        if (n_bytes == 0) return std::nullopt;
        Array<uint8_t> memory(n_bytes);
        char* to = aligned(reinterpret_cast<char*>(memory.mutable_data()));
        native(n_threads, [&](auto check) {
            return wals::cpu::prepare<T>(y.data(), norm.data, y.shape(0), y.shape(1), to, n_threads, check);
        });
        return memory;
    });
}

/// `histories`: of each query, and the neighbours' matrix, whose rows are what histories name; or null. What is read of
/// the latter is checked as it is read: checking it all would take longer than answering one query.
py::tuple topk(const py::array& queries, const py::array& items, int64_t k,
               const std::optional<Array<int64_t>>& excluded_ptr, const std::optional<Array<int32_t>>& excluded_idx,
               int n_threads, bool filter, const std::optional<Array<bool>>& permitted,
               const std::optional<py::array>& norms, const std::optional<py::tuple>& history,
               const std::optional<py::tuple>& neighbors, const std::optional<Array<uint8_t>>& prepared) {
    return by_dtype(items, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const Array<T> x(queries), y(items);
        require(x.ndim() == 2 && y.ndim() == 2 && x.shape(1) == y.shape(1), "queries (B, D) and items (I, D) differ");
        require(k >= 1, "k must be at least 1");
        const int64_t B = x.shape(0);
        const int64_t* ptr = nullptr;
        const int32_t* idx = nullptr;
        if (excluded_ptr) {
            require(excluded_idx && excluded_ptr->size() == B + 1, "excluded must have one row for each query");
            ptr = excluded_ptr->data();
            idx = excluded_idx->data();
            bool ordered = ptr[0] >= 0 && ptr[B] <= excluded_idx->size();
            for (int64_t q = 0; q < B; ++q) ordered &= ptr[q] <= ptr[q + 1];
            require(ordered, "excluded: row_ptr and col_idx do not fit");
        }
        require(!permitted || (permitted->ndim() == 1 && permitted->size() == y.shape(0)),
                "permitted must be one for each item");
        const auto* for_all = permitted ? reinterpret_cast<const uint8_t*>(permitted->data()) : nullptr;
        const Norms<T> norm(norms, y.shape(0));
        char* ready = nullptr;
        if (prepared && prepared->size() > 0 && prepared->size() == prepared_memory(y))
            ready = aligned(const_cast<char*>(reinterpret_cast<const char*>(prepared->data())));
        std::optional<Weighted<T>> own, other;
        wals::cpu::Histories<T> histories;
        if (history) {
            require(neighbors.has_value(), "history comes with neighbors");
            own.emplace(*history);
            other.emplace(*neighbors);
            const int64_t* own_ptr = own->ptr.data();
            bool ordered = own->ptr.size() == B + 1 && own_ptr[0] >= 0 && own_ptr[B] <= own->idx.size();
            for (int64_t q = 0; ordered && q < B; ++q) ordered &= own_ptr[q] <= own_ptr[q + 1];
            require(ordered, "history: row_ptr and columns do not fit the queries");
            histories = {B,
                         y.shape(0),
                         own_ptr,
                         own->idx.data(),
                         own->weight.data(),
                         other->ptr.size() - 1,
                         other->idx.size(),
                         other->ptr.data(),
                         other->idx.data(),
                         other->weight.data(),
                         norm.data};
        }
        py::array_t<int32_t> ids({B, k});
        Array<T> scores({B, k});
        int32_t* ids_to = ids.mutable_data();
        T* scores_to = scores.mutable_data();
        int64_t scored = 0;
        bool outside = false;
        native(n_threads, [&](auto check) {
            return wals::cpu::topk<T>(x.data(), B, y.data(), y.shape(0), y.shape(1), k, filter, ptr, idx, for_all,
                                      norm.data, ready, history ? &histories : nullptr, ids_to, scores_to, &scored,
                                      &outside, n_threads, check);
        });
        require(!outside, "history or neighbors has an index outside its matrix");
        return py::make_tuple(ids, scores, scored);
    });
}

/// Lists of item numbers, a row for each of B queries, checked against the number of items.
struct Listed {
    Array<int64_t> ptr;
    Array<int32_t> idx;

    Listed(const Array<int64_t>& row_ptr, const Array<int32_t>& col_idx, int64_t B, int64_t n_items)
        : ptr(row_ptr), idx(col_idx) {
        require(ptr.size() == B + 1, "listed must have one row for each query");
        bool ordered = ptr.data()[0] == 0 && ptr.data()[B] == idx.size();
        for (int64_t q = 0; q < B; ++q) ordered &= ptr.data()[q] <= ptr.data()[q + 1];
        require(ordered, "listed: row_ptr and col_idx do not fit");
        bool known = true;
        for (int64_t e = 0; e < idx.size(); ++e) known &= idx.data()[e] >= 0 && idx.data()[e] < n_items;
        require(known, "listed: col_idx has an index outside the items");
    }
};

py::array score_entries(const py::array& queries, const py::array& items, const Array<int64_t>& listed_ptr,
                        const Array<int32_t>& listed_idx, int n_threads) {
    return by_dtype(items, [&](auto zero) -> py::array {
        using T = decltype(zero);
        const Array<T> x(queries), y(items);
        require(x.ndim() == 2 && y.ndim() == 2 && x.shape(1) == y.shape(1), "queries (B, D) and items (I, D) differ");
        const Listed listed(listed_ptr, listed_idx, x.shape(0), y.shape(0));
        Array<T> scores(listed.idx.size());
        T* to = scores.mutable_data();
        native(n_threads, [&](auto check) {
            return wals::cpu::score_entries<T>(x.data(), x.shape(0), y.data(), x.shape(1), listed.ptr.data(),
                                               listed.idx.data(), to, n_threads, check);
        });
        return scores;
    });
}

py::tuple topk_listed(const py::array& queries, const py::array& items, int64_t k, const Array<int64_t>& listed_ptr,
                      const Array<int32_t>& listed_idx, int n_threads, const std::optional<py::array>& norms) {
    return by_dtype(items, [&](auto zero) -> py::tuple {
        using T = decltype(zero);
        const Array<T> x(queries), y(items);
        require(x.ndim() == 2 && y.ndim() == 2 && x.shape(1) == y.shape(1), "queries (B, D) and items (I, D) differ");
        require(k >= 1, "k must be at least 1");
        const Listed listed(listed_ptr, listed_idx, x.shape(0), y.shape(0));
        const Norms<T> norm(norms, y.shape(0));
        py::array_t<int32_t> ids({x.shape(0), k});
        Array<T> scores({x.shape(0), k});
        int32_t* ids_to = ids.mutable_data();
        T* scores_to = scores.mutable_data();
        native(n_threads, [&](auto check) {
            return wals::cpu::topk_listed<T>(x.data(), x.shape(0), y.data(), x.shape(1), k, listed.ptr.data(),
                                             listed.idx.data(), norm.data, ids_to, scores_to, n_threads, check);
        });
        return py::make_tuple(ids, scores);
    });
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
    m.doc() = "Native CPU kernels of wals_gpu; use wals_gpu.backends.cpu.";
    if (const char* isa = std::getenv("WALS_GPU_ISA"); isa && *isa && !wals::cpu::use_isa(isa)) {
        std::string names;
        for (const std::string& name : wals::cpu::available_isas()) names += " " + name;
        throw py::import_error("WALS_GPU_ISA must be one of" + names + " on this processor, got " + isa);
    }
    bind_limits(m);
    m.def("isa", &wals::cpu::isa, "Name of the instruction set in use.");
    m.def("available_isas", &wals::cpu::available_isas, "Instruction sets that this processor runs, best first.");
    m.def(
        "use_isa", [](const std::string& name) { require(wals::cpu::use_isa(name), "no such instruction set here"); },
        py::arg("name"), "Switches the process to another available instruction set.");
    m.def("gram", &gram, py::arg("factors"), py::arg("weight"), py::arg("n_threads"),
          "Sum of weight[i] y_i y_i' in float64, (D, D).");
    m.def(
        "gram_bounds",
        [](int64_t n, int64_t D) {
            require(n >= 0 && D >= 1, "n must be at least 0, factors at least 1");
            return wals::cpu::gram_bounds(n, D);
        },
        py::arg("n"), py::arg("factors"), "Where the slabs end that gram() adds up in order, from 0 to n.");
    m.def("gram_slabs", &gram_slabs, py::arg("factors"), py::arg("weight"), py::arg("bounds"), py::arg("n_threads"),
          "The same of rows from one bound to the next, (slabs, D, D): upper triangles.");
    m.def("rotate", &rotate, py::arg("factors"), py::arg("rotation"), py::arg("n_threads"),
          "factors (n, D) @ rotation (D, D), padded to whole cache lines; rotation None: a padded copy.");
    m.def("rotate_together", &rotate_together, py::arg("factors"), py::arg("other"), py::arg("basis"),
          py::arg("rotation"), py::arg("wide_other"), py::arg("n_threads"),
          "Rotates three arrays in place, other in float64 if wide_other; not interruptible.");
    m.def("solve_rows", &solve_rows, py::arg("terms"), py::arg("table"), py::arg("spectrum"), py::arg("rotation"),
          py::arg("prior"), py::arg("factors"), py::arg("solver"), py::arg("cg_steps"), py::arg("cg_tolerance"),
          py::arg("block"), py::arg("relaxation"), py::arg("loss"), py::arg("n_threads"),
          "Solves every row into factors (R, D), its part of the loss into loss (R,) if given; returns a status "
          "per row "
          "(0: solved).");
    m.def("solve_rows_plain", &solve_rows_plain, py::arg("terms"), py::arg("other"), py::arg("gram"),
          py::arg("factors"), py::arg("block"), py::arg("relaxation"), py::arg("loss"), py::arg("n_threads"),
          "One pass of subspace steps over every row of factors (R, D) in their own coordinates; otherwise as "
          "solve_rows.");
    m.def("entry_loss", &entry_loss, py::arg("terms"), py::arg("factors"), py::arg("other"), py::arg("n_threads"),
          "Sum over entries of gram s^2 - 2 rhs s, s = x . y, in float64.");
    m.def("ridge_losses", &ridge_losses, py::arg("factors"), py::arg("prior"), py::arg("ridge"), py::arg("n_threads"),
          "Sums of ridge |x - prior|^2 over blocks of LIMITS.loss_rows rows, in float64.");
    m.def(
        "topk", &topk, py::arg("queries"), py::arg("items"), py::arg("k"), py::arg("excluded_ptr"),
        py::arg("excluded_idx"), py::arg("n_threads"), py::arg("filter") = true, py::arg("permitted") = py::none(),
        py::arg("norms") = py::none(), py::arg("history") = py::none(), py::arg("neighbors") = py::none(),
        py::arg("prepared") = py::none(),
        "ids (B, k) and scores (B, k) of the best items, and how many pairs were scored in full: all without filter, "
        "else those that a bound does not rule out. permitted (I,): nobody gets the others; norms (I,): scores are "
        "divided by them; history (B, n) and neighbors (n, I), CSR arrays of either: their product is added to scores "
        "before; prepared: prepare_items of the same items and norms, for speed.");
    m.def(
        "prepare_items", &prepare_items, py::arg("items"), py::arg("norms"), py::arg("n_threads"),
        "Items (I, D), divided by norms (I,) or None, as the int8 filter of topk reads them; None where it has none.");
    m.def("score_entries", &score_entries, py::arg("queries"), py::arg("items"), py::arg("listed_ptr"),
          py::arg("listed_idx"), py::arg("n_threads"), "scores (Z) of each query (B, D) with its listed items.");
    m.def("topk_listed", &topk_listed, py::arg("queries"), py::arg("items"), py::arg("k"), py::arg("listed_ptr"),
          py::arg("listed_idx"), py::arg("n_threads"), py::arg("norms") = py::none(),
          "ids (B, k) and scores (B, k) of the best listed items.");
    m.def("fit_neighbors", &fit_neighbors, py::arg("row_ptr"), py::arg("columns"), py::arg("row_ptr_t"),
          py::arg("columns_t"), py::arg("user_weights"), py::arg("n_neighbors"), py::arg("ridge"), py::arg("memory"),
          py::arg("n_threads"), py::arg("first") = 0, py::arg("last") = py::none(),
          "ids (n, m) and weights (n, m) of the regressions of items [first, last), by default all, on their nearest "
          "items, of users' sorted items and items' sorted users; works in so many bytes.");
    m.def("neighbor_memory", &neighbor_memory, py::arg("n_items"), py::arg("n_neighbors"), py::arg("wide"),
          py::arg("n_threads"), "Bytes that fit_neighbors works in: the least, and the most that can be of use.");
    m.def("transpose", &transpose, py::arg("row_ptr"), py::arg("col_idx"), py::arg("value"), py::arg("n_cols"),
          py::arg("n_threads"), "CSR arrays of the transposed matrix.");
}
