// Top-k with an int8 filter: most pairs are ruled out by an integer product, the rest are scored as topk_rows-inl.h
// does.
//
// Every vector x is written as x = (z + r) / u with z = round(u x) in int8 and u = 127 / max |x|. For a query q and an
// item y, by Cauchy-Schwarz on what rounding left over,
//
//     u_q u_y q.y  <=  z_q.z_y + |r_q| |u_y y| + |z_q| |r_y|,
//
// so a pair whose right-hand side is below u_q u_y t cannot score above the query's threshold t. The integer product
// is exact and costs a quarter (AVX512-VNNI) or less (AMX) of a float32 one. The bound is a few per cent of |q| |y|:
// about one and a half times as many pairs pass as are above the threshold. Those are scored by score_rows, to the same
// bits as without a filter. The result is therefore the same for any input. A loose bound (a few coordinates much
// larger than the rest) costs time alone, and not much: a query that lets too many pairs pass goes on without the
// filter for a while.
//
// The floor, per pair and D = 128: 4 cycles of float32 multiply-adds, 1 of VNNI, 1/8 of AMX, and 1/5 for the comparison
// with the bound. What passes costs 50 cycles each, quantising an item 50 (shared by the chunk's queries).
//
// Where something is added to scores, s of a pair, t - s takes the place of t: still one multiply-add a vector more,
// and a load.
//
// Items that are searched again and again are prepared once (prepare): quantised, with their three numbers, a quarter
// of their float32 memory and 12 bytes each. Then the filter also serves a few queries, whose time is that of reading
// memory: D + 12 bytes an item in place of 4 D, and 4 D of the few that pass. Measured with one query of 300,000 items:
// see "One request at a time" in docs/retrieval.md.
//
// Rounding. Norms are rounded up. The float32 score itself may exceed q.y by gamma |q| |y|, gamma = D 2^-24. Scaling,
// levels and the bound are float32, which may err by 2^-21 |z_q| |u_y y| in all; kSlack allows thirty times as much,
// about a thousandth of the bound. Vectors that quantise() leaves out pass always (items) or go without the filter
// (queries).
#include "int8_tiles-inl.h"
#include "topk_guess-inl.h"

namespace wals::cpu {
namespace isa_avx512 {
const KernelTable<float>* table_f32();
const KernelTable<double>* table_f64();
}  // namespace isa_avx512

namespace WALS_ISA {

constexpr float kSlack = 1.0f / 65536;

/// Values of D the filter is for: int32 sums of 255 * 127 * D, and gamma far below the bound.
constexpr int64_t kLargestD = 8192;

/// Queries that share the quantised items; with fewer, quantising costs more than it saves.
constexpr int64_t kFewestQueries = 32;

/// The filter pays once one item in so many is among the best k so far: the bound lets nearly twice as many pass, and
/// scoring a pair alone costs ten times as much as in a tile.
constexpr int64_t kItemsForOne = 24;

/// Items whose float32 rows stay in L2 while all queries pass, about 256 KiB: pairs that pass are scored from there.
static inline int64_t block_items(int64_t D) {
    constexpr int64_t tile = kTileItems<float>;
    const int64_t n = 65536 / (D > 0 ? D : 1) / tile * tile;
    return n < tile ? tile : n > 10 * tile ? 10 * tile : n;
}

/// Prepared items: as the block of a Filter, all of them up to whole tiles.
struct Prepared {
    int8_t* items;
    float *u, *n, *e;
    char* end;

