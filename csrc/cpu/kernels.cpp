// All kernels of one instruction set; compiled once per set (see simd.h).
#include "kernels.h"

#include "dense.h"
#include "solve_exact.h"

namespace wals {
namespace WALS_ISA {

template <class T>
static int64_t exact_bytes(int64_t D) {
    int64_t bytes = ExactWorkspace<T>::bytes(D);
    if (ExactWorkspace<double>::bytes(D) > bytes) bytes = ExactWorkspace<double>::bytes(D);
    return bytes + kRowsPerCall * padded<T>(D) * int64_t(sizeof(T)) + 64;
}

template <class T>
static void solve_exact_rows(const RotatedRows<T>& p, const int64_t* rows, int64_t n, char* workspace,
                             RowStatus* status) {
    const int64_t P = padded<T>(p.D);
    Carver carve{workspace};
    T* z = carve.take<T>(kRowsPerCall * P);
    int64_t solved[kRowsPerCall];
    int64_t m = 0;
    for (int64_t i = 0; i < n; ++i) {
        status[rows[i]] = solve_row<T>(p, rows[i], carve.at, nullptr, z + m * P);
        if (status[rows[i]] == 0) solved[m++] = rows[i];
    }
    write_back(p, solved, m, z);
}

/// Gram part (M, M) in panel layout, then the right-hand side (M).
template <class T>
static int64_t partial_size(int64_t D) {
    const int64_t M = round_up(D, kWidth<T>);
    return M * M + M;
}

template <class T>
static void exact_partial_rows(const RotatedRows<T>& p, int64_t begin, int64_t end, char* workspace, T* out) {
    ExactWorkspace<T> w(workspace, p.D);
    const int64_t M = round_up(p.D, kWidth<T>), K = panel_rows<T>(p.D);
    for (int64_t i = 0; i < M * M + M; ++i) out[i] = 0;
    for (; begin < end; begin += K) {
        const int64_t stop = end - begin < K ? end : begin + K;
        int64_t plus = 0, minus = 0;
        for (int64_t e = begin; e < stop; ++e) {
            plus += p.terms.gram(e) > 0;
            minus += p.terms.gram(e) < 0;
        }
        Panel<T> panel{w.panel, plus + minus};
        pack_primal(p, begin, stop, panel, plus, out + M * M);
        add_gram(panel, M, plus, plus + minus, Panel<T>{out, M});
    }
}

template <class T>
static void solve_exact_from(const RotatedRows<T>& p, int64_t row, const T* partial, char* workspace,
                             RowStatus* status) {
    Carver carve{workspace};
    T* z = carve.take<T>(padded<T>(p.D));
    status[row] = solve_row<T>(p, row, carve.at, partial, z);
    if (status[row] == 0) write_back(p, &row, 1, z);
}

template <class T>
static int64_t rotation_elements(int64_t D) {
    return round_up(D, kWidth<double>) * D;
}

template <class T>
static constexpr KernelTable<T> table = {
    kWidth<T>,           kRowsPerCall,
    exact_bytes<T>,      solve_exact_rows<T>,
    partial_size<T>,     exact_partial_rows<T>,
    solve_exact_from<T>, gram_bytes,
    gram_rows<T>,        rotation_elements<T>,
    pack_square<double>, [](const double* q, int64_t D, T* packed) { pack_square<T>(q, D, true, packed); },
    rotate_rows<T>,      entry_loss_rows<T>,
};

const KernelTable<float>* table_f32() {
    return &table<float>;
}
const KernelTable<double>* table_f64() {
    return &table<double>;
}

}    // namespace WALS_ISA
}    // namespace wals
