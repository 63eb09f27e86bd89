// Step 2, which maps are near each other: the symmetric KL divergence as one matrix product.
//
// D(a, b) = ½[h(a) + h(b) − a·log b − log a·b] with h(x) = x·log x. Maps sum to n, so that logarithms are near 0 and
// the products do not cancel. The logarithms are of base 2, which GPUs have; the limit of `decide` takes that into account. The entropies h use the same rounded operands as the products: the sum is then that of
// (a − b)(log a − log b) over rounded values, which is 0 where two maps are equal.
#pragma once

#include "tile.cuh"

namespace diffseg {

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

// a·log b + log a·b of a tile of left and right rows, and the rows' entropies, over one part of the pixels.
__global__ void __launch_bounds__(THREADS, 2) divergence(Products p) {
    using Place = Layout<Along::K>;
    __shared__ __align__(32) float left_maps[Place::LEFT_TILE];
    __shared__ __align__(32) float left_logs[Place::LEFT_TILE];
    __shared__ __align__(32) float right_maps[Place::RIGHT_TILE];
    __shared__ __align__(32) float right_logs[Place::RIGHT_TILE];
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

    float entropy[3] = {}, next[3][4];
    const auto load = [&](int slice) {
        DIFFSEG_UNROLL
        for (int part = 0; part < 3; ++part) load4(from[part] + slice * TILE_K, next[part]);
    };
    load(first);
    Accumulator<Along::K> sum;
    for (int slice = first; slice < last; ++slice) {
        float maps[3][4], logs[3][4];
        DIFFSEG_UNROLL
        for (int part = 0; part < 3; ++part)
            DIFFSEG_UNROLL
            for (int e = 0; e < 4; ++e) {
                // Every block computes the logarithms of its rows again: to read them would double the bytes it waits for.
                maps[part][e] = round_tf32(next[part][e]);
                logs[part][e] = round_tf32(log2_normal(fmaxf(next[part][e], p.smallest)));
                entropy[part] += maps[part][e] * logs[part][e];
            }
        Place::put_left(left_maps, row, k, maps[0], maps[1]);
        Place::put_left(left_logs, row, k, logs[0], logs[1]);
        Place::put_right(right_maps, k, row, maps[2]);
        Place::put_right(right_logs, k, row, logs[2]);
        DIFFSEG_BARRIER(DIVERGENCE_LOADED);
        if (slice + 1 < last) load(slice + 1);  // while the product is taken
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

// A bit for every pair: nearer than the threshold. limit: 2·n·threshold / ln 2. One block makes THREADS bits of a row.
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