    Prepared(char* memory, int64_t n_items, int64_t D) {
        const int64_t I = round_up(n_items, kPreparedTogether);
        Carver carve{memory};
        items = carve.take<int8_t>(I * padded_bytes(D));
        u = carve.take<float>(I);
        n = carve.take<float>(I);
        e = carve.take<float>(I);
        end = carve.at;
    }
};

/// What a task keeps beside its lists. Scaled by u_q u_y, a pair passes if z_q.z_y >= level u - spread n - weight e.
struct Filter {
    int8_t* query;        // (n_queries up to whole tiles, P): z_q
    int32_t* shift;       // (n_queries): -128 sum of z_q, for items with 128 added
    float* scale;         // (n_queries): u_q
    float* level;         // (n_queries): u_q t, or infinite while the query goes without the filter
    float* spread;        // (n_queries): |r_q| and slack
    float* weight;        // (n_queries): |z_q|
    int64_t* plain_from;  // (n_queries): it goes without on places [plain_from, plain_to)
    int64_t* plain_to;    // (n_queries)
    int64_t* rest;        // (n_queries): blocks it will go without next time
    int32_t* passed;      // (n_queries): pairs of the present block that passed
    int32_t* n_waiting;   // (n_queries)
    int32_t* waiting;     // (n_queries, kWaiting): places of items that passed and wait for a full vector of them
    int8_t* items;        // (panels of 16 items, P / 4, 16, 4): z_y, with kOffset
    float *u, *n, *e;     // (block): of the items
    int32_t* ids;         // (block): items, while something is added to scores and they are listed
    int8_t* rows;         // (16, P): a panel before it is transposed
    float* packed;        // a tile of float32 items
    int32_t* which;       // (n_queries)

    static constexpr int64_t kWaiting = 80;  // 15 left over, the 48 of a tile, room to store a whole vector

    /// With prepared items, the block is part of them; see `move_to`.
    Filter(char* memory, int64_t D, int64_t n_queries, const Prepared* whole = nullptr) : prepared(whole) {
        const int64_t P = padded_bytes(D), B = whole ? 0 : block_items(D), Q = round_up(n_queries, 16);
        Carver carve{memory};
        query = carve.take<int8_t>(Q * P + 64);
        shift = carve.take<int32_t>(Q);
        scale = carve.take<float>(Q);
        level = carve.take<float>(Q);
        spread = carve.take<float>(Q);
        weight = carve.take<float>(Q);
        plain_from = carve.take<int64_t>(Q);
        plain_to = carve.take<int64_t>(Q);
        rest = carve.take<int64_t>(Q);
        passed = carve.take<int32_t>(Q);
        n_waiting = carve.take<int32_t>(Q);
        waiting = carve.take<int32_t>(Q * kWaiting);
        items = carve.take<int8_t>(B * P);
        u = carve.take<float>(B);
        n = carve.take<float>(B);
        e = carve.take<float>(B);
        ids = carve.take<int32_t>(B);
        rows = carve.take<int8_t>(16 * P + 64);
        packed = carve.take<float>(kTileItems<float> * D);
        which = carve.take<int32_t>(Q);
        end = carve.at;
    }
    char* end;
    const Prepared* prepared;

    /// The block of prepared items that begins with `first`.
    void move_to(int64_t first, int64_t P) {
        items = prepared->items + first * P;
        u = prepared->u + first;
        n = prepared->n + first;
        e = prepared->e + first;
    }

    bool uses_filter(int64_t q) const { return level[q] < __builtin_inff(); }

