// One kernel per feature: word `i` in, word `i` out, so that the tests can say in NumPy what is right.
#include <map>

#include "../../../csrc/cuda/device.h"
#include "kernels.h"

using namespace wals::cuda;

namespace {

constexpr unsigned kAll = 0xffffffffu;

/// `operation(x, thread, in, out)` in every thread; its value goes to out[thread] where it has one.
template <class Operation>
__global__ void each_kernel(const uint32_t* in, uint32_t* out) {
    const int per_block = int(blockDim.x * blockDim.y * blockDim.z);
    const int thread = int(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    const int i = int(blockIdx.x) * per_block + thread;
    out[i] = Operation{}(in[i], thread, in, out);
}

#define FEATURE(name)                                                                                    \
    struct name {                                                                                        \
        __device__ uint32_t operator()(uint32_t x, int thread, const uint32_t* in, uint32_t* out) const; \
    };                                                                                                   \
    __device__ uint32_t name::operator()([[maybe_unused]] uint32_t x, [[maybe_unused]] int thread,       \
                                         [[maybe_unused]] const uint32_t* in, [[maybe_unused]] uint32_t* out) const

FEATURE(Shuffle) {
    return __shfl_sync(kAll, x, 5);
}
FEATURE(ShuffleWidth8) {
    return __shfl_sync(kAll, x, thread + 3, 8);
}
FEATURE(ShuffleUp) {
    return __shfl_up_sync(kAll, x, 3, 16);
}
FEATURE(ShuffleXor) {
    return __shfl_xor_sync(kAll, x, 9);
}
FEATURE(ShuffleDouble) {
    return uint32_t(__shfl_xor_sync(kAll, double(x), 1));
}
FEATURE(ShuffleHalves) {  // the halves of a warp run different numbers of different operations
    const unsigned mask = thread % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
    if (thread % 32 < 16) return __shfl_xor_sync(mask, __shfl_xor_sync(mask, x, 1), 2);
    return __ballot_sync(mask, x & 1);
}
FEATURE(Ballot) {
    return __ballot_sync(kAll, x & 1);
}
FEATURE(CountBarrier) {
    return uint32_t(__syncthreads_count(x & 1));
}
FEATURE(OrBarrier) {
    return uint32_t(__syncthreads_or(x & 1));
}
FEATURE(Bits) {
    return uint32_t(__popc(x)) + 100u * uint32_t(__ffs(int(x)));
}
FEATURE(PackHalf) {
    const float2 f = unpack_f16(x);
    return pack_f16(f.x, f.y);
}
FEATURE(ToHalf) {
    return pack_f16(__uint_as_float(x), 0.f);
}
FEATURE(Reverse) {  // through static shared memory
    STATIC_SMEM(words, uint32_t[1024]);
    const int n = int(blockDim.x * blockDim.y * blockDim.z);
    words[thread] = x;
    __syncthreads();
    return words[n - 1 - thread];
}
FEATURE(ReverseNoBarrier) {
    STATIC_SMEM(words, uint32_t[1024]);
    words[thread] = x;                           // line: race write
    return words[int(blockDim.x) - 1 - thread];  // line: race read
}
FEATURE(WarpExchange) {
    STATIC_SMEM(words, uint32_t[1024]);
    words[thread] = x;
    __syncwarp();
    const uint32_t got = words[thread ^ 1];
    __syncwarp();
    words[thread] = 0;
    return got;
}
FEATURE(WarpExchangeByBallot) {  // a vote orders no memory
    STATIC_SMEM(words, uint32_t[1024]);
    words[thread] = x;  // line: ballot write
    __ballot_sync(kAll, 1);
    return words[thread ^ 1];  // line: ballot read
}
FEATURE(WarpExchangeAcrossWarps) {  // __syncwarp orders one warp only
    STATIC_SMEM(words, uint32_t[1024]);
    words[thread] = x;  // line: across write
    __syncwarp();
    return words[thread ^ 32];  // line: across read
}
FEATURE(WriteAfterRead) {  // the second write needs a barrier after the reads
    STATIC_SMEM(words, uint32_t[1024]);
    words[thread] = x;
    __syncthreads();
    const uint32_t got = words[thread ^ 32];  // line: war read
    words[thread] = 0;                        // line: war write
    return got;
}
FEATURE(HalfWords) {  // neighbours share a word but no byte
    STATIC_SMEM(words, uint16_t[1024]);
    words[thread] = uint16_t(x);
    return words[thread];
}
FEATURE(Uninitialised) {
    STATIC_SMEM(words, uint32_t[64]);
    if (thread != 7) words[thread] = x;
    return words[thread];  // line: uninitialised
}
/// Copies the 16 bytes that have word `thread` of `in`; it is word thread % 4 of these.
__device__ __forceinline__ void copy_word(uint32_t (&to)[4], const uint32_t* in, int thread, bool real = true) {
    cp_async(to, in + thread / 4 * 4, real);  // line: copy of a word
}
FEATURE(CopyTouched) {
    STATIC_SMEM(words, uint32_t[64][4]);
    copy_word(words[thread], in, thread);
    cp_async_commit();
    const uint32_t early = words[thread][thread % 4];  // line: in flight
    cp_async_wait<0>();
    return early;
}
FEATURE(CopyStages) {  // the older of two groups has landed when one is left
    STATIC_SMEM(words, uint32_t[2][64][4]);
    copy_word(words[0][thread], in, thread);
    cp_async_commit();
    copy_word(words[1][thread], in, thread, false);
    cp_async_commit();
    cp_async_wait<1>();
    const uint32_t first = words[0][thread][thread % 4];
    cp_async_wait<0>();
    return first + words[1][thread][thread % 4];
}
FEATURE(CopyOverread) {  // the buffer is still read by others when the next copy starts
    STATIC_SMEM(words, uint32_t[64][4]);
    copy_word(words[thread], in, thread);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const uint32_t got = words[63 - thread][0];  // line: overread read
    copy_word(words[thread], in, thread);
    cp_async_commit();
    cp_async_wait<0>();
    return got;
}
FEATURE(CopyMisaligned) {
    STATIC_SMEM(words, float4[65]);
    cp_async(reinterpret_cast<float*>(words) + 4 * thread + 1, in + 4 * thread);  // line: misaligned copy
    cp_async_commit();
    cp_async_wait<0>();
    return 0;
}
FEATURE(VectorMisaligned) {
    return ld<uint4>(in + thread).x;  // line: misaligned vector
}
FEATURE(NegativeIndex) {
    return in[thread - 1];  // line: before
}
FEATURE(TooFar) {
    return in[thread + 64];  // line: behind
}
FEATURE(SharedTooFar) {
    uint32_t* const words = reinterpret_cast<uint32_t*>(dynamic_smem());
    if (thread == 0) words[64] = x;  // line: shared behind
    return 0;
}
FEATURE(CarvedTooMuch) {
    Carver carve(dynamic_smem());
    carve.take<float>(1000);
    return 0;
}
FEATURE(Recursion) {                                                                // fills its stack
    volatile char room[8192];                                                       // line: deep
    room[0] = char(x);                                                              // line: deep
    return room[0] == 1 ? Recursion{}(x, thread, in, out) + uint32_t(room[0]) : 0;  // line: deep
}
FEATURE(SpinOnMemory) {  // waits for what nobody writes
    const volatile uint32_t* const flag = in;
    while (flag[thread] == x) {  // line: spin memory
    }
    return 0;
}
FEATURE(SpinOnAtomic) {
    while (atomicAdd(out + thread, 0u) == 0) {  // line: spin atomic
    }
    return x;
}
FEATURE(SpinOnBarrier) {
    uint32_t sum = 0;
    while (sum < x + 1) sum += uint32_t(__syncthreads_count(x == 0));  // line: spin barrier
    return sum;
}
FEATURE(SpinInWarp) {
    uint32_t sum = x;
    while (sum != 0) sum = __ballot_sync(~0u, sum != 0);  // line: spin warp
    return sum;
}
FEATURE(ExitEarly) {
    if (thread >= 32) {
        return 1;
    }
    __syncthreads();  // line: others left
    return 2;
}
FEATURE(TwoLines) {
    if (thread < 32) {
        __syncthreads();  // line: first of two
    } else {
        __syncthreads();  // line: second of two
    }
    return 0;
}
FEATURE(OutsideMask) {
    return __shfl_sync(0x0000ffffu, x, 0);  // line: outside
}
FEATURE(SourceOutsideMask) {
    if (thread % 32 < 16) return __shfl_sync(0x0000ffffu, x, 20);  // line: source
    return 0;
}
FEATURE(TwoMasks) {
    if (thread % 32 < 16) return __ballot_sync(kAll, 1);  // line: one mask
    return __ballot_sync(0xfffffff0u, 1);                 // line: other mask
}
FEATURE(Counter) {  // in out[n], behind the threads' words
    const int n = int(gridDim.x * blockDim.x);
    return atomicAdd(out + n, 1u) < unsigned(n);
}
FEATURE(AtomicKinds) {
    STATIC_SMEM(words, uint32_t[3]);
    if (thread < 3) words[thread] = 0;
    __syncthreads();
    atomicAdd(reinterpret_cast<int*>(&words[0]), -int(x & 255));
    atomicMax(&words[1], x);
    atomicOr(&words[2], x);
    __syncthreads();
    return thread < 3 ? words[thread] : 0;
}
FEATURE(BlocksByAtomic) {  // the last block to finish adds up what all wrote; an atomic orders nothing
    const int n = int(gridDim.x * blockDim.x);
    uint32_t* const parts = out + n;
    if (thread == 0) parts[blockIdx.x] = x;  // line: part written
    const unsigned ticket = thread == 0 ? atomicAdd(parts + gridDim.x, 1u) : 0;
    if (__shfl_sync(kAll, ticket, 0) != gridDim.x - 1) return 0;
    uint32_t total = 0;
    for (unsigned b = 0; b < gridDim.x; ++b) total += parts[b];  // line: part read
    return total;
}
FEATURE(GridBarrier) {  // needs all blocks at once; out[n] counts
    const int n = int(gridDim.x * blockDim.x);
    if (thread == 0) atomicAdd(out + n, 1u);
    while (__ballot_sync(kAll, thread == 0 && atomicAdd(out + n, 0u) < gridDim.x)) {
    }
    return 1;
}
FEATURE(BankRows) {  // a column of a 32-wide array: 32 words in one bank
    STATIC_SMEM(words, uint32_t[32 * 33]);
    words[thread * 32] = x;  // line: column write
    __syncwarp();
    words[thread] = x;  // line: row write
    __syncwarp();
    words[thread * 33] = x;  // line: padded write
    __syncwarp();
    return words[0];  // line: one word
}
FEATURE(BankVectors) {
    STATIC_SMEM(words, float4[32 * 9]);
    st(&words[thread], float4{});  // line: vector row
    __syncwarp();
    st(&words[thread * 8], float4{});  // line: vector column
    __syncwarp();
    st(&words[thread * 9], float4{});  // line: vector padded
    return 0;
}
FEATURE(Sectors) {
    uint32_t sum = in[thread];                  // line: dense
    sum += in[thread * 8];                      // line: strided
    sum += in[0];                               // line: same
    return sum + ld<uint4>(in + 4 * thread).x;  // line: vector
}

/// mma and ldmatrix: a register of each lane is a word; `in` holds A (4 words a lane), B (2) and C (4) lane by lane.
__global__ void mma_kernel(const uint32_t* in, uint32_t* out) {
    const int lane = int(threadIdx.x);
    uint32_t a[4], b[2];
    float c[4];
    for (int e = 0; e < 4; ++e) a[e] = in[4 * lane + e];
    for (int e = 0; e < 2; ++e) b[e] = in[128 + 2 * lane + e];
    for (int e = 0; e < 4; ++e) c[e] = __uint_as_float(in[192 + 4 * lane + e]);
    mma_f16(c, a, b, c);
    for (int e = 0; e < 4; ++e) out[4 * lane + e] = __float_as_uint(c[e]);
}

template <bool transposed>
__global__ void ldmatrix_kernel(const uint32_t* in, uint32_t* out) {
    Carver carve(dynamic_smem());
    uint32_t* const rows = carve.take<uint32_t>(32 * 4);
    const int lane = int(threadIdx.x);
    for (int w = 0; w < 4; ++w) rows[4 * lane + w] = in[4 * lane + w];
    __syncwarp();
    uint32_t r[4];
    if constexpr (transposed)
        ldmatrix_trans(r, rows + 4 * lane);
    else
        ldmatrix(r, rows + 4 * lane);
    for (int m = 0; m < 4; ++m) out[4 * lane + m] = r[m];
}

using Kernel = void (*)(const uint32_t*, uint32_t*);

#define EACH(name) {#name, each_kernel<name>}
const std::map<std::string, Kernel> kKernels{EACH(Shuffle),
                                             EACH(ShuffleWidth8),
                                             EACH(ShuffleUp),
                                             EACH(ShuffleXor),
                                             EACH(ShuffleDouble),
                                             EACH(ShuffleHalves),
                                             EACH(Ballot),
                                             EACH(CountBarrier),
                                             EACH(OrBarrier),
                                             EACH(Bits),
                                             EACH(PackHalf),
                                             EACH(ToHalf),
                                             EACH(Reverse),
                                             EACH(ReverseNoBarrier),
                                             EACH(WarpExchange),
                                             EACH(WarpExchangeByBallot),
                                             EACH(WarpExchangeAcrossWarps),
                                             EACH(WriteAfterRead),
                                             EACH(HalfWords),
                                             EACH(Uninitialised),
                                             EACH(CopyTouched),
                                             EACH(CopyStages),
                                             EACH(CopyOverread),
                                             EACH(CopyMisaligned),
                                             EACH(VectorMisaligned),
                                             EACH(NegativeIndex),
                                             EACH(TooFar),
                                             EACH(SharedTooFar),
                                             EACH(CarvedTooMuch),
                                             EACH(Recursion),
                                             EACH(SpinOnMemory),
                                             EACH(SpinOnAtomic),
                                             EACH(SpinOnBarrier),
                                             EACH(SpinInWarp),
                                             EACH(ExitEarly),
                                             EACH(TwoLines),
                                             EACH(OutsideMask),
                                             EACH(SourceOutsideMask),
                                             EACH(TwoMasks),
                                             EACH(Counter),
                                             EACH(AtomicKinds),
                                             EACH(BlocksByAtomic),
                                             EACH(GridBarrier),
                                             EACH(BankRows),
                                             EACH(BankVectors),
                                             EACH(Sectors),
                                             {"mma_f16", mma_kernel},
                                             {"ldmatrix", ldmatrix_kernel<false>},
                                             {"ldmatrix_trans", ldmatrix_kernel<true>}};

}  // namespace

void run_feature(const std::string& name, int n_blocks, int block, int smem, void* stream, bool own_limit,
                 const uint32_t* in, uint32_t* out) {
    const auto kernel = kKernels.at(name);
    if (!own_limit)
        return launch(kernel, dim3(unsigned(n_blocks)), dim3(unsigned(block)), size_t(smem),
                      static_cast<cudaStream_t>(stream), in, out);
    check_cuda(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, smem),
        "cudaFuncSetAttribute");
    const cudaLaunchConfig_t config = {
        unsigned(n_blocks), unsigned(block), size_t(smem), static_cast<cudaStream_t>(stream), nullptr, 0};
    check_cuda(cudaLaunchKernelEx(&config, kernel, in, out), "launch");
}
