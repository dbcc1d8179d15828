// Tensor-core operations of a warp, with the register layouts of the PTX manual ("Matrix fragments for mma.m16n8k16"
// and "for mma.m16n8k8", "ldmatrix"). Products are exact, summed in double, and rounded toward zero once per mma: no
// chip is less accurate than this by more than its last bit, and the splits of float32 have to stand it.
#include <cstring>

#include "engine.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define EMU_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define EMU_CLONES
#endif

namespace emu {

namespace {

struct MmaRecord {
    float* d;
    const uint32_t *a, *b;
    const float* c;
};

float decode(Element type, uint32_t half, uint32_t word) {
    switch (type) {
        case Element::kHalf:
            return emu_half_to_float(uint16_t(half));
        case Element::kBfloat:
            return emu_bits<float>(half << 16);
        default:
            return emu_bits<float>(word & 0xffffe000u);  // what was not converted is truncated, as on the chip
    }
}

float toward_zero(double x) {
    const float nearest = float(x);
    return std::fabs(double(nearest)) > std::fabs(x) ? emu_bits<float>(emu_bits<uint32_t>(nearest) - 1) : nearest;
}

/// sum[16][8] += a[16][depth] b[depth][8].
EMU_CLONES void multiply(double (*sum)[8], const double (*a)[16], const double (*b)[8], int depth) {
    for (int i = 0; i < 16; ++i)
        for (int k = 0; k < depth; ++k)
            for (int j = 0; j < 8; ++j) sum[i][j] += a[i][k] * b[k][j];
}

// Lane 4 g + t holds rows g and g + 8 of A, C and D, and column g of B.
template <Element type>
void multiply_fragments(Warp&, void* const* records, unsigned) {
    constexpr int kDepth = type == Element::kTf32 ? 8 : 16;
    double a[16][16], b[16][8], sum[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const MmaRecord& r = *static_cast<const MmaRecord*>(records[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int e = 0; e < 4; ++e) {
            const int row = g + 8 * (e & 1);
            if (type == Element::kTf32) {
                a[row][t + 4 * (e >> 1)] = decode(type, 0, r.a[e]);
            } else {
                const int column = 2 * t + 8 * (e >> 1);
                a[row][column] = decode(type, r.a[e] & 0xffffu, 0);
                a[row][column + 1] = decode(type, r.a[e] >> 16, 0);
            }
            sum[g + 8 * (e >> 1)][2 * t + (e & 1)] = r.c[e];
        }
        for (int e = 0; e < 2; ++e) {
            if (type == Element::kTf32) {
                b[t + 4 * e][g] = decode(type, 0, r.b[e]);
            } else {
                b[2 * t + 8 * e][g] = decode(type, r.b[e] & 0xffffu, 0);
                b[2 * t + 8 * e + 1][g] = decode(type, r.b[e] >> 16, 0);
            }
        }
    }
    multiply(sum, a, b, kDepth);
    for (int lane = 0; lane < 32; ++lane) {
        float* const d = static_cast<const MmaRecord*>(records[lane])->d;
        for (int e = 0; e < 4; ++e) d[e] = toward_zero(sum[lane / 4 + 8 * (e >> 1)][lane % 4 * 2 + (e & 1)]);
    }
}

struct MatrixRecord {
    uint32_t* r;
    const unsigned char* row;
};

// Register m of lane 4 g + t holds elements 2 t and 2 t + 1 of row g of matrix m, or of its column g.
template <int N, bool transposed>
void load_fragments(Warp&, void* const* records, unsigned) {
    for (int m = 0; m < N; ++m) {
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

void mma(Element type, float* d, const uint32_t* a, const uint32_t* b, const float* c, const char* file, int line) {
    MmaRecord record{d, a, b, c};
    switch (type) {
        case Element::kHalf:
            return collective(~0u, multiply_fragments<Element::kHalf>, &record, {"mma_f16", file, line});
        case Element::kBfloat:
            return collective(~0u, multiply_fragments<Element::kBfloat>, &record, {"mma_bf16", file, line});
        default:
            return collective(~0u, multiply_fragments<Element::kTf32>, &record, {"mma_tf32", file, line});
    }
}

void load_matrix(uint32_t* r, int n, bool transposed, const void* row, const char* file, int line) {
    static constexpr Combine loads[2][5] = {
        {nullptr, load_fragments<1, false>, load_fragments<2, false>, nullptr, load_fragments<4, false>},
        {nullptr, load_fragments<1, true>, load_fragments<2, true>, nullptr, load_fragments<4, true>}};
    const Lane& self = *engine.current;
    const Site site{"ldmatrix", file, line};
    if ((self.id & 31) < 8 * n) {  // the addresses of other lanes do not count
        if (uintptr_t(row) % 16) fail("misaligned: a row of " + thread_name(self) + " in " + place(site));
        if (!in_arenas(row))
            fail("out of bounds: " + thread_name(self) + " gives a row outside shared memory to " + place(site));
#ifdef EMU_CHECKED
        check::access(row, 16, check::kRead, EMU_PC);
#endif
    }
    MatrixRecord record{r, static_cast<const unsigned char*>(row)};
    collective(~0u, loads[transposed][n], &record, site);
}

}  // namespace emu
