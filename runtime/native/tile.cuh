// The product of two tiles in shared memory: on tensor cores, or in plain code where there are none.
//
// Both bodies take operands that have been rounded to TF32, so that every product of two elements is exact in float32,
// and sum in float32: they differ only in the order of the sum. The code around them is the same.
#pragma once

#include "platform.cuh"

#if defined(DIFFSEG_CPU_TENSOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800)
#define DIFFSEG_TENSOR_CORES 1
#else
#define DIFFSEG_TENSOR_CORES 0
#endif

namespace diffseg {

constexpr int TILE_M = 128, TILE_N = 64, TILE_K = 16;
constexpr int FOLD = 32;  // slices of TILE_K between two folds

// To the nearest TF32 (10 bits of fraction, halves away from 0), as cvt.rna.tf32 rounds.
__device__ __forceinline__ float round_tf32(float value) {
    return __uint_as_float((__float_as_uint(value) + 0x1000u) & 0xffffe000u);
}

// How a right tile [TILE_K, TILE_N] comes from memory: in rows along k, or in rows along n.
enum class Along { K, N };

// Layout: where a tile's elements are in shared memory. A thread puts four of a row at a time.
// Left: elements k to k + 3 of a row, `upper`, and of the row 64 below it, `lower`; k is a multiple of 4.
// Right: elements k to k + 3 of column n (Along::K); or elements n and n + 1 of the rows k and k + 1, in the order (k, n),
// (k + 1, n), (k, n + 1), (k + 1, n + 1), where k and n are even (Along::N).

#if DIFFSEG_TENSOR_CORES

#ifdef DIFFSEG_CPU
using emulation::mma_m16n8k8_tf32;
using emulation::mma_settle;
#else
// A warp's product [16, 8] · [8, 8], added to the sum. The PTX ISA says which lane has which elements ("Matrix Fragments
// for mma.m16n8k8").
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
          "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
__device__ __forceinline__ void mma_settle() {}  // the emulation computes here what the warp's lanes have queued
#endif

// Elements of k go in pairs: pair p, below 4, is 4·p and 4·p + 1, and pair p + 4 is 4·p + 2 and 4·p + 3. So what a lane
// passes to the instruction is next to each other in memory: on the left two rows of a pair, on the right a pair of one
// or two columns. The eight lanes whose loads of 16 bytes are served together read from all 32 banks.
template <Along ALONG>
struct Layout {
    static constexpr int PITCH = ALONG == Along::K ? TILE_K : 2 * TILE_N + 8;  // of the right: of a column, of a pair
    static constexpr int LEFT_TILE = TILE_M * TILE_K, RIGHT_TILE = ALONG == Along::K ? TILE_N * PITCH : TILE_K / 2 * PITCH;

    // (row, k), (row + 64, k), (row, k + 1), (row + 64, k + 1) of a pair. Odd rows have the pairs from 4 on first.
    static __device__ int left(int row, int pair) { return row * 2 * TILE_K + (pair ^ row % 2 * 4) * 4; }
    static __device__ void put_left(float *tile, int row, int k, const float (&upper)[4], const float (&lower)[4]) {
        const float first[4] = {upper[0], lower[0], upper[1], lower[1]}, second[4] = {upper[2], lower[2], upper[3], lower[3]};
        store4(tile + left(row, k / 4), first);
        store4(tile + left(row, k / 4 + 4), second);
    }
    static __device__ int right(int pair, int n) {
        return ALONG == Along::K ? n * PITCH + pair % 4 * 4 + pair / 4 * 2 : pair * PITCH + 2 * n;
    }
    static __device__ void put_right(float *tile, int k, int n, const float (&four)[4]) {
        store4(tile + right(k / 4 + k % 4 / 2 * 4, n), four);
    }
};

// The sum of products left [TILE_M, TILE_K] · right [TILE_K, TILE_N], distributed over the threads of a block.
//
// A warp has 32 × 32 of the tile: two by four products of 16 × 8. The first 8 rows of a product are 64 above the others,
// and its columns are chosen so that a lane's sums are four neighbours.
template <Along ALONG>
class Accumulator {
    using Place = Layout<ALONG>;
    float sum_[2][4][4] = {}, total_[2][4][4] = {};

    __device__ static int group() { return static_cast<int>(threadIdx.x) % 32 / 4; }
    __device__ static int quarter() { return static_cast<int>(threadIdx.x) % 4; }
    __device__ static int row() { return static_cast<int>(threadIdx.x) / 64 * 16 + group(); }
    __device__ static int column() { return static_cast<int>(threadIdx.x) / 32 % 2 * 32; }

