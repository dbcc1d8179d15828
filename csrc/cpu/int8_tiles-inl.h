// Vectors in int8 and their products, by AVX512-VNNI or, where the compiler's flags say so, AMX.
#pragma once

#include <immintrin.h>

#include "topk_rows-inl.h"

namespace wals::cpu {
namespace WALS_ISA {

/// How the instruction wants a vector: bytes it takes at once (zeros past D), and signed items as they are or, for
/// AVX512-VNNI, unsigned with 128 added, which is a flipped sign bit; the products' `shift` takes it back.
#if defined(__AMX_INT8__)
constexpr int64_t kBytes = 64;
constexpr int8_t kOffset = 0;
#else
constexpr int64_t kBytes = 4;
constexpr int8_t kOffset = -128;
#endif

static inline int64_t padded_bytes(int64_t D) {
    return round_up(D, kBytes);
}

struct Quantised {
    float scale;     // u, 0 if the vector takes no part
    float norm;      // at least |u x|, infinite if the vector takes no part
    float residual;  // at least |r|
    int32_t sum;     // of z
};

/// x = (z + r) / u with z = round(u x) in int8, u = 127 / max |x|; z goes to `out` (padded_bytes(D)). Vectors that are
/// not finite, or whose largest magnitude is not 0 or in 2^-40 .. 2^40 (products may be denormal, or overflow), take no
/// part. Norms are rounded up: sums of D squares err by less than D 2^-24.
///
/// With a norm, x is divided by it first, as it is to be scored.
static inline Quantised quantise(const float* x, const float* norm_of_x, int64_t D, int8_t* out) {
    const __m512 divisor = _mm512_set1_ps(norm_of_x ? *norm_of_x : 1);
    auto part = [&](int64_t j) {
        const __m512 v =
            D - j >= 16 ? _mm512_loadu_ps(x + j) : _mm512_maskz_loadu_ps(__mmask16((1u << (D - j)) - 1), x + j);
        return norm_of_x ? _mm512_div_ps(v, divisor) : v;
    };
    __m512i top = _mm512_setzero_si512();  // as integers, NaN > infinity > the rest
    for (int64_t j = 0; j < D; j += 16)
        top = _mm512_max_epi32(top, _mm512_and_si512(_mm512_castps_si512(part(j)), _mm512_set1_epi32(0x7fffffff)));
    const float largest = _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(_mm512_reduce_max_epi32(top))));
    const bool regular = largest == 0 || (largest >= 0x1p-40f && largest <= 0x1p40f);
    const float u = !regular ? 0 : largest == 0 ? 1 : 127 / largest;
    const __m512 scale = _mm512_set1_ps(u);
    __m512 norm = _mm512_setzero_ps(), residual = norm;
    __m512i sum = _mm512_setzero_si512();
    const int64_t P = padded_bytes(D);
    for (int64_t j = 0; j < P; j += 16) {
        const __m512 v = j < D && regular ? _mm512_mul_ps(part(j), scale) : _mm512_setzero_ps();
        const __m512i z = _mm512_cvtps_epi32(v);
        const __m512 r = _mm512_sub_ps(v, _mm512_cvtepi32_ps(z));
        norm = _mm512_fmadd_ps(v, v, norm);
        residual = _mm512_fmadd_ps(r, r, residual);
        sum = _mm512_add_epi32(sum, z);
        _mm512_mask_cvtepi32_storeu_epi8(out + j, __mmask16(P - j >= 16 ? 0xffff : (1u << (P - j)) - 1), z);
    }
    const float up = 1 + float(D + 16) * 0x1p-23f;
    if (!regular) return {0, __builtin_inff(), 0, 0};
    return {u, square_root(_mm512_reduce_add_ps(norm)) * up, square_root(_mm512_reduce_add_ps(residual)) * up,
            _mm512_reduce_add_epi32(sum)};
}