    /// The query uses the filter from now on, or still does, with this threshold. Where the product overflows, items
    /// that always pass may still be above it.
    ///
    /// most_added: the largest absolute value that is added to a score of the query. The score and the level less what
    /// is added, both sums, err by some 2^-24 of it and of the threshold.
    void set_level(int64_t q, float threshold, const float* most_added) {
        float product = threshold * scale[q];
        if (most_added) {
            const float size = (product < 0 ? -product : product) + most_added[q] * scale[q];
            product -= 0x1p-20f * size;
        }
        level[q] = product < __FLT_MAX__ ? product : __FLT_MAX__;
    }
};

/// Quantises places [begin, end), a block at most; prepared ones are only looked up.
static void quantise_items(const TopkChunk<float>& p, int64_t begin, int64_t end, Filter& f) {
    const int64_t P = padded_bytes(p.D);
    if (f.prepared) {
        f.move_to(begin, P);
        return;
    }
    for (int64_t i0 = begin; i0 < end; i0 += 16) {
        const int64_t at = i0 - begin;
        quantise_panel(p, i0, end, f.rows, f.items + at * P, f.u + at, f.n + at, f.e + at);
    }
}

/// The items of a block of listed places, for what is added to their scores; past the end, up to whole tiles, the last.
static void list_items(const TopkChunk<float>& p, int64_t begin, int64_t end, Filter& f) {
    for (int64_t at = 0; at < round_up(end - begin, kTileItems<float>); at += 16) {
        int32_t id[16];
        items_from(p, begin + at, end, id);
        __builtin_memcpy(f.ids + at, id, sizeof(id));
    }
}

/// Scores up to 16 items whose places wait, the first that came, and appends those above the threshold.
static void score_waiting(const TopkChunk<float>& p, Filter& f, int64_t q) {
    int32_t* const waiting = f.waiting + q * Filter::kWaiting;
    const int n = f.n_waiting[q] < 16 ? f.n_waiting[q] : 16;
    int32_t id[16];
    const float* row[16];
    for (int i = 0; i < 16; ++i) {
        id[i] = p.item(waiting[i < n ? i : 0]);
        row[i] = p.items + id[i] * p.D;
    }
    const float* x = p.queries + q * p.D;
    Vec<float> score[1], norm;
    if (p.norms) norm = norms_of(p.norms, id);
    score_rows<float, 1>(&x, row, p.D, score, p.norms ? &norm : nullptr);
    if (p.added) score[0] += gather(p.added + q * p.added_stride, id);
    const uint32_t lanes = greater<float>(score[0], splat(p.threshold[q])) & ((1u << n) - 1);
    if (lanes) {
        append(p, q, lanes, score[0], id);
        f.set_level(q, p.threshold[q], p.most_added);
    }
    *p.scored += n;
    f.n_waiting[q] -= n;
    for (int i = 0; i < f.n_waiting[q]; ++i) waiting[i] = waiting[i + n];
}

/// The lanes' items, of places from `first` on, wait to be scored with query q.
static inline void let_wait(Filter& f, int64_t q, __mmask16 lanes, int64_t first) {
    const __m512i id = _mm512_add_epi32(_mm512_set1_epi32(int32_t(first)), __m512i(lane_index<float>()));
    _mm512_storeu_si512(f.waiting + q * Filter::kWaiting + f.n_waiting[q], _mm512_maskz_compress_epi32(lanes, id));
    const int added = __builtin_popcount(lanes);
    f.n_waiting[q] += added;
    f.passed[q] += added;
}

/// Pairs of the tile's items with query q that may be above its threshold: they wait to be scored.
static __attribute__((noinline)) void let_pass(const TopkChunk<float>& p, Filter& f, int64_t q,
                                               const __mmask16 (&lanes)[kItemTile], int64_t begin, int64_t end) {
    if (!f.uses_filter(q)) return;  // items that always pass
    for (int64_t b = 0; b < kItemTile; ++b) {
        const int64_t first = begin + b * 16;
        let_wait(f, q, lanes[b] & __mmask16(lanes_inside<float>(first, end)), first);
    }
    while (f.n_waiting[q] >= 16) score_waiting(p, f, q);
}

/// All queries that use the filter against the quantised block [begin, end).
///
/// Cost of a pair: D integer multiply-adds, and per 16 pairs a conversion, three multiply-adds and a compare.
template <bool kAdded>
static void filter_block(const TopkChunk<float>& p, Filter& f, int64_t begin, int64_t end, const int64_t limit) {
    const int64_t P = padded_bytes(p.D);
    for (int64_t q0 = 0; q0 < p.n_queries; q0 += kQueries) {
        const int64_t n = p.n_queries - q0 < kQueries ? p.n_queries - q0 : kQueries;
        bool any = false;
        for (int64_t q = q0; q < q0 + n; ++q) any |= f.uses_filter(q);
        if (!any) continue;
        for (int64_t i0 = begin; i0 < end; i0 += kTileItems<float>) {
            const int64_t at = i0 - begin;
            int32_t product[kQueries][kTileItems<float>] __attribute__((aligned(64)));
            multiply_tile(f.query + q0 * P, f.shift + q0, f.items + at * P, P, product);
            __m512 u[kItemTile], norm[kItemTile], e[kItemTile];
#pragma GCC unroll 3
            for (int b = 0; b < kItemTile; ++b) {
                u[b] = _mm512_load_ps(f.u + at + b * 16);
                norm[b] = _mm512_load_ps(f.n + at + b * 16);
                e[b] = _mm512_load_ps(f.e + at + b * 16);
            }
#pragma GCC unroll 8
            for (int r = 0; r < kQueries; ++r) {
                const int64_t q = q0 + r;
                const __m512 level = _mm512_set1_ps(f.level[q]), spread = _mm512_set1_ps(f.spread[q]);
                const __m512 weight = _mm512_set1_ps(f.weight[q]), scale = _mm512_set1_ps(f.scale[q]);
                __mmask16 lanes[kItemTile];
#pragma GCC unroll 3
                for (int b = 0; b < kItemTile; ++b) {
                    const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(&product[r][b * 16]));
                    __m512 least = level;
                    if constexpr (kAdded) {
                        const int64_t real = r < n ? q : q0;
                        const int64_t place = i0 + b * 16;
                        const __m512 added = __m512(added_to(p, real, place, f.ids + at + b * 16));
                        least = _mm512_fnmadd_ps(scale, added, level);
                    }
                    const __m512 bound =
                        _mm512_fnmadd_ps(weight, e[b], _mm512_fnmadd_ps(spread, norm[b], _mm512_mul_ps(least, u[b])));
                    lanes[b] = _mm512_cmp_ps_mask(dot, bound, _CMP_NLT_UQ);  // NaN passes
                }
                if (lanes[0] | lanes[1] | lanes[2]) {
                    let_pass(p, f, q, lanes, i0, end);
                    if (f.passed[q] > limit) {  // the bound is too loose for this query: go on without for a while
                        while (f.n_waiting[q]) score_waiting(p, f, q);
                        f.level[q] = __builtin_inff();
                        f.plain_from[q] = i0 + kTileItems<float>;
                        f.plain_to[q] = end + f.rest[q] * block_items(p.D);
                        f.rest[q] *= 2;
                        f.passed[q] = 0;
                    }
                }
            }
        }
    }
}

/// The queries that go without the filter, over places [begin, end).
static void plain_block(const TopkChunk<float>& p, Filter& f, int64_t begin, int64_t end) {
    for (int64_t i0 = begin; i0 < end; i0 += kTileItems<float>) {
        int64_t n = 0;
        for (int64_t q = 0; q < p.n_queries; ++q)
            if (f.plain_from[q] <= i0 && f.plain_to[q] > begin) f.which[n++] = int32_t(q);
        if (n == 0) continue;
        pack_items(p, i0, end, f.packed);
        score_tile(p, f.which, n, i0, end, f.packed);
    }
}

/// First thresholds from approximate scores of a sample. Queries that get one start with the filter at once.
static void guess_thresholds(const TopkChunk<float>& p, int64_t begin, int64_t end, Filter& f) {
    const Sample<float> sample(p, begin, end);
    const int64_t P = padded_bytes(p.D);
    if (!sample.start()) return;
    for (int64_t s = 0; s < sample.size; ++s) {
        const int64_t i0 = sample.tile_begin(s);
        quantise_items(p, i0, i0 + kTileItems<float>, f);
        __m512 inverse[kItemTile];
        for (int b = 0; b < kItemTile; ++b) {
            const __m512 u = _mm512_load_ps(f.u + b * 16);
            const __mmask16 regular = _mm512_cmp_ps_mask(u, _mm512_setzero_ps(), _CMP_GT_OQ);
            inverse[b] = _mm512_maskz_div_ps(regular, _mm512_set1_ps(1), u);
        }
        for (int64_t q0 = 0; q0 < p.n_queries; q0 += kQueries) {
            int32_t product[kQueries][kTileItems<float>] __attribute__((aligned(64)));
            multiply_tile(f.query + q0 * P, f.shift + q0, f.items, P, product);
            for (int64_t r = 0; r < kQueries && q0 + r < p.n_queries; ++r) {
                float* const best = sample.best(q0 + r, s);
                __m512 most = _mm512_loadu_ps(best);
                for (int b = 0; b < kItemTile; ++b) {
                    const __m512 dot = _mm512_cvtepi32_ps(_mm512_load_si512(&product[r][b * 16]));
                    __m512 score = _mm512_mul_ps(dot, inverse[b]);
                    if (p.added) {
                        const __m512 added = __m512(sample.added(q0 + r, s, b));
                        score = _mm512_fmadd_ps(added, _mm512_set1_ps(f.scale[q0 + r]), score);
                    }
                    most = _mm512_max_ps(most, score);
                }
                _mm512_storeu_ps(best, most);
            }
        }
    }
    for (int64_t q = 0; q < p.n_queries; ++q) {
        float scaled;
        if (f.scale[q] == 0 || !sample.guess(q, &scaled)) continue;
        p.threshold[q] = scaled / f.scale[q];
        f.plain_to[q] = begin;
    }
}

/// Quantises the queries; none has a level yet.
static void start_queries(const TopkChunk<float>& p, int64_t begin, Filter& f) {
    const int64_t P = padded_bytes(p.D);
    const float gamma = float(p.D + 16) * 0x1.1p-24f;
    for (int64_t q = 0; q < round_up(p.n_queries, kQueries); ++q) {
        const bool real = q < p.n_queries;
        const Quantised z = quantise(p.queries + (real ? q : p.n_queries - 1) * p.D, nullptr, p.D, f.query + q * P);
        const float length = z.norm + z.residual;
        f.shift[q] = -128 * z.sum;
        f.scale[q] = z.scale;
        f.level[q] = __builtin_inff();
        f.spread[q] = (z.residual + (gamma + kSlack) * (length + z.residual)) * (1 + kSlack);
        f.weight[q] = length * (1 + 4 * kSlack);
        f.plain_from[q] = begin;
        f.plain_to[q] = z.scale == 0 ? INT64_MAX : begin + kItemsForOne * p.k;
        f.rest[q] = 4;
        f.passed[q] = f.n_waiting[q] = 0;
        if (z.scale == 0 || !real) f.spread[q] = f.weight[q] = 0;
    }
}

/// The best k of places [begin, end) for every query of the chunk (reference.topk), in lists that may hold some more.
/// The caller has seen to D in 1 .. kLargestD and, for AMX, has configured the tiles.
///
/// Measured, D = 128, 2 threads of a Sapphire Rapids, 20,000 items x 8,192 queries, k = 10 / 100: 39 / 70 ms with AMX
/// (2026-11-24, benchmarks/results/topk.json).
static void topk_filtered(const TopkChunk<float>& p, int64_t begin, int64_t end, char* workspace,
                          const Prepared* prepared) {
    Filter f(workspace, p.D, p.n_queries, prepared);
    const int64_t block = block_items(p.D);
    start_queries(p, begin, f);
    guess_thresholds(p, begin, end, f);
    for (int64_t i0 = begin; i0 < end; i0 += block) {
        const int64_t i1 = end - i0 < block ? end : i0 + block;
        bool any_plain = false, any_filtered = false;
        for (int64_t q = 0; q < p.n_queries; ++q) {
            f.passed[q] = 0;
            if (f.plain_to[q] <= i0) f.set_level(q, p.threshold[q], p.most_added);
            any_filtered |= f.uses_filter(q);
        }
        if (any_filtered) {
            quantise_items(p, i0, i1, f);
            if (p.added && p.rows) list_items(p, i0, i1, f);
            if (p.added)
                filter_block<true>(p, f, i0, i1, (i1 - i0) / 8);
            else
                filter_block<false>(p, f, i0, i1, (i1 - i0) / 8);
        }
        for (int64_t q = 0; q < p.n_queries; ++q) any_plain |= f.plain_from[q] < i1 && f.plain_to[q] > i0;
        if (any_plain) plain_block(p, f, i0, i1);
    }
    for (int64_t q = 0; q < p.n_queries; ++q)
        while (f.n_waiting[q]) score_waiting(p, f, q);
    repair_guesses(p, begin, end, f.packed, f.which);
}

/// lanes[n] = those of 16 prepared items, of places from `place` on, that may be above the level of query n.
///
/// Cost: P / 4 loads of a cache line and N integer multiply-adds each, in two chains a query, as one would wait for
/// itself longer than for memory; 7 instructions a query for the bound.
template <int N, bool kAdded>
static inline __attribute__((always_inline)) void pass_panel(const TopkChunk<float>& p, const Filter& f, int64_t place,
                                                             __mmask16 (&lanes)[N]) {
    const int64_t P = padded_bytes(p.D);
    const int8_t* const items = f.prepared->items + place * P;
    Index<float> sum[N][2];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
        sum[n][0] = Index<float>{} + f.shift[n];
        sum[n][1] = Index<float>{};
    }
    auto step = [&](int64_t j, int chain) {
        __m512i item = _mm512_load_si512(items + j * 16);
        if constexpr (kOffset == 0) item = _mm512_xor_si512(item, _mm512_set1_epi8(-128));
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            int32_t word;
            __builtin_memcpy(&word, f.query + n * P + j, 4);
            sum[n][chain] = Index<float>(_mm512_dpbusd_epi32(__m512i(sum[n][chain]), item, _mm512_set1_epi32(word)));
        }
    };
    int64_t j = 0;
    for (; j + 8 <= P; j += 8) {
        step(j, 0);
        step(j + 4, 1);
    }
    if (j < P) step(j, 0);
    const __m512 u = _mm512_load_ps(f.prepared->u + place), norm = _mm512_load_ps(f.prepared->n + place);
    const __m512 e = _mm512_load_ps(f.prepared->e + place);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
        const __m512 dot = _mm512_cvtepi32_ps(__m512i(sum[n][0] + sum[n][1]));
        __m512 least = _mm512_set1_ps(f.level[n]);
        if constexpr (kAdded) {
            const __m512 added = _mm512_loadu_ps(p.added + n * p.added_stride + place);
            least = _mm512_fnmadd_ps(_mm512_set1_ps(f.scale[n]), added, least);
        }
        const __m512 inner = _mm512_fnmadd_ps(_mm512_set1_ps(f.spread[n]), norm, _mm512_mul_ps(least, u));
        const __m512 bound = _mm512_fnmadd_ps(_mm512_set1_ps(f.weight[n]), e, inner);
        lanes[n] = _mm512_cmp_ps_mask(dot, bound, _CMP_NLT_UQ);  // NaN passes
    }
}

