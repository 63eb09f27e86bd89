// The product of two tiles in shared memory: on tensor cores, or in plain code where there are none.
//
// Both bodies take operands that have been rounded to TF32, so that every product of two elements is exact in float32,
// and sum in float32: they differ only in the order of the sum. The code around them is the same.
#pragma once

#include "platform.cuh"

#ifndef DIFFSEG_CPU
#include <mma.h>
#endif

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define DIFFSEG_TENSOR_CORES 1
#else
#define DIFFSEG_TENSOR_CORES 0
#endif

namespace diffseg {

constexpr int TILE_M = 128, TILE_N = 64, TILE_K = 16;
// Distances between rows in shared memory: multiples of 4, as tensor cores need, with few bank conflicts.
constexpr int LEFT_PITCH = TILE_K + 4, RIGHT_PITCH = TILE_N + 4;
constexpr int LEFT_TILE = TILE_M * LEFT_PITCH, RIGHT_TILE = TILE_K * RIGHT_PITCH;

// To the nearest TF32 (10 bits of fraction, halves away from 0), as cvt.rna.tf32 rounds.
__device__ __forceinline__ float round_tf32(float value) {
    return __uint_as_float((__float_as_uint(value) + 0x1000u) & 0xffffe000u);
}

// The sum of products left [TILE_M, TILE_K] · right [TILE_K, TILE_N], distributed over the threads of a block.
class Accumulator {
#if DIFFSEG_TENSOR_CORES
    using Sum = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 8, float>;
    Sum sum_[2][2], total_[2][2];  // a warp has 32 × 32 of the tile

    __device__ static int row() { return static_cast<int>(threadIdx.x) / 64 * 32; }
    __device__ static int column() { return static_cast<int>(threadIdx.x) / 32 % 2 * 32; }

  public:
    __device__ __forceinline__ Accumulator() {
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
                nvcuda::wmma::fill_fragment(sum_[i][j], 0.0f);
                nvcuda::wmma::fill_fragment(total_[i][j], 0.0f);
            }
    }

    __device__ __forceinline__ void multiply(const float *left, const float *right) {
        using namespace nvcuda::wmma;
        DIFFSEG_UNROLL
        for (int k = 0; k < TILE_K; k += 8) {
            fragment<matrix_a, 16, 16, 8, precision::tf32, row_major> a[2];
            fragment<matrix_b, 16, 16, 8, precision::tf32, row_major> b[2];
            DIFFSEG_UNROLL
            for (int i = 0; i < 2; ++i) {
                load_matrix_sync(a[i], left + (row() + 16 * i) * LEFT_PITCH + k, LEFT_PITCH);
                load_matrix_sync(b[i], right + k * RIGHT_PITCH + column() + 16 * i, RIGHT_PITCH);
            }
            DIFFSEG_UNROLL
            for (int i = 0; i < 2; ++i)
                DIFFSEG_UNROLL
                for (int j = 0; j < 2; ++j) mma_sync(sum_[i][j], a[i], b[j], sum_[i][j]);
        }
    }

    // Tensor cores truncate their sums. Folding short sums into a rounded total keeps that error small.
    __device__ __forceinline__ void fold() {
        DIFFSEG_UNROLL
        for (int i = 0; i < 2; ++i)
            DIFFSEG_UNROLL
            for (int j = 0; j < 2; ++j)
                DIFFSEG_UNROLL
                for (int e = 0; e < Sum::num_elements; ++e) {
                    total_[i][j].x[e] += sum_[i][j].x[e];
                    sum_[i][j].x[e] = 0.0f;
                }
    }

    __device__ __forceinline__ void store(float *target, int pitch) const {
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
                float *corner = target + static_cast<size_t>(row() + 16 * i) * pitch + column() + 16 * j;
                nvcuda::wmma::store_matrix_sync(corner, total_[i][j], pitch, nvcuda::wmma::mem_row_major);
            }
    }
#else
    float sum_[4][8] = {}, total_[4][8] = {};  // a thread has 4 × 8 of the tile

    __device__ static int row() { return static_cast<int>(threadIdx.x) / 8 * 4; }
    __device__ static int column() { return static_cast<int>(threadIdx.x) % 8 * 8; }

  public:
    __device__ __forceinline__ void multiply(const float *left, const float *right) {
        left += row() * LEFT_PITCH;
        right += column();
        DIFFSEG_UNROLL
        for (int k = 0; k < TILE_K; ++k)
            DIFFSEG_UNROLL
            for (int i = 0; i < 4; ++i)
                DIFFSEG_UNROLL
                for (int j = 0; j < 8; ++j) sum_[i][j] += left[i * LEFT_PITCH + k] * right[k * RIGHT_PITCH + j];
    }

    __device__ __forceinline__ void fold() {
        DIFFSEG_UNROLL
        for (int i = 0; i < 4; ++i)
            DIFFSEG_UNROLL
            for (int j = 0; j < 8; ++j) {
                total_[i][j] += sum_[i][j];
                sum_[i][j] = 0.0f;
            }
    }

    __device__ __forceinline__ void store(float *target, int pitch) const {
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 8; ++j) target[static_cast<size_t>(row() + i) * pitch + column() + j] = total_[i][j];
    }
#endif
};

constexpr int FOLD = 32;  // slices of TILE_K between two folds

}  // namespace diffseg
