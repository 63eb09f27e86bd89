// Step 2, the merge: which proposal claims which, and the means of the members (paper, section 3.3).
#pragma once

#include "tile.cuh"

namespace diffseg {

constexpr int MAX_PROPOSALS = 128 * 128;

// Before the later iterations every anchor is a proposal.
__global__ void __launch_bounds__(THREADS) all_present(int32_t *counts, int batch, int anchors) {
    const int frame = static_cast<int>(blockIdx.x * THREADS + threadIdx.x);
    if (frame < batch) counts[frame] = anchors;
}

// In order, every proposal that is not yet claimed is kept and claims all that are near it. One block per frame.
__global__ void __launch_bounds__(THREADS) claim(const unsigned *bits, int bit_rows, int words, const int32_t *counts,
                                                 int32_t *kept, int32_t *kept_counts) {
    __shared__ unsigned claimed[MAX_PROPOSALS / 32];
    const int thread = static_cast<int>(threadIdx.x), frame = static_cast<int>(blockIdx.x);
    const int total = counts[frame], used = divide_up(total, 32);
    for (int word = thread; word < used; word += THREADS) claimed[word] = 0;
    DIFFSEG_BARRIER(CLAIM_CLEARED);
    int keep = 0;
    for (int index = 0; index < total;) {
        const unsigned rest = claimed[index / 32] >> (index % 32);
        if (rest & 1u) {
            ++index;
            continue;
        }
        DIFFSEG_BARRIER(CLAIM_READ);  // all threads have reached the same proposal before anything changes
        const unsigned *row = bits + (static_cast<size_t>(frame) * bit_rows + index) * words;
        for (int word = thread; word < used; word += THREADS) claimed[word] |= row[word];
        if (thread == 0) kept[static_cast<size_t>(frame) * bit_rows + keep] = index;
        ++keep;
        ++index;
        DIFFSEG_BARRIER(CLAIM_WRITTEN);
    }
    if (thread == 0) kept_counts[frame] = keep;
}

struct Means {
    const float *maps;        // rows of `pitch` that are averaged
    size_t stride;            // distance between frames
    const unsigned *bits;     // [frame, bit_rows, words]: the members
    int bit_rows, words;
    const int32_t *kept;      // [frame, bit_rows]: which rows of bits; NULL: all, in order
    const int32_t *kept_counts, *counts;  // number of kept rows; number of maps (NULL: map_rows)
    int kept_rows, map_rows, pitch;
    float *means;             // [frame, bit_rows, pitch]
};

// The plain mean of the members of every kept row: bits · maps, a product with exact 0 and 1 on the left. Each map
// is split into two TF32 parts, so that the mean is as accurate as in float32.
__global__ void __launch_bounds__(THREADS, 2) member_means(Means p) {
    // First the operands, later the sums, in the same memory.
    __shared__ __align__(32) float shared[TILE_M * RIGHT_PITCH];
    __shared__ int members[THREADS];
    static_assert(LEFT_TILE + 2 * RIGHT_TILE <= TILE_M * RIGHT_PITCH, "operands must fit where the sums go");
    float *left = shared, *high = shared + LEFT_TILE, *low = high + RIGHT_TILE;
    const int thread = static_cast<int>(threadIdx.x), frame = static_cast<int>(blockIdx.z);
    const int kept_count = p.kept_counts ? p.kept_counts[frame] : p.kept_rows;
    const int map_count = p.counts ? p.counts[frame] : p.map_rows;
    const int top = static_cast<int>(blockIdx.y) * TILE_M, side = static_cast<int>(blockIdx.x) * TILE_N;
    if (top >= kept_count) return;  // the whole block

    // This thread loads eight bits of one row, and four pixels of one map.
    const int row = thread / 2, bit = thread % 2 * 8;
    const int right_row = thread / 16, pixel = thread % 16 * 4;
    const bool present = top + row < kept_count;
    const unsigned *words = p.bits;
    if (present) {
        const size_t start = static_cast<size_t>(frame) * p.bit_rows;
        words += (start + (p.kept ? p.kept[start + top + row] : top + row)) * p.words;
    }
    const float *maps = p.maps + frame * p.stride + side + pixel;
    int count = 0;
    Accumulator sum;
    const int slices = divide_up(map_count, TILE_K);
    for (int slice = 0; slice < slices; ++slice) {
        const int start = slice * TILE_K;
        const unsigned own = present ? words[start / 32] >> (start % 32 + bit) & 0xffu : 0u;
        count += __popc(own);
        DIFFSEG_UNROLL
        for (int e = 0; e < 8; ++e) left[row * LEFT_PITCH + bit + e] = own >> e & 1u ? 1.0f : 0.0f;
        // Past the last map there are no members, so any finite number is right.
        const int map = start + right_row < map_count ? start + right_row : map_count - 1;
        const float4 four = *reinterpret_cast<const float4 *>(maps + static_cast<size_t>(map) * p.pitch);
        const float values[4] = {four.x, four.y, four.z, four.w};
        DIFFSEG_UNROLL
        for (int e = 0; e < 4; ++e) {
            const float rounded = round_tf32(values[e]);
            high[right_row * RIGHT_PITCH + pixel + e] = rounded;
            low[right_row * RIGHT_PITCH + pixel + e] = round_tf32(values[e] - rounded);
        }
        DIFFSEG_BARRIER(MEAN_LOADED);
        sum.multiply(left, high);
        sum.multiply(left, low);
        if (slice % FOLD == FOLD - 1) sum.fold();
        DIFFSEG_BARRIER(MEAN_USED);
    }
    sum.fold();
    sum.store(shared, RIGHT_PITCH);
    members[thread] = count;
    DIFFSEG_BARRIER(MEAN_STORED);
    for (int item = thread; item < TILE_M * TILE_N; item += THREADS) {
        const int line = item / TILE_N, column = item % TILE_N;
        if (top + line >= kept_count) break;
        const int number = members[2 * line] + members[2 * line + 1];
        p.means[(static_cast<size_t>(frame) * p.bit_rows + top + line) * p.pitch + side + column] =
            shared[line * RIGHT_PITCH + column] / static_cast<float>(number);
    }
}

}  // namespace diffseg