/// Panels of 16 items after which a search looks at how many of their items passed.
constexpr int64_t kPanelsWatched = 64;

/// The N queries over places [begin, end), all scored, or estimated first.
template <int N>
static void topk_unprepared(const TopkChunk<float>& p, int64_t begin, int64_t end, Filter& f) {
    if constexpr (N <= kFewQueries) {
        topk_few<float, N>(p, begin, end);
    } else {
        for (int32_t n = 0; n < N; ++n) f.which[n] = n;
        score_tiles(p, f.which, N, begin, end, f.packed);
    }
}

/// N queries over places [begin, end) of prepared items. Where the bound is too loose, as one item in eight
/// passes, the next places are searched as if nothing were prepared: 8 times as many as were looked at, then 16, 32 and
/// so on.
template <int N, bool kAdded>
static void topk_few_prepared(const TopkChunk<float>& p, int64_t begin, int64_t end, Filter& f) {
    // The first items pass whatever they are: as many as make a threshold, and some more.
    int64_t i0 = begin + round_up(2 * p.capacity, 16), rest = 8;
    i0 = i0 < end ? i0 : end;
    topk_unprepared<N>(p, begin, i0, f);
    while (i0 < end) {
        const int64_t stop = end - i0 < 16 * kPanelsWatched ? end : i0 + 16 * kPanelsWatched;
        for (int n = 0; n < N; ++n) {
            f.set_level(n, p.threshold[n], p.most_added);
            f.passed[n] = 0;
        }
        for (; i0 < stop; i0 += 16) {
            __mmask16 lanes[N];
            pass_panel<N, kAdded>(p, f, i0, lanes);
            const auto inside = __mmask16(lanes_inside<float>(i0, end));
            for (int n = 0; n < N; ++n) {
                __mmask16 some = lanes[n] & inside;
                if (!some) continue;
                if (p.permitted)
                    for (uint32_t left = some; left; left &= left - 1)
                        if (!p.permitted[i0 + __builtin_ctz(left)]) some ^= __mmask16(left & (0 - left));
                let_wait(f, n, some, i0);
                while (f.n_waiting[n] >= 16) score_waiting(p, f, n);
            }
        }
        int64_t passed = 0;
        for (int n = 0; n < N; ++n) passed += f.passed[n];
        if (passed <= N * 16 * kPanelsWatched / 8 && i0 < end) continue;
        for (int n = 0; n < N; ++n)  // lists are by item upwards
            while (f.n_waiting[n]) score_waiting(p, f, n);
        if (i0 == end) break;
        const int64_t n = rest * 16 * kPanelsWatched, next = end - i0 < n ? end : i0 + n;
        topk_unprepared<N>(p, i0, next, f);
        i0 = next;
        rest *= 2;
    }
}

