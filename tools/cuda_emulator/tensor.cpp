// Tensor-core operations of a warp, with the register layouts of the PTX manual ("Matrix fragments for mma.m16n8k16"
// and "for mma.m16n8k8", "ldmatrix").
//
// Products are exact. A chip adds `block` of them and the sum so far at a time: each is cut off at the last bit that a
// float32 as large as the largest of them has, or `extra` bits behind it, and their sum is cut off to a float32 (M.
// Fasi et al., Numerical behavior of NVIDIA tensor cores, PeerJ CS 330, 2021; F. A. Khattak and M. Mikaitis, Accurate
// models of NVIDIA tensor cores, arXiv:2512.07004, 2025). The default is the coarsest of the chips that have been
// measured, a V100 (which the kernels are not built for): what is accurate enough here is so on the others. tools/ptx
// has the same models, written by themselves.
#include <cstring>

#include "engine.h"

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace emu {

namespace {

struct MmaRecord {
    float* d;
    const uint32_t *a, *b;
    const float* c;
};

/// `words` registers to the numbers in them.
template <int words>
void decode(const uint32_t* registers, double* numbers) {
#ifdef __F16C__
    alignas(16) uint32_t four[4] = {};
    std::memcpy(four, registers, 4 * words);
    alignas(32) float halves[8];
    _mm256_store_ps(halves, _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(four))));
    for (int h = 0; h < 2 * words; ++h) numbers[h] = halves[h];
#else
    for (int h = 0; h < 2 * words; ++h) numbers[h] = emu_half_to_float(uint16_t(registers[h / 2] >> (16 * (h & 1))));
#endif
}

float toward_zero(double x) {
    const float nearest = float(x);
    return std::fabs(double(nearest)) > std::fabs(x) ? emu_bits<float>(emu_bits<uint32_t>(nearest) - 1) : nearest;
}

typedef double Four __attribute__((vector_size(32)));

typedef int64_t FourBits __attribute__((vector_size(32)));

constexpr int kDepth = 16;

/// sum += a b with addends aligned and cut off, some products at a time.
void multiply(Four (&sum)[16][2], const double (&a)[16][kDepth], const Four (&b)[kDepth][2], const Tensor& tensor) {
    constexpr int64_t kExponent = 0x7ff0000000000000, kOne = int64_t(1) << 52, kLeast = int64_t(1023 - 400) << 52;
    const int block = tensor.block;
    const int64_t digits = 23 + tensor.extra;
    for (int k0 = 0; k0 < kDepth; k0 += block)
        for (int i = 0; i < 16; ++i)
            for (int h = 0; h < 2; ++h) {
                Four addends[kDepth + 1], total = {};
                addends[block] = sum[i][h];
                for (int k = 0; k < block; ++k) addends[k] = a[i][k0 + k] * b[k0 + k][h];
                FourBits largest = {kLeast, kLeast, kLeast, kLeast};  // exponents; so that there is one if all are 0
                for (int k = 0; k <= block; ++k) {
                    const FourBits exponent = FourBits(addends[k]) & kExponent;
                    largest = exponent > largest ? exponent : largest;
                }
                const Four scale = Four(2046 * kOne - largest + digits * kOne), unit = Four(largest - digits * kOne);
                for (int k = 0; k <= block; ++k)
                    for (int j = 0; j < 4; ++j) total[j] += std::trunc(addends[k][j] * scale[j]);
                sum[i][h] = Four(FourBits(total * unit) & ~int64_t{0x1fffffff});  // 24 digits remain
            }
}

// Lane 4 g + t holds rows g and g + 8 of A, C and D, and column g of B. Of A, registers 0 and 2 have row g, 1 and 3 row
// g + 8; 2 and 3 the second half of the columns. Of B, register 1 has the second half of the rows. A register has
// columns (of A; rows of B) 2 t and 2 t + 1 of its half.
void multiply_fragments(Warp&, void* const* records, unsigned) {
    double a[16][kDepth];
    Four b[kDepth][2], sum[16][2];
    for (int lane = 0; lane < 32; ++lane) {
        const MmaRecord& r = *static_cast<const MmaRecord*>(records[lane]);
        const int g = lane / 4, t = lane % 4;
        double numbers[8];
        decode<4>(r.a, numbers);
        for (int e = 0; e < 8; ++e) a[g + 8 * (e / 2 & 1)][2 * t + (e & 1) + 8 * (e / 4)] = numbers[e];
        decode<2>(r.b, numbers);
        for (int e = 0; e < 4; ++e) b[2 * t + (e & 1) + 8 * (e / 2)][g / 4][g % 4] = numbers[e];
        for (int e = 0; e < 4; ++e) sum[g + 8 * (e >> 1)][t / 2][2 * (t % 2) + (e & 1)] = r.c[e];
    }
    multiply(sum, a, b, engine.config.tensor);
    for (int lane = 0; lane < 32; ++lane) {
        float* const d = static_cast<const MmaRecord*>(records[lane])->d;
        const int g = lane / 4, t = lane % 4;
        for (int e = 0; e < 4; ++e) d[e] = toward_zero(sum[g + 8 * (e >> 1)][t / 2][2 * (t % 2) + (e & 1)]);
    }
}

struct MatrixRecord {
    uint32_t* r;
    const unsigned char* row;
};

// Register m of lane 4 g + t holds elements 2 t and 2 t + 1 of row g of matrix m, or of its column g.
template <bool transposed>
void load_fragments(Warp&, void* const* records, unsigned) {
    for (int m = 0; m < 4; ++m) {
        uint16_t matrix[8][8];
        for (int i = 0; i < 8; ++i)
            std::memcpy(matrix[i], static_cast<const MatrixRecord*>(records[8 * m + i])->row, 16);
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane / 4, t = lane % 4;
            const uint32_t lo = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            const uint32_t hi = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            static_cast<const MatrixRecord*>(records[lane])->r[m] = lo | hi << 16;
        }
    }
}

}  // namespace

void mma(float* d, const uint32_t* a, const uint32_t* b, const float* c, const char* file, int line) {
    MmaRecord record{d, a, b, c};
    collective(~0u, multiply_fragments, &record, {"mma_f16", file, line});
}

void load_matrix(uint32_t* r, bool transposed, const void* row, const char* file, int line) {
    const Lane& self = *engine.current;
    const Site site{"ldmatrix", file, line};
    if (uintptr_t(row) % 16) fail("misaligned: a row of " + thread_name(self) + " in " + place(site));
    if (!in_arenas(row))
        fail("out of bounds: " + thread_name(self) + " gives a row outside shared memory to " + place(site));
    if (kChecked) check::access(row, 16, check::kRead, EMU_PC);
    MatrixRecord record{r, static_cast<const unsigned char*>(row)};
    collective(~0u, transposed ? load_fragments<true> : load_fragments<false>, &record, site);
}

}  // namespace emu
