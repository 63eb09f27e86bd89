// What the kernels need from their platform: CUDA, or the emulation that runs them on a CPU.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>

#ifdef DIFFSEG_CPU
#include "cpu/emulation.h"
#define DIFFSEG_UNROLL
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define DIFFSEG_UNROLL _Pragma("unroll")
// The number names the barrier: the CPU build can leave one out, so that a test sees its race reported.
#define DIFFSEG_BARRIER(number) __syncthreads()
#define DIFFSEG_LAUNCH(kernel, grid, threads, stream, ...) kernel<<<(grid), (threads), 0, (stream)>>>(__VA_ARGS__)
#endif

namespace diffseg {

constexpr int THREADS = 256;  // of every block of every kernel
constexpr unsigned BAD_MAPS = 1, BAD_PARTS = 2;  // what was wrong with a frame, until it is told

// The barriers, by kernel. At each, all threads of the block wait for each other.
enum Barrier {
    SCALES_SUM = 0,
    SCALES_TREE = 1,
    AGGREGATE_SUM = 2,
    AGGREGATE_TREE = 3,
    DIVERGENCE_LOADED = 4,
    DIVERGENCE_USED = 5,
    DIVERGENCE_ENTROPY = 6,
    DECIDE_FLAGS = 7,
    CLAIM_LOADED = 8,
    CLAIM_RESOLVED = 9,
    SUM_LOADED = 10,
    SUM_USED = 11,
    SUM_COUNTED = 12,
    BARRIERS = 13
};

__host__ __device__ inline int divide_up(int a, int b) { return (a + b - 1) / b; }

// The logarithm of base 2 of a number that is not denormal.
__device__ __forceinline__ float log2_normal(float value) {
#ifdef DIFFSEG_CPU
    return log2f(value);
#else
    float log;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(log) : "f"(value));
    return log;
#endif
}

#ifndef DIFFSEG_TOUCH
#define DIFFSEG_TOUCH(at)  // a test sees the addresses
#endif

// Four floats at once, from or to an address aligned to 16 bytes.
__device__ __forceinline__ void load4(const float *at, float (&four)[4]) {
    DIFFSEG_TOUCH(at);
    const float4 loaded = *reinterpret_cast<const float4 *>(at);
    four[0] = loaded.x;
    four[1] = loaded.y;
    four[2] = loaded.z;
    four[3] = loaded.w;
}
__device__ __forceinline__ void store4(float *at, const float (&four)[4]) {
    DIFFSEG_TOUCH(at);
    *reinterpret_cast<float4 *>(at) = make_float4(four[0], four[1], four[2], four[3]);
}

// The anchors: a grid of queries of the finest level (paper, section 3.3).
struct Anchors {
    int per_axis, width;  // width of the finest level
    int start_y, step_y, start_x, step_x;

    __device__ int query(int index) const {
        return (start_y + index / per_axis * step_y) * width + start_x + index % per_axis * step_x;
    }
};

// Linear interpolation along an axis, with half-pixel centres and clamped edges.
struct Tap {
    int first, second;
    float share;  // of the second

    __device__ Tap(int position, int source, int target)
        : Tap((static_cast<float>(position) + 0.5f) * static_cast<float>(source) / static_cast<float>(target), source) {}
    // centre: of the position, on the source's axis.
    __device__ Tap(float centre, int source) {
        const float place = centre - 0.5f;
        const float below = floorf(place);
        share = place - below;
        const int index = static_cast<int>(below);
        first = index < 0 ? 0 : index;
        second = index + 1 < source ? index + 1 : source - 1;
    }
};

// The types in which a map may be stored.
struct Float32 {
    using Stored = float;
    static __device__ float load(const Stored *at) { return *at; }
};
struct Float16 {
    using Stored = uint16_t;
    static __device__ float load(const Stored *at) {
#ifdef DIFFSEG_CPU
        return emulation::half_to_float(*at);
#else
        return __half2float(__ushort_as_half(*at));
#endif
    }
};
struct BFloat16 {
    using Stored = uint16_t;
    static __device__ float load(const Stored *at) { return __uint_as_float(static_cast<unsigned>(*at) << 16); }
};

}  // namespace diffseg
