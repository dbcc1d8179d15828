// The table of kernels that every instruction set fills in, and the problem descriptions they share.
//
// Kernels are single-threaded, allocate nothing and throw nothing: the drivers (drivers.cpp) give them rows, workspace
// and a place for the status of each row.
#pragma once

#include <cstdint>

#include "../common/limits.h"
#include "../common/terms.h"
#include "../common/topk_order.h"

namespace wals::cpu {

/// Tables that kernels read are padded with zeros to whole cache lines.
template <class T>
constexpr int64_t padded(int64_t D) {
    constexpr int64_t lane = 64 / int64_t(sizeof(T));
    return (D + lane - 1) / lane * lane;
}

/// Rows of the objective in the basis where the other side's Gram matrix is diagonal: A_r = g_r diag(spectrum) +
/// lambda_r I + sum over entries of gram r r', with r the rows of `table`.
template <class T>
struct RotatedRows {
    RowTerms<T> terms;
    int64_t D = 0;
    const T* table = nullptr;          // (n_other, padded D)
    const double* spectrum = nullptr;  // (D): eigenvalues of G, rising
    const T* prior = nullptr;          // (R, padded D), rotated, or null for zero
    const T* into = nullptr;           // packed Q that rotates present factors in, and
    const T* back = nullptr;           // packed Q' that rotates solutions back; both null for the identity
    T* factors = nullptr;              // (R, D) out; the iterative solvers start from it
    int64_t factor_stride = 0;
    double* loss = nullptr;  // (R) out, or null: each row's part of the loss, x'Ax - 2b'x but for the prior's constant
};

/// Rows of the objective in the factors' own coordinates, for subspace steps (subspace-inl.h).
template <class T>
struct PlainRows {
    RowTerms<T> terms;
    int64_t D = 0, n_other = 0;
    int64_t block = 64;              // coordinates of a step
    const T* table = nullptr;        // block after block: (n_other, padded number of its coordinates)
    const double* gram = nullptr;    // (D, D) of the other side, weighted
    const T* packed_gram = nullptr;  // the same by pack_factor_rotation
    T* factors = nullptr;            // (R, D) in and out
    double* loss = nullptr;          // as in RotatedRows
};

/// Rows of one call of subspace steps in plain coordinates at most: all of G is read for them once.
constexpr int64_t kPlainRows = 128;

/// Status of a row: 0 solved, k > 0 pivot k not positive (singular), -1 the solution is not finite.
using RowStatus = int32_t;

/// Rows that are rotated together where the rotation (D, D) does not fit L2, and so have a copy of their own.
constexpr int64_t kRotatedRows = 256;
constexpr bool rotates_many(int64_t D) {
    return D > 512;
}

/// Numbers of KernelTable::rotate's workspace: a copy of the rows, and three vectors of results of each.
constexpr int64_t rotation_workspace(int64_t D) {
    return rotates_many(D) ? kRotatedRows * (D + 3 * 16) + 64 : 16 * D;
}

/// Some queries of a retrieval and their lists of candidates (topk_list-inl.h).
template <class T>
struct TopkChunk {
    int64_t n_queries = 0, D = 0, k = 0;
    const T* queries = nullptr;             // (n_queries, D)
    const T* items = nullptr;               // (I, D)
    const T* norms = nullptr;               // (I): each item is divided by its own before it is scored; or null
    const int32_t* rows = nullptr;          // rising: the items that are searched; null: all
    const uint8_t* permitted = nullptr;     // (I): 0 where no query may get an item; or null. For kFewQueries at most
    const int64_t* excluded_ptr = nullptr;  // rows of the queries, or null
    const int32_t* excluded_idx = nullptr;  // sorted within a row
    bool filter = true;                     // may pass over items that an int8 bound rules out
    char* prepared = nullptr;               // what KernelTable::prepare has written of all items; or null
    int64_t n_items = 0;                    // I
    int64_t capacity = 0;                   // a list that reaches it is cut to k, and
    int64_t stride = 0;                     // the room it has: two vectors more
    T* scores = nullptr;                    // (n_queries, stride)
    int32_t* ids = nullptr;                 // (n_queries, stride)
    int64_t* count = nullptr;               // (n_queries): 0 at first
    T* threshold = nullptr;                 // (n_queries): a score must be above it; -inf at first
    int64_t* scored = nullptr;              // += pairs whose score was computed
    const T* added = nullptr;               // (n_queries, added_stride): is added to scores, by item; or null
    int64_t added_stride = 0;               // I, and room to read three vectors past it
    const T* most_added = nullptr;          // (n_queries): the largest absolute value of each row

