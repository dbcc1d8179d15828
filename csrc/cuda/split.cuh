// float32 products on tensor cores: each factor is the sum of two f16 numbers, hi and lo, and of the four products the
// three that matter are formed: hi hi + hi lo + lo hi. 22 bits of each factor take part. docs/gpu.md, "Accuracy under
// the coarsest tensor core", has the error bound: from 56 products on it is below that of a float32 sum, whatever the
// chip.
//
// f16 has 5 bits of exponent. Values are therefore scaled by a power of two, which is exact, so that the largest is
// about 2^8; what is smaller than 2^-33 of the largest is lost. The largest value is known beforehand for each row
// (bounds of the table's columns and of the row's coefficients), so that nothing can overflow.
//
// Fragments. A 16 x 16 tile of f16 is four registers of each lane, in the order of PTX's mma.m16n8k16 for its left
// factor: lane 4 g + c holds the pairs (g, 2c), (g + 8, 2c), (g, 2c + 8), (g + 8, 2c + 8), rows first. Registers 0 and
// 2 are at the same time the right factor that has rows 0-7 of the tile as its columns, 1 and 3 rows 8-15. So a tile is
// loaded once, whichever side of a product it stands on.
#pragma once

#include "block.cuh"

namespace wals::cuda {

struct Fragment {
    uint32_t hi[4], lo[4];
};

/// A power of two s with s * bound near 2^8, kept where s and 1 / s are normal numbers.
__device__ __forceinline__ float scale_for(float bound) {
    const int exponent = int(__float_as_uint(bound) >> 23) - 127;
    if (!(bound > 0) || exponent > 127) return 1;  // nothing to scale, or not finite
    const int target = min(max(8 - exponent, -126), 126);
    return __uint_as_float(uint32_t(target + 127) << 23);
}

struct Halves {
    uint32_t hi, lo;
};
__device__ __forceinline__ Halves split(float a, float b) {
    const uint32_t hi = pack_f16(a, b);
    const float2 back = unpack_f16(hi);
    return {hi, pack_f16(a - back.x, b - back.y)};
}
__device__ __forceinline__ float2 join(uint32_t hi, uint32_t lo) {
    const float2 h = unpack_f16(hi), l = unpack_f16(lo);
    return make_float2(h.x + l.x, h.y + l.y);
}

/// sum (16 x 16, two halves of 8 columns) += a b', a and b the tiles of two strips. The product is formed from zero,
/// its small parts first, and added in float32: mma's own addition cuts every addend off at the largest one's last bit.
__device__ __forceinline__ void add_product(float (&sum)[2][4], const Fragment& a, const Fragment& b) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const uint32_t hi[2] = {b.hi[half], b.hi[half + 2]}, lo[2] = {b.lo[half], b.lo[half + 2]};
        float product[4] = {};
        mma_f16(product, a.lo, hi, product);
        mma_f16(product, a.hi, lo, product);
        mma_f16(product, a.hi, hi, product);
#pragma unroll
        for (int r = 0; r < 4; ++r) sum[half][r] += product[r];
    }
}

/// Row and column of register r of half h of a product tile, in this lane.
__device__ __forceinline__ int sum_row(int r) {
    return lane_index() / 4 + 8 * (r / 2);
}
__device__ __forceinline__ int sum_column(int half, int r) {
    return 8 * half + 2 * (lane_index() % 4) + r % 2;
}

/// Place of element (row, column) in a 16 x 16 tile of floats, 1 KiB. Which group of four columns is where depends on
/// the row: neither eight lanes that read a group of a row each, nor lanes that write a product, meet in a bank.
__device__ __forceinline__ int tile_place(int row, int column) {
    return 16 * row + (column ^ ((row & 2) << 2 | (row & 4)));
}

/// A finished tile: every lane's four hi registers, then every lane's four lo registers; lane 4 g + c where a tile of
/// floats has columns 4 c to 4 c + 3 of row g.
__device__ __forceinline__ Fragment load_fragment(const float* tile) {
    const float* const own = tile + tile_place(lane_index() / 4, lane_index() % 4 * 4);
    const uint4 hi = ld<uint4>(own), lo = ld<uint4>(own + 128);
    return {{hi.x, hi.y, hi.z, hi.w}, {lo.x, lo.y, lo.z, lo.w}};
}

__device__ __forceinline__ void store_fragment(float* tile, const Fragment& f) {
    float* const own = tile + tile_place(lane_index() / 4, lane_index() % 4 * 4);
    st<uint4>(own, make_uint4(f.hi[0], f.hi[1], f.hi[2], f.hi[3]));
    st<uint4>(own + 128, make_uint4(f.lo[0], f.lo[1], f.lo[2], f.lo[3]));
}

/// A tile of sums times `factor`, split: every lane has its part already.
__device__ __forceinline__ Fragment fragment_of(const float (&sum)[2][4], float factor) {
    Fragment f;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const Halves x = split(sum[r / 2][r % 2 * 2] * factor, sum[r / 2][r % 2 * 2 + 1] * factor);
        f.hi[r] = x.hi;
        f.lo[r] = x.lo;
    }
    return f;
}
__device__ __forceinline__ void negate(Fragment& f) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        f.hi[r] ^= 0x80008000u;
        f.lo[r] ^= 0x80008000u;
    }
}

/// Place of the pair (row, 2 pair), (row, 2 pair + 1) in such a tile, in 32-bit words of its hi part.
__device__ __forceinline__ int pair_place(int row, int pair) {
    return tile_place(row % 8, pair % 4 * 4) + row / 8 + 2 * (pair / 4);
}

}  // namespace wals::cuda