/// Queries that are searched together at most, and in groups of those: more have another loop (topk_filtered).
constexpr int64_t kTogether = 8;
constexpr int64_t kInGroups = kQueries > kTogether ? kTogether : 2 * kTogether;

template <int N>
static void topk_few_prepared(const TopkChunk<float>& p, int64_t begin, int64_t end, char* workspace,
                              const Prepared& prepared) {
    if (p.n_queries != N) {
        if constexpr (N < kTogether) topk_few_prepared<N + 1>(p, begin, end, workspace, prepared);
        return;
    }
    Filter f(workspace, p.D, p.n_queries, &prepared);
    start_queries(p, begin, f);
    bool regular = true;
    for (int n = 0; n < N; ++n) regular &= f.scale[n] != 0;
    if (!regular)
        topk_unprepared<N>(p, begin, end, f);
    else if (p.added)
        topk_few_prepared<N, true>(p, begin, end, f);
    else
        topk_few_prepared<N, false>(p, begin, end, f);
}

/// Some queries of the chunk, from `first` on.
static TopkChunk<float> some_queries(TopkChunk<float> p, int64_t first, int64_t n) {
    p.n_queries = n;
    p.queries += first * p.D;
    if (p.excluded_ptr) p.excluded_ptr += first;
    p.scores += first * p.stride;
    p.ids += first * p.stride;
    p.count += first;
    p.threshold += first;
    if (p.added) {
        p.added += first * p.added_stride;
        p.most_added += first;
    }
    return p;
}

