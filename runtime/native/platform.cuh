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
    CLAIM_CLEARED = 8,
    CLAIM_READ = 9,
    CLAIM_WRITTEN = 10,
    MEAN_LOADED = 11,
    MEAN_USED = 12,
    MEAN_STORED = 13,
    BARRIERS = 14
};

__host__ __device__ inline int divide_up(int a, int b) { return (a + b - 1) / b; }

// Linear interpolation along an axis, with half-pixel centres and clamped edges.
struct Tap {
    int first, second;
    float share;  // of the second

    __device__ Tap(int position, int source, int target) {
        const float place = (static_cast<float>(position) + 0.5f) * static_cast<float>(source) / static_cast<float>(target) - 0.5f;
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
