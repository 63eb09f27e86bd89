// Step 2, which maps are near each other: the symmetric KL divergence as one matrix product.
//
// D(a, b) = ½[h(a) + h(b) − a·log b − log a·b] with h(x) = x·log x. Maps sum to n, so that logarithms are near 0 and
// the products do not cancel. The entropies h use the same rounded operands as the products: the sum is then that of
// (a − b)(log a − log b) over rounded values, which is 0 where two maps are equal.
#pragma once

#include "tile.cuh"

namespace diffseg {

// The anchors: a grid of queries of the finest level (paper, section 3.3).
struct Anchors {
    int per_axis, width;  // width of the finest level
    int start_y, step_y, start_x, step_x;

    __device__ int query(int index) const {
        return (start_y + index / per_axis * step_y) * width + start_x + index % per_axis * step_x;
    }
};

struct Products {
    const float *left, *right;        // rows of `pitch`, padded with 0
    size_t left_stride, right_stride; // distance between frames
    Anchors anchors;                  // which rows are on the left; per_axis 0: all, in order
    const int32_t *counts;            // number of rows in every frame, on both sides; NULL: all
    int left_rows, right_rows, pitch;
    int splits;                       // parts of the sum, each taken by blocks of its own
    float smallest;                   // a logarithm's operand instead of 0
    float *cross;                     // [frame, split, left rows to TILE_M, cross_pitch]
    int cross_rows, cross_pitch;
    float *left_entropy, *right_entropy;  // [frame, split, rows]
};

__device__ __forceinline__ float4 load4(const float *at) { return *reinterpret_cast<const float4 *>(at); }

// a·log b + log a·b of a tile of left and right rows, and the rows' entropies, over one part of the pixels.
__global__ void __launch_bounds__(THREADS, 2) divergence(Products p) {
    __shared__ __align__(32) float left_maps[LEFT_TILE];
    __shared__ __align__(32) float left_logs[LEFT_TILE];
    __shared__ __align__(32) float right_maps[RIGHT_TILE];
    __shared__ __align__(32) float right_logs[RIGHT_TILE];
    __shared__ float entropies[3][THREADS];
    const int thread = static_cast<int>(threadIdx.x);
    const int frame = static_cast<int>(blockIdx.z) / p.splits, split = static_cast<int>(blockIdx.z) % p.splits;
    const int left_count = p.counts ? p.counts[frame] : p.left_rows;
    const int right_count = p.counts ? p.counts[frame] : p.right_rows;
    const int top = static_cast<int>(blockIdx.y) * TILE_M, side = static_cast<int>(blockIdx.x) * TILE_N;
    if (top >= left_count || side >= right_count) return;  // the whole block

    // This thread loads four pixels of each of three rows: two on the left, one on the right.
    const int row = thread / 4, k = thread % 4 * 4;
    const float *from[3];
    DIFFSEG_UNROLL
    for (int part = 0; part < 3; ++part) {
        const int count = part < 2 ? left_count : right_count;
        int index = part < 2 ? top + 64 * part + row : side + row;
        if (index >= count) index = count - 1;  // any row, since its results are not used
        if (part < 2 && p.anchors.per_axis) index = p.anchors.query(index);
        const float *base = part < 2 ? p.left + frame * p.left_stride : p.right + frame * p.right_stride;
        from[part] = base + static_cast<size_t>(index) * p.pitch + k;
    }
    const int slices = p.pitch / TILE_K;
    const int first = static_cast<int>(static_cast<int64_t>(slices) * split / p.splits);
    const int last = static_cast<int>(static_cast<int64_t>(slices) * (split + 1) / p.splits);

    float entropy[3] = {};
    float4 next[3];
    DIFFSEG_UNROLL
    for (int part = 0; part < 3; ++part) next[part] = load4(from[part] + static_cast<size_t>(first) * TILE_K);
    Accumulator sum;
    for (int slice = first; slice < last; ++slice) {
        DIFFSEG_UNROLL
        for (int part = 0; part < 3; ++part) {
            const float values[4] = {next[part].x, next[part].y, next[part].z, next[part].w};
            float *maps = part < 2 ? left_maps + (64 * part + row) * LEFT_PITCH + k : right_maps + k * RIGHT_PITCH + row;
            float *logs = part < 2 ? left_logs + (64 * part + row) * LEFT_PITCH + k : right_logs + k * RIGHT_PITCH + row;
            DIFFSEG_UNROLL
            for (int e = 0; e < 4; ++e) {
                const float map = round_tf32(values[e]);
                const float log = round_tf32(__logf(fmaxf(values[e], p.smallest)));
                entropy[part] += map * log;
                const int place = part < 2 ? e : e * RIGHT_PITCH;
                maps[place] = map;
                logs[place] = log;
            }
        }
        DIFFSEG_BARRIER(DIVERGENCE_LOADED);
        if (slice + 1 < last) {  // loaded while the product is taken
            DIFFSEG_UNROLL
            for (int part = 0; part < 3; ++part) next[part] = load4(from[part] + static_cast<size_t>(slice + 1) * TILE_K);
        }
        sum.multiply(left_maps, right_logs);
        sum.multiply(left_logs, right_maps);
        if ((slice - first) % FOLD == FOLD - 1) sum.fold();
        DIFFSEG_BARRIER(DIVERGENCE_USED);
    }
    sum.fold();
    const size_t part_index = static_cast<size_t>(frame) * p.splits + split;
    sum.store(p.cross + (part_index * p.cross_rows + top) * p.cross_pitch + side, p.cross_pitch);

    for (int part = 0; part < 3; ++part) entropies[part][thread] = entropy[part];
    DIFFSEG_BARRIER(DIVERGENCE_ENTROPY);
    if (thread < 3 * 64) {
        const int part = thread / 64, line = thread % 64;
        const float *four = entropies[part] + 4 * line;
        const float whole = four[0] + four[1] + four[2] + four[3];
        // Every block of a row has the same entropy; one of them writes it.
        const int index = part < 2 ? top + 64 * part + line : side + line;
        if (part < 2 && blockIdx.x == 0 && index < left_count)
            p.left_entropy[part_index * p.left_rows + index] = whole;
        if (part == 2 && blockIdx.y == 0 && index < right_count)
            p.right_entropy[part_index * p.right_rows + index] = whole;
    }
}

// A bit for every pair: nearer than the threshold. limit: 2·n·threshold. One block makes THREADS bits of a row.
__global__ void __launch_bounds__(THREADS) decide(Products p, float limit, unsigned *bits, int bit_rows, int words) {
    __shared__ unsigned char near[THREADS];
    const int thread = static_cast<int>(threadIdx.x), frame = static_cast<int>(blockIdx.z);
    const int left = static_cast<int>(blockIdx.y), right = static_cast<int>(blockIdx.x) * THREADS + thread;
    const int left_count = p.counts ? p.counts[frame] : p.left_rows;
    const int right_count = p.counts ? p.counts[frame] : p.right_rows;
    if (left >= left_count) return;  // the whole block
    bool is_near = false;
    if (right < right_count) {
        float divergence = 0.0f;
        for (int split = 0; split < p.splits; ++split) {
            const size_t part = static_cast<size_t>(frame) * p.splits + split;
            divergence += p.left_entropy[part * p.left_rows + left] + p.right_entropy[part * p.right_rows + right] -
                          p.cross[(part * p.cross_rows + left) * p.cross_pitch + right];
        }
        const int own = p.anchors.per_axis ? p.anchors.query(left) : left;
        is_near = right == own || divergence < limit;
    }
    near[thread] = is_near ? 1 : 0;
    DIFFSEG_BARRIER(DECIDE_FLAGS);
    const int word = static_cast<int>(blockIdx.x) * (THREADS / 32) + thread;
    if (thread < THREADS / 32 && word < words) {
        unsigned packed = 0;
        for (int bit = 0; bit < 32; ++bit) packed |= static_cast<unsigned>(near[32 * thread + bit]) << bit;
        bits[(static_cast<size_t>(frame) * bit_rows + left) * words + word] = packed;
    }
}

}  // namespace diffseg
