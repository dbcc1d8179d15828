// All kernels of one instruction set; compiled once per set (see simd-inl.h).
#include "kernels.h"

#include "dense-inl.h"
#include "history-inl.h"
#include "neighbors-inl.h"
#include "score_entries-inl.h"
#include "solve_iterative-inl.h"
#include "subspace-inl.h"
#include "topk_guess-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

template <class T>
static int64_t workspace_bytes(int64_t D, int64_t longest) {
    int64_t bytes = ExactWorkspace<T>::bytes(D);
    if (ExactWorkspace<double>::bytes(D) > bytes) bytes = ExactWorkspace<double>::bytes(D);
    if (CgWorkspace<T>::bytes(D, longest) > bytes) bytes = CgWorkspace<T>::bytes(D, longest);
    return bytes + round_up((2 * kRowsPerCall * padded<T>(D) + longest) * int64_t(sizeof(T)), 64) + 256;
}

/// Exact solve of one row into z, and its part of the loss where that is asked for.
template <class T>
static RowStatus solve_with_loss(const RotatedRows<T>& p, int64_t row, char* memory, const T* partial, T* z,
                                 const Relaxation<T>& relaxation) {
    double loss;
    const RowStatus status = solve_row<T>(p, row, memory, partial, z, p.loss ? &loss : nullptr, relaxation);
    if (p.loss && status == 0) p.loss[row] = loss == loss ? loss : row_loss(p, row, z);
    return status;
}

template <class T>
static void solve_rows(const RotatedRows<T>& p, const Solver& solver, const int64_t* rows, int64_t n, char* workspace,
                       RowStatus* status) {
    const int64_t P = padded<T>(p.D);
    auto length = [&](int64_t i) { return p.terms.row_ptr[rows[i] + 1] - p.terms.row_ptr[rows[i]]; };
    int64_t longest = 0;
    for (int64_t i = 0; i < n; ++i) longest = length(i) > longest ? length(i) : longest;
    Carver carve{workspace};
    T* z = carve.take<T>(kRowsPerCall * P);
    T* present = carve.take<T>(kRowsPerCall * P);
    T* errors = carve.take<T>(longest);
    const bool relaxed = solver.relaxation != 1;
    if (solver.kind != Solver::kExact || relaxed) rotate_in(p, rows, n, present);
    int64_t solved[kRowsPerCall];
    int64_t m = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t row = rows[i];
        T* const zi = z + m * P;
        const Relaxation<T> relaxation{relaxed ? present + i * P : nullptr, solver.relaxation};
        if (solver.kind == Solver::kExact || length(i) == 0) {
            status[row] = solve_with_loss<T>(p, row, carve.at, nullptr, zi, relaxation);
        } else {
            for (int64_t j = 0; j < P; ++j) zi[j] = present[i * P + j];
            if (solver.kind == Solver::kSubspace) {
                status[row] = solve_row_subspace<T>(p, row, solver.block, carve.at, errors, zi, relaxation);
                if (p.loss && status[row] == 0) p.loss[row] = row_loss(p, row, zi);
            } else {
                status[row] = solve_row_cg<T>(p, row, solver, carve.at, zi, relaxation);
            }
        }
        if (status[row] == 0) solved[m++] = row;
    }
    write_back(p, solved, m, z);
}

/// Gram part (M, M) in panel layout, then the right-hand side (M); of a system that is solved in blocks also what was
/// subtracted from the diagonal (M).
template <class T>
static int64_t partial_size(int64_t D) {
    const int64_t M = round_up(D, kWidth<T>);
    return system_capacity(D, M) * M + (is_blocked(D) ? 2 * M : M);
}

template <class T>
static void exact_partial_rows(const RotatedRows<T>& p, int64_t begin, int64_t end, char* workspace, T* out) {
    ExactWorkspace<T> w(workspace, p.D);
    const int64_t M = round_up(p.D, kWidth<T>), K = panel_rows<T>(p.D);
    for (int64_t i = 0; i < partial_size<T>(p.D); ++i) out[i] = 0;
    if (is_blocked(p.D)) {
        const int64_t capacity = blocked_capacity(M);
        T* const rhs = out + M * capacity;
        return sum_slabs(p, begin, end, w, Columns{0, p.D, M}, Panel<T>{out, capacity}, rhs, rhs + M);
    }
    for (; begin < end; begin += K) {
        const int64_t stop = end - begin < K ? end : begin + K;
        const Signs s = count_signs(p.terms, begin, stop);
        const Columns columns{0, p.D, M};
        Panel<T> panel{w.panel, s.plus + s.minus};
        pack_primal(p, begin, stop, columns, panel, s, w.scale, out + M * M);
        Upcoming next = upcoming<T>(p, stop, end, columns);
        add_gram(panel, M, s.plus, s.plus + s.minus, Panel<T>{out, M}, &next);
    }
}

template <class T>
static void solve_exact_from(const RotatedRows<T>& p, const Solver& solver, int64_t row, const T* partial,
                             char* workspace, RowStatus* status) {
    Carver carve{workspace};
    T* z = carve.take<T>(padded<T>(p.D));
    Relaxation<T> relaxation;
    if (solver.relaxation != 1) {
        T* present = carve.take<T>(padded<T>(p.D));
        rotate_in(p, &row, 1, present);
        relaxation = {present, solver.relaxation};
    }
    status[row] = solve_with_loss<T>(p, row, carve.at, partial, z, relaxation);
    if (status[row] != 0) return;
    write_back(p, &row, 1, z);
}

/// Elements of pack_square's result, whole cache lines.
template <class T>
static int64_t packed_square_size(int64_t D) {
    return round_up(round_up(D, kWidth<T>) * D, 64);
}

template <class T>
static void topk(const TopkChunk<T>& chunk, int64_t begin, int64_t end, char* workspace) {
    topk_plain(chunk, begin, end, workspace);
    finish_lists(chunk, reinterpret_cast<SortKey<T>*>(workspace));
}

template <class T>
static constexpr KernelTable<T> table = {
    kRowsPerCall,
    workspace_bytes<T>,
    solve_rows<T>,
    PlainWorkspace<T>::bytes,
    solve_plain_subspace<T>,
    partial_size<T>,
    exact_partial_rows<T>,
    solve_exact_from<T>,
    gram_bytes,
    gram_rows<T>,
    kGramColumns,
    gram_block_bytes,
    gram_block<T>,
    packed_square_size<double>,
    pack_square<double>,
    packed_square_size<T>,
    pack_square<T>,
    rotate_rows<T, double>,
    rotate_rows<T, T>,
    ridge_loss_rows<T>,
    entry_loss_rows<T>,
    topk_plain_bytes<T>,
    topk<T>,
    nullptr,
    nullptr,
    score_entries<T>,
    add_history<T>,
    neighbor_workspace_bytes,
    start_neighbors,
    sum_diagonal<T>,
    select_neighbors<T>,
    fill_pairs<T>,
    regress<T>,
};

const KernelTable<float>* table_f32() {
    return &table<float>;
}
const KernelTable<double>* table_f64() {
    return &table<double>;
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