static int64_t topk_bytes(int64_t D, int64_t n_queries, int64_t k) {
    const int64_t plain = topk_plain_bytes<float>(D, n_queries, k);
    const int64_t filter = Filter(nullptr, D, n_queries).end - static_cast<char*>(nullptr);
    return filter > plain ? filter : plain;
}

static void topk(const TopkChunk<float>& p, int64_t begin, int64_t end, char* workspace) {
    const bool is_prepared = p.prepared && !p.rows;
    const bool worth = p.filter && p.D >= 1 && p.D <= kLargestD && end - begin > kItemsForOne * p.k;
    const Prepared prepared(is_prepared ? p.prepared : nullptr, p.n_items, p.D);
    if (worth && is_prepared && p.n_queries <= kInGroups) {
        const int64_t groups = (p.n_queries + kTogether - 1) / kTogether;
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t first = p.n_queries * g / groups, last = p.n_queries * (g + 1) / groups;
            topk_few_prepared<1>(some_queries(p, first, last - first), begin, end, workspace, prepared);
        }
    } else if (worth && (is_prepared || p.n_queries >= kFewestQueries)) {
#if defined(__AMX_INT8__)
        const TileConfig config;
        _tile_loadconfig(&config);
#endif
        topk_filtered(p, begin, end, workspace, is_prepared ? &prepared : nullptr);
#if defined(__AMX_INT8__)
        _tile_release();
#endif
    } else {
        topk_plain(p, begin, end, workspace);
    }
    finish_lists(p, reinterpret_cast<SortKey<float>*>(workspace));
}