  public:
    __device__ __forceinline__ void multiply(const float *left, const float *right) {
        float a[2][2][4];  // by half of k, and product
        DIFFSEG_UNROLL
        for (int i = 0; i < 4; ++i) load4(left + Place::left(row() + i % 2 * 8, quarter() + i / 2 * 4), a[i / 2][i % 2]);
        DIFFSEG_UNROLL
        for (int i = 0; i < 4; ++i) {
            // Along::K: both pairs of product i's column. Along::N: one pair of a column of products 2·(i % 2) and the next.
            const int n = column() + (ALONG == Along::K ? i / 2 * 16 + group() / 2 * 4 + i % 2 * 2 + group() % 2
                                                        : i % 2 * 16 + group() * 2);
            float b[4];
            load4(right + Place::right(quarter() + (ALONG == Along::K ? 0 : i / 2 * 4), n), b);
            DIFFSEG_UNROLL
            for (int half = 0; half < 2; ++half) {
                const float two[2] = {b[2 * half], b[2 * half + 1]};
                const int k = ALONG == Along::K ? half : i / 2, j = ALONG == Along::K ? i : i % 2 * 2 + half;
                DIFFSEG_UNROLL
                for (int product = 0; product < 2; ++product) mma_m16n8k8_tf32(sum_[product][j], a[k][product], two);
            }
        }
        mma_settle();
    }

    // Tensor cores truncate their sums. Folding short sums into a rounded total keeps that error small.
    __device__ __forceinline__ void fold() {
        DIFFSEG_UNROLL
        for (int i = 0; i < 2; ++i)
            DIFFSEG_UNROLL
            for (int j = 0; j < 4; ++j)
                DIFFSEG_UNROLL
                for (int e = 0; e < 4; ++e) {
                    total_[i][j][e] += sum_[i][j][e];
                    sum_[i][j][e] = 0.0f;
                }
    }

    __device__ __forceinline__ void store(float *target, int pitch) const {
        DIFFSEG_UNROLL
        for (int i = 0; i < 4; ++i) {  // by product, and rows above and below
            float *line = target + static_cast<size_t>(row() + i / 2 * 8 + i % 2 * 64) * pitch + column() + 4 * quarter();
            DIFFSEG_UNROLL
            for (int j = 0; j < 4; j += 2) {
                const float *one = total_[i / 2][j] + i % 2 * 2, *two = total_[i / 2][j + 1] + i % 2 * 2;
                const float four[4] = {one[0], ALONG == Along::K ? one[1] : two[0], ALONG == Along::K ? two[0] : one[1], two[1]};
                store4(line + 8 * j, four);
            }
        }
    }
};

#else

template <Along ALONG>
struct Layout {
    static constexpr int LEFT_PITCH = TILE_K + 4, RIGHT_PITCH = TILE_N + 4;
    static constexpr int LEFT_TILE = TILE_M * LEFT_PITCH, RIGHT_TILE = TILE_K * RIGHT_PITCH;
    static __device__ void put_left(float *tile, int row, int k, const float (&upper)[4], const float (&lower)[4]) {
        store4(tile + row * LEFT_PITCH + k, upper);
        store4(tile + (row + 64) * LEFT_PITCH + k, lower);
    }
    static __device__ void put_right(float *tile, int k, int n, const float (&four)[4]) {
        float *at = tile + k * RIGHT_PITCH + n;
        if (ALONG == Along::N) {
            at[0] = four[0];
            at[RIGHT_PITCH] = four[1];
            at[1] = four[2];
            at[RIGHT_PITCH + 1] = four[3];
        } else {
            DIFFSEG_UNROLL
            for (int e = 0; e < 4; ++e) at[e * RIGHT_PITCH] = four[e];
        }
    }
};

template <Along ALONG>
class Accumulator {
    using Place = Layout<ALONG>;
    float sum_[4][8] = {}, total_[4][8] = {};  // a thread has 4 × 8 of the tile

    __device__ static int row() { return static_cast<int>(threadIdx.x) / 8 * 4; }
    __device__ static int column() { return static_cast<int>(threadIdx.x) % 8 * 8; }

  public:
    __device__ __forceinline__ void multiply(const float *left, const float *right) {
        left += row() * Place::LEFT_PITCH;
        right += column();
        DIFFSEG_UNROLL
        for (int k = 0; k < TILE_K; ++k)
            DIFFSEG_UNROLL
            for (int i = 0; i < 4; ++i)
                DIFFSEG_UNROLL
                for (int j = 0; j < 8; ++j)
                    sum_[i][j] += left[i * Place::LEFT_PITCH + k] * right[k * Place::RIGHT_PITCH + j];
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
};

#endif

}  // namespace diffseg
