// CUDA's vector types, half floats, mathematical and bit intrinsics, and the part of its host interface that launchers
// use, for compilers that are not nvcc. Names and meanings are CUDA's; what no kernel uses is not here.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __host__
#define __device__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMU_VECTOR2(name, T)                   \
    struct alignas(2 * sizeof(T)) name {       \
        T x, y;                                \
    };                                         \
    static inline name make_##name(T x, T y) { \
        return {x, y};                         \
    }
#define EMU_VECTOR4(name, T)                             \
    struct alignas(16) name {                            \
        T x, y, z, w;                                    \
    };                                                   \
    static inline name make_##name(T x, T y, T z, T w) { \
        return {x, y, z, w};                             \
    }
EMU_VECTOR2(float2, float)
EMU_VECTOR2(double2, double)
EMU_VECTOR2(uint2, unsigned)
EMU_VECTOR4(float4, float)
EMU_VECTOR4(uint4, unsigned)
#undef EMU_VECTOR2
#undef EMU_VECTOR4

// ---- bits ----
template <class To, class From>
static inline To emu_bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    __builtin_memcpy(&y, &x, sizeof y);
    return y;
}
static inline unsigned __float_as_uint(float x) {
    return emu_bits<unsigned>(x);
}
static inline float __uint_as_float(unsigned x) {
    return emu_bits<float>(x);
}
static inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
static inline int __ffs(int x) {
    return __builtin_ffs(x);
}

// ---- arithmetic ----
template <class T>
static inline constexpr T min(T a, T b) {
    return b < a ? b : a;
}
template <class T>
static inline constexpr T max(T a, T b) {
    return a < b ? b : a;
}
static inline float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}
static inline double rsqrt(double x) {
    return 1.0 / std::sqrt(x);
}

// ---- f16, rounded to nearest even ----
static inline uint16_t emu_float_to_half(float x) {
    const uint32_t u = emu_bits<uint32_t>(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7fffu);   // NaN
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 2^16 or above
    if (magnitude < 0x38800000u) {                                  // subnormal: let a float addition round
        const float shifted = emu_bits<float>(magnitude) + 0.5f;    // ulp of 0.5 is 2^-24, the smallest half
        return uint16_t(sign | (emu_bits<uint32_t>(shifted) - 0x3f000000u));
    }
    return uint16_t(sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13));
}
static inline float emu_half_to_float(uint16_t h) {
    const float magnitude = emu_bits<float>(uint32_t(h & 0x7fffu) << 13) * 0x1p112f;
    const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
    return emu_bits<float>(emu_bits<uint32_t>(magnitude) | special | uint32_t(h & 0x8000u) << 16);
}

// ---- the host interface (runtime.cpp) ----
typedef struct CUstream_st* cudaStream_t;
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchTimeout = 702,
    cudaErrorMisalignedAddress = 716,
    cudaErrorLaunchFailure = 719
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
constexpr int cudaSharedmemCarveoutMaxShared = 100;
constexpr unsigned cudaStreamNonBlocking = 1;
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
};
struct cudaLaunchConfig_t {  // in CUDA's order; its names are macros here
    dim3 grid, block;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    const void* attributes;
    unsigned n_attributes;
};
#define EMU_HIDDEN __attribute__((visibility("hidden")))
EMU_HIDDEN const char* cudaGetErrorString(cudaError_t status);
EMU_HIDDEN cudaError_t cudaGetLastError();
EMU_HIDDEN cudaError_t cudaGetDevice(int* device);
EMU_HIDDEN cudaError_t cudaSetDevice(int device);
EMU_HIDDEN cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
EMU_HIDDEN cudaError_t cudaGetDeviceCount(int* count);
EMU_HIDDEN cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
EMU_HIDDEN cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
EMU_HIDDEN cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
EMU_HIDDEN cudaError_t cudaFuncGetName(const char** name, const void* kernel);
struct cudaDeviceProp {
    char name[256];
    int major, minor, multiProcessorCount, maxThreadsPerMultiProcessor, regsPerMultiprocessor, l2CacheSize;
    size_t sharedMemPerMultiprocessor, reservedSharedMemPerBlock, sharedMemPerBlockOptin, totalGlobalMem;
};
EMU_HIDDEN cudaError_t cudaGetDeviceProperties(cudaDeviceProp* is, int device);
