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
//
// Proposals go by words of 32: one thread finds out which of them are kept, from the bits among these 32 alone, and then
// all threads claim what those are near, with loads that do not wait for each other.
__global__ void __launch_bounds__(THREADS) claim(const unsigned *bits, int bit_rows, int words, const int32_t *counts,
                                                 int32_t *kept, int32_t *kept_counts) {
    __shared__ unsigned claimed[MAX_PROPOSALS / 32];
    __shared__ unsigned among[32], kept_here;
    const int thread = static_cast<int>(threadIdx.x), frame = static_cast<int>(blockIdx.x);
    const int total = counts[frame], used = divide_up(total, 32);
    const unsigned *rows = bits + static_cast<size_t>(frame) * bit_rows * words;
    for (int word = thread; word < used; word += THREADS) claimed[word] = 0;
    int keep = 0;
    for (int word = 0; word < used; ++word) {
        const int start = 32 * word, present = total - start < 32 ? total - start : 32;
        if (thread < present) among[thread] = rows[static_cast<size_t>(start + thread) * words + word];
        DIFFSEG_BARRIER(CLAIM_LOADED);
        if (thread == 0) {
            unsigned taken = claimed[word], mask = 0;
            for (int bit = 0; bit < present; ++bit) {
                if (taken >> bit & 1u) continue;
                mask |= 1u << bit;
                taken |= among[bit];
            }
            kept_here = mask;
        }
        DIFFSEG_BARRIER(CLAIM_RESOLVED);
        const unsigned mask = kept_here;
        if (thread < 32 && mask >> thread & 1u) {
            const int before = __popc(mask & ((1u << thread) - 1u));
            kept[static_cast<size_t>(frame) * bit_rows + keep + before] = start + thread;
        }
        keep += __popc(mask);
        for (int other = word + 1 + thread; other < used; other += THREADS) {
            unsigned near = 0;
            for (int bit = 0; bit < present; ++bit)
                if (mask >> bit & 1u) near |= rows[static_cast<size_t>(start + bit) * words + other];
            claimed[other] |= near;
        }
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
    int splits;               // parts of the sum, each taken by blocks of its own
    float *sums;              // [frame, split, sum_rows, pitch]: of the members' maps
    int sum_rows;             // kept rows to TILE_M
    int32_t *members;         // [frame, split, bit_rows]: their number
    float *means;             // [frame, bit_rows, pitch]
};

// The sum of the members of every kept row over one part of the maps: bits · maps, a product with exact 0 and 1 on the
// left. Each map is split into two TF32 parts, so that the sum is as accurate as in float32.
__global__ void __launch_bounds__(THREADS, 2) member_sums(Means p) {
    using Place = Layout<Along::N>;
    __shared__ __align__(32) float left[Place::LEFT_TILE];
    __shared__ __align__(32) float high[Place::RIGHT_TILE];
    __shared__ __align__(32) float low[Place::RIGHT_TILE];
    __shared__ int numbers[2][THREADS];
    const int thread = static_cast<int>(threadIdx.x);
    const int frame = static_cast<int>(blockIdx.z) / p.splits, split = static_cast<int>(blockIdx.z) % p.splits;
    const int kept_count = p.kept_counts ? p.kept_counts[frame] : p.kept_rows;
    const int map_count = p.counts ? p.counts[frame] : p.map_rows;
    const int top = static_cast<int>(blockIdx.y) * TILE_M, side = static_cast<int>(blockIdx.x) * TILE_N;
    if (top >= kept_count) return;  // the whole block

    // This thread loads four bits of each of two rows, and two pixels of each of two maps.
    const int row = thread / 4, bit = thread % 4 * 4;
    const int map_row = thread / 32 * 2, pixel = thread % 32 * 2;
    const unsigned *words[2];
    DIFFSEG_UNROLL
    for (int part = 0; part < 2; ++part) {
        int index = top + 64 * part + row;
        if (index >= kept_count) index = kept_count - 1;  // any row, since its results are not used
        const size_t start = static_cast<size_t>(frame) * p.bit_rows;
        words[part] = p.bits + (start + (p.kept ? p.kept[start + index] : index)) * p.words;
    }
    const float *maps = p.maps + frame * p.stride + side + pixel;
    const int slices = divide_up(map_count, TILE_K);
    const int first = static_cast<int>(static_cast<int64_t>(slices) * split / p.splits);
    const int last = static_cast<int>(static_cast<int64_t>(slices) * (split + 1) / p.splits);

    unsigned own[2] = {};
    float2 next[2] = {};
    const auto load = [&](int slice) {
        const int start = slice * TILE_K;
        DIFFSEG_UNROLL
        for (int part = 0; part < 2; ++part) {
            own[part] = words[part][start / 32] >> (start % 32 + bit) & 0xfu;
            // Past the last map there are no members, so any finite number is right.
            const int map = start + map_row + part < map_count ? start + map_row + part : map_count - 1;
            next[part] = *reinterpret_cast<const float2 *>(maps + static_cast<size_t>(map) * p.pitch);
        }
    };
    if (first < last) load(first);
    int count[2] = {};
    Accumulator<Along::N> sum;
    for (int slice = first; slice < last; ++slice) {
        float flags[2][4], upper[4], lower[4];
        DIFFSEG_UNROLL
        for (int part = 0; part < 2; ++part) {
            DIFFSEG_UNROLL
            for (int e = 0; e < 4; ++e) flags[part][e] = own[part] >> e & 1u ? 1.0f : 0.0f;
            count[part] += __popc(own[part]);
        }
        const float values[4] = {next[0].x, next[1].x, next[0].y, next[1].y};
        DIFFSEG_UNROLL
        for (int e = 0; e < 4; ++e) {
            upper[e] = round_tf32(values[e]);
            lower[e] = round_tf32(values[e] - upper[e]);
        }
        Place::put_left(left, row, bit, flags[0], flags[1]);
        Place::put_right(high, map_row, pixel, upper);
        Place::put_right(low, map_row, pixel, lower);
        DIFFSEG_BARRIER(SUM_LOADED);
        if (slice + 1 < last) load(slice + 1);  // while the product is taken
        sum.multiply(left, high);
        sum.multiply(left, low);
        if ((slice - first) % FOLD == FOLD - 1) sum.fold();
        DIFFSEG_BARRIER(SUM_USED);
    }
    sum.fold();
    const size_t part_index = static_cast<size_t>(frame) * p.splits + split;
    sum.store(p.sums + (part_index * p.sum_rows + top) * p.pitch + side, p.pitch);
    if (blockIdx.x > 0) return;  // the whole block; every block of a row counts the same
    for (int part = 0; part < 2; ++part) numbers[part][thread] = count[part];
    DIFFSEG_BARRIER(SUM_COUNTED);
    if (thread < TILE_M && top + thread < kept_count) {
        const int *four = numbers[thread / 64] + thread % 64 * 4;
        p.members[part_index * p.bit_rows + top + thread] = four[0] + four[1] + four[2] + four[3];
    }
}

// A word of 32 bits for every part and every 32 queries: which of them are in the part. One thread per word. A query whose
// number is not that of a part is in none, and bad_frames says so.
__global__ void __launch_bounds__(THREADS)
    part_members(const int32_t *part, int n, int parts, unsigned *bits, int bit_rows, int words, unsigned *bad_frames) {
    const int word = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (word >= words) return;
    const int frame = static_cast<int>(blockIdx.z), queries = n - 32 * word < 32 ? n - 32 * word : 32;
    const int32_t *own = part + static_cast<size_t>(frame) * n + 32 * word;
    for (int row = static_cast<int>(blockIdx.y); row < parts; row += static_cast<int>(gridDim.y)) {
        unsigned members = 0;
        bool good = true;
        for (int bit = 0; bit < queries; ++bit) {
            members |= static_cast<unsigned>(own[bit] == row) << bit;
            good = good && own[bit] >= 0 && own[bit] < parts;
        }
        bits[(static_cast<size_t>(frame) * bit_rows + row) * words + word] = members;
        if (row == 0 && !good) atomicOr(bad_frames + frame, BAD_PARTS);
    }
}

// The plain mean of the members: the parts of the sum, in their order, over the parts' numbers; 0 where there are no
// members. Four pixels per thread.
__global__ void __launch_bounds__(THREADS) member_means(Means p) {
    const int frame = static_cast<int>(blockIdx.z), row = static_cast<int>(blockIdx.y);
    const int pixel = 4 * (static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x));
    const int kept_count = p.kept_counts ? p.kept_counts[frame] : p.kept_rows;
    if (row >= kept_count || pixel >= p.pitch) return;
    float total[4] = {};
    int number = 0;
    for (int split = 0; split < p.splits; ++split) {
        const size_t part = static_cast<size_t>(frame) * p.splits + split;
        float four[4];
        load4(p.sums + (part * p.sum_rows + row) * p.pitch + pixel, four);
        DIFFSEG_UNROLL
        for (int e = 0; e < 4; ++e) total[e] += four[e];
        number += p.members[part * p.bit_rows + row];
    }
    DIFFSEG_UNROLL
    for (int e = 0; e < 4; ++e) total[e] /= static_cast<float>(number > 0 ? number : 1);
    store4(p.means + (static_cast<size_t>(frame) * p.bit_rows + row) * p.pitch + pixel, total);
}

}  // namespace diffseg