static int64_t prepared_bytes(int64_t n_items, int64_t D) {
    return D >= 1 && D <= kLargestD ? Prepared(nullptr, n_items, D).end - static_cast<char*>(nullptr) : 0;
}

/// Cost: a float32 row read, a quarter of it written, and 50 cycles.
static void prepare(const TopkChunk<float>& p, int64_t begin, int64_t end, char* workspace) {
    const Prepared to(p.prepared, p.n_items, p.D);
    const int64_t P = padded_bytes(p.D);
    for (int64_t i0 = begin; i0 < round_up(end, kPreparedTogether); i0 += 16)
        quantise_panel(p, i0, p.n_items, reinterpret_cast<int8_t*>(workspace), to.items + i0 * P, to.u + i0, to.n + i0,
                       to.e + i0);
}

/// The kernels of AVX-512 with the filter in front of its top-k.
const KernelTable<float>* table_f32() {
    static const KernelTable<float> table = [] {
        KernelTable<float> t = *isa_avx512::table_f32();
        t.topk_workspace_bytes = topk_bytes;
        t.topk = topk;
        t.prepared_bytes = prepared_bytes;
        t.prepare = prepare;
        return t;
    }();
    return &table;
}
const KernelTable<double>* table_f64() {
    return isa_avx512::table_f64();
}

}  // namespace WALS_ISA
}  // namespace wals::cpu