    /// Items are searched in the order of their places, [0, length of rows), or [0, I).
    int32_t item(int64_t place) const { return rows ? rows[place] : int32_t(place); }
};

/// What the items that users have add to the scores of the items that these are neighbours of (history-inl.h).
template <class T>
struct Histories {
    int64_t n_queries = 0, n_items = 0;  // of the queries; that are scored
    const int64_t* row_ptr = nullptr;    // (n_queries + 1)
    const int32_t* items = nullptr;      // rows of the neighbours, of each query
    const T* weights = nullptr;          // of those
    int64_t n_rows = 0, n_entries = 0;   // of the neighbours
    const int64_t* to_ptr = nullptr;     // (n_rows + 1)
    const int32_t* to = nullptr;         // (n_entries): items
    const T* to_weights = nullptr;       // (n_entries)
    const T* norms = nullptr;            // (n_items): as of TopkChunk; or null
};

/// Queries of a chunk that are searched without packing items (topk_few-inl.h).
constexpr int64_t kFewQueries = 3;

/// Items that KernelTable::prepare writes side by side: segments of a search begin with such.
constexpr int64_t kPreparedTogether = 48;

/// Every item's nearest items, and the regressions on them (neighbors-inl.h).
template <class T>
struct Neighborhoods {
    int64_t n_users = 0, n_items = 0;
    int64_t first = 0, last = 0;        // items that are wanted, [first, last)
    int64_t m = 0;                      // neighbours at most, no more than there are items
    const int64_t* user_ptr = nullptr;  // (n_users + 1)
    const int32_t* items = nullptr;     // of each user, rising
    const int64_t* item_ptr = nullptr;  // (n_items + 1)
    const int32_t* users = nullptr;     // of each item, rising
    const T* user_weight = nullptr;     // (n_users): v
    double ridge = 0;
    int64_t stride = 0;                // of the results, m at least
    int32_t* ids = nullptr;            // (last - first, stride) out: rising, -1 where there are fewer
    T* weights = nullptr;              // (last - first, stride) out
    const double* diagonal = nullptr;  // (n_items): G_ii
    int32_t* count = nullptr;          // (n_items): neighbours found
};

/// A neighbourhood that holds an item: where its numbers of neighbours begin with that item, where the pairs of the
/// item with those go, and how many they are.
struct Holder {
    int64_t from, to, n;
};

struct Solver {
    enum Kind { kExact, kConjugateGradients, kSubspace };
    Kind kind = kExact;
    int cg_steps = 3;
    double cg_tolerance = 0;  // relative, of the preconditioned residual; 0: always cg_steps
    int64_t block = 64;       // coordinates of a subspace step
    double relaxation = 1;    // a row with entries goes this many times the way to its solution, from where it was
};

template <class T>
struct KernelTable {
    /// Rows handed to one call of solve at most; they are rotated together.
    int64_t rows_per_call;
    /// Workspace of solve, exact_partial and solve_exact_from; longest is the length of the longest row.
    int64_t (*workspace_bytes)(int64_t D, int64_t longest);
    void (*solve)(const RotatedRows<T>& problem, const Solver& solver, const int64_t* rows, int64_t n_rows,
                  char* workspace, RowStatus* status);
    /// One pass of subspace steps over n_rows rows with so many entries together; kPlainRows at most.
    int64_t (*plain_workspace_bytes)(int64_t D, int64_t block, int64_t entries);
    void (*solve_plain)(const PlainRows<T>& problem, double relaxation, const int64_t* rows, int64_t n_rows,
                        int64_t entries, char* workspace, RowStatus* status);
    /// Partial Gram matrices of one very long row: out (exact_partial_size) = sum over entries [begin, end).
    int64_t (*exact_partial_size)(int64_t D);
    void (*exact_partial)(const RotatedRows<T>& problem, int64_t begin, int64_t end, char* workspace, T* out);
    void (*solve_exact_from)(const RotatedRows<T>& problem, const Solver& solver, int64_t row, const T* partial,
                             char* workspace, RowStatus* status);
    /// gram (D, D) float64, upper triangle += sum over rows [begin, end) of weight y y'.
    int64_t (*gram_workspace_bytes)(int64_t D);
    void (*gram)(const T* y, int64_t D, Broadcast<T> weight, int64_t begin, int64_t end, double* out, char* workspace);
    /// The same over slabs of rows, which end at bounds, for two blocks of gram_block_columns columns of the result
    /// alone, i <= j, both triangles.
    int64_t gram_block_columns;
    int64_t (*gram_block_workspace_bytes)();
    void (*gram_block)(const T* y, int64_t D, Broadcast<T> weight, const int64_t* bounds, int64_t slabs, int64_t i,
                       int64_t j, double* out, char* workspace);
    /// out (n, padded D) = y (n, D) q, accumulated in float64; q comes packed by pack_rotation.
    int64_t (*rotation_size)(int64_t D);
    void (*pack_rotation)(const double* q, int64_t D, bool transposed, double* packed);
    int64_t (*factor_rotation_size)(int64_t D);
    void (*pack_factor_rotation)(const double* q, int64_t D, bool transposed, T* packed);
    void (*rotate)(const T* y, int64_t n, int64_t D, const double* packed, T* out, double* workspace);
    /// The same accumulated in T, q packed by pack_factor_rotation.
    void (*rotate_in_factor_type)(const T* y, int64_t n, int64_t D, const T* packed, T* out, T* workspace);
    /// Sum over rows [begin, end) of ridge |x - prior|^2, in float64; prior may be null.
    double (*ridge_loss)(const T* x, const T* prior, int64_t D, Broadcast<T> ridge, int64_t begin, int64_t end);
    /// Sum over entries of rows [begin, end) of gram s^2 - 2 rhs s with s = x . y, in float64.
    double (*entry_loss)(const RowTerms<T>& terms, const T* x, const T* y, int64_t D, int64_t begin, int64_t end,
                         double* workspace);
    /// Leaves the best k of the items of places [begin, end) for each of the chunk's queries in its list, in order.
    int64_t (*topk_workspace_bytes)(int64_t D, int64_t n_queries, int64_t k);
    void (*topk)(const TopkChunk<T>& chunk, int64_t begin, int64_t end, char* workspace);
    /// Items as the int8 filter reads them, kept for many searches. Bytes of all, aligned by 64; null where there is no
    /// such filter.
    int64_t (*prepared_bytes)(int64_t n_items, int64_t D);
    /// Writes the items of the chunk from `begin`, a multiple of kPreparedTogether, to `end`, I or such a multiple.
    void (*prepare)(const TopkChunk<T>& chunk, int64_t begin, int64_t end, char* workspace);
    /// scores (n) = x . items[listed[e]], divided by norms[listed[e]] first where there are norms.
    void (*score_entries)(const T* x, const T* items, const T* norms, int64_t D, const int32_t* listed, int64_t n,
                          T* scores);
    /// row (n_items, zeros up to stride) = what the history of a query adds to scores, most its largest absolute value.
    /// False: an index is outside.
    bool (*add_history)(const Histories<T>& histories, int64_t query, T* row, int64_t stride, T* most);
    /// Neighbourhoods: of items [begin, end), of one item, of a row of G; workspace is prepared by start_neighbors.
    int64_t (*neighbor_workspace_bytes)(int64_t n_items, int64_t m);
    void (*start_neighbors)(int64_t n_items, int64_t m, char* workspace);
    void (*sum_diagonal)(const Neighborhoods<T>& problem, int64_t begin, int64_t end, double* diagonal);
    void (*select_neighbors)(const Neighborhoods<T>& problem, int64_t item, char* workspace);
    void (*fill_pairs)(const Neighborhoods<T>& problem, int64_t row, const Holder* holders, int64_t n, T* pairs,
                       char* workspace);
    void (*regress)(const Neighborhoods<T>& problem, int64_t item, const T* pairs, char* workspace);
};

}  // namespace wals::cpu