/// Quantises 16 items, of places from `first` on (past the end the last one again), into a panel (P / 4, 16, 4): four
/// bytes of each item side by side, as the instruction takes them. rows is a place for (16, P).
static void quantise_panel(const TopkChunk<float>& p, int64_t first, int64_t end, int8_t* rows, int8_t* panel, float* u,
                           float* norm, float* residual) {
    const int64_t P = padded_bytes(p.D);
    int32_t id[16];
    items_from(p, first, end, id);
    for (int64_t i = 0; i < 16; ++i) {
        const float* const own = p.norms ? p.norms + id[i] : nullptr;
        const Quantised z = quantise(p.items + id[i] * p.D, own, p.D, rows + i * P);
        u[i] = z.scale;
        norm[i] = z.norm;
        residual[i] = z.residual;
    }
    int64_t j = 0;
    for (; j + 64 <= P; j += 64) {
        Vec<float> m[16];  // words of four bytes
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) m[i] = Vec<float>(_mm512_loadu_ps(rows + i * P + j));
        transpose<float>(m);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i)
            _mm512_store_si512(panel + (j + 4 * i) * 16,
                               _mm512_xor_si512(_mm512_castps_si512(__m512(m[i])), _mm512_set1_epi8(kOffset)));
    }
    for (; j < P; j += 4)
        for (int i = 0; i < 16; ++i)
            for (int b = 0; b < 4; ++b) panel[j * 16 + i * 4 + b] = int8_t(rows[i * P + j + b] ^ kOffset);
}

/// out[r] = z_q.z_y of kQueries queries (rows of P bytes) with the three panels of a tile of items, exact.
///
/// AVX512-VNNI: 64 multiply-adds an instruction, four times the float32 rate, from 24 accumulators in registers. AMX:
/// 16,384 an instruction, which takes 16 cycles; the caller has configured the tiles. Queries stream from L2, the
/// tile's panels stay in L1.
#if defined(__AMX_INT8__)
constexpr int kQueries = 16;

struct TileConfig {  // 8 tiles of 16 rows of 64 bytes
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static __attribute__((noinline)) void multiply_tile(const int8_t* query, const int32_t*, const int8_t* items, int64_t P,
                                                    int32_t (*out)[kTileItems<float>]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t j = 0; j < P; j += 64) {
        _tile_loadd(3, query + j, P);
        _tile_loadd(4, items + j * 16, 64);
        _tile_loadd(5, items + (P + j) * 16, 64);
        _tile_loadd(6, items + (2 * P + j) * 16, 64);
        _tile_dpbssd(0, 3, 4);
        _tile_dpbssd(1, 3, 5);
        _tile_dpbssd(2, 3, 6);
    }
    _tile_stored(0, &out[0][0], sizeof(out[0]));
    _tile_stored(1, &out[0][16], sizeof(out[0]));
    _tile_stored(2, &out[0][32], sizeof(out[0]));
}
#else
constexpr int kQueries = 8;

static __attribute__((noinline)) void multiply_tile(const int8_t* query, const int32_t* shift, const int8_t* items,
                                                    int64_t P, int32_t (*out)[kTileItems<float>]) {
    // Not __m512i, which may alias anything: GCC 12 would keep an array of it in memory.
    Index<float> sum[kQueries][kItemTile];
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 3
        for (int b = 0; b < kItemTile; ++b) sum[r][b] = Index<float>{} + shift[r];
    for (int64_t j = 0; j < P; j += 4) {
        __m512i item[kItemTile];
#pragma GCC unroll 3
        for (int b = 0; b < kItemTile; ++b) item[b] = _mm512_load_si512(items + (b * P + j) * 16);
#pragma GCC unroll 8
        for (int r = 0; r < kQueries; ++r) {
            int32_t word;
            __builtin_memcpy(&word, query + r * P + j, 4);
            const __m512i four = _mm512_set1_epi32(word);
#pragma GCC unroll 3
            for (int b = 0; b < kItemTile; ++b)
                sum[r][b] = Index<float>(_mm512_dpbusd_epi32(__m512i(sum[r][b]), item[b], four));
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kQueries; ++r)
#pragma GCC unroll 3
        for (int b = 0; b < kItemTile; ++b) _mm512_store_si512(&out[r][b * 16], __m512i(sum[r][b]));
}
#endif

}  // namespace WALS_ISA
}  // namespace wals::cpu
