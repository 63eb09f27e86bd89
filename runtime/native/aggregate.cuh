// Step 1: one attention tensor at the finest resolution (paper, section 3.2, "Attention Aggregation").
//
// Each row of the result is written once, straight from the levels in memory, without an upsampled or replicated copy.
// Rows sum to n = h·w instead of 1, which centres the logarithms that follow (see divergence.cuh).
#pragma once

#include "platform.cuh"

namespace diffseg {

constexpr int MAX_LEVELS = 8;
constexpr int QUERIES = 4;  // neighbouring queries that a block aggregates; they share most of their coarse rows
constexpr int KEPT = 16;    // pixels of a row that a thread keeps between its two uses

struct Level {
    const void *maps;            // [batch, h·w, h·w]
    const float *row_share;      // [h], [w]: weight of a level's pixels in the sum of its upsampled map
    const float *column_share;
    int h, w;
    int first_row;               // index of this level's first row among the rows of all coarse levels
    float down, across;          // its sides' ratios to those of the finest level
    float total;                 // sum of its rows in the result: ratio · n
};

struct Pyramid {
    Level level[MAX_LEVELS];     // finest first; those of weight 0 are left out, except the finest
    int levels;
    int coarse_rows;             // of all levels except the finest
    int h, w, n, pitch;          // of the finest level; pitch: distance between rows of the result
};

// For every row of every coarse level, the factor with which its upsampled map sums to its share. One block per row.
template <class Type>
__global__ void __launch_bounds__(THREADS) coarse_scales(Pyramid pyramid, float *scales, unsigned *flags) {
    __shared__ float sums[THREADS];
    const int thread = static_cast<int>(threadIdx.x), frame = static_cast<int>(blockIdx.z);
    int index = 1;
    const int row = static_cast<int>(blockIdx.x);
    while (index + 1 < pyramid.levels && row >= pyramid.level[index + 1].first_row) ++index;
    const Level &level = pyramid.level[index];
    const int n = level.h * level.w;
    const typename Type::Stored *map = static_cast<const typename Type::Stored *>(level.maps) +
                                       (static_cast<size_t>(frame) * n + (row - level.first_row)) * n;
    float sum = 0.0f;
    bool good = true;  // an infinity is seen in the sum
    for (int pixel = thread; pixel < n; pixel += THREADS) {
        const float value = Type::load(map + pixel);
        good = good && value >= 0.0f;
        sum += value * (level.row_share[pixel / level.w] * level.column_share[pixel % level.w]);
    }
    sums[thread] = sum;
    DIFFSEG_BARRIER(SCALES_SUM);
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) sums[thread] += sums[thread + half];
        DIFFSEG_BARRIER(SCALES_TREE);
    }
    if (thread == 0) {
        const float scale = level.total / sums[0];
        good = good && sums[0] <= FLT_MAX && scale <= FLT_MAX;  // not a row of zeros, or nearly zeros
        scales[static_cast<size_t>(frame) * pyramid.coarse_rows + row] = scale;
    }
    if (!good) atomicOr(flags + frame, 1u);
}

// Neighbouring pixels, which are read at once.
template <class Stored, int GROUP>
struct __align__(sizeof(Stored) * GROUP) Pack {
    Stored values[GROUP];
};

// Rows of A, which sum to n. One block makes QUERIES neighbouring rows; pixels past n are written as 0.
//
// Every row of the finest level is used twice: for its sum, and then divided by that. The threads keep up to KEPT pixels
// each, which are all that there are up to 64×64; the rest is read again, soon enough to be in the L2 cache of most cards.
// GROUP: pixels that a thread reads at once; they must be in one row of the map, and the maps aligned to them.
template <class Type, int GROUP>
__global__ void __launch_bounds__(THREADS, 2)
    aggregate(Pyramid pyramid, const float *scales, float *attention, unsigned *flags) {
    __shared__ float sums[QUERIES][THREADS];
    __shared__ int source[MAX_LEVELS][QUERIES];
    __shared__ float factor[MAX_LEVELS][QUERIES];
    using Stored = typename Type::Stored;
    using Values = Pack<Stored, GROUP>;
    constexpr int STEPS = GROUP > 1 ? KEPT / GROUP : 1, STRIDE = THREADS * GROUP;
    const int thread = static_cast<int>(threadIdx.x), frame = static_cast<int>(blockIdx.z);
    const int y = static_cast<int>(blockIdx.y), x = static_cast<int>(blockIdx.x) * QUERIES;
    const int queries = pyramid.w - x < QUERIES ? pyramid.w - x : QUERIES;
    const int n = pyramid.n;
    const size_t first = static_cast<size_t>(frame) * n + static_cast<size_t>(y) * pyramid.w + x;
    const bool has_finest = pyramid.level[0].total > 0.0f;
    const Stored *finest = static_cast<const Stored *>(pyramid.level[0].maps) + first * n;
    const auto read = [&](int q, int pixel) {
        const int row = q < queries ? q : queries - 1;  // past the last query any row, since its results are not used
        return *reinterpret_cast<const Values *>(finest + static_cast<size_t>(row) * n + pixel);
    };

    float sum[QUERIES] = {}, least = 0.0f;
    const auto add = [&](int q, const Values &values) {
        DIFFSEG_UNROLL
        for (int e = 0; e < GROUP; ++e) {
            const float value = Type::load(values.values + e);
            least = fminf(least, value);
            sum[q] += value;
        }
    };
    Values kept[STEPS][QUERIES] = {};
    if (has_finest) {
        DIFFSEG_UNROLL
        for (int step = 0; step < STEPS; ++step) {
            const int pixel = step * STRIDE + thread * GROUP;
            if (pixel < n) {
                DIFFSEG_UNROLL
                for (int q = 0; q < QUERIES; ++q) kept[step][q] = read(q, pixel);
            }
        }
        DIFFSEG_UNROLL
        for (int step = 0; step < STEPS; ++step)
            DIFFSEG_UNROLL
            for (int q = 0; q < QUERIES; ++q) add(q, kept[step][q]);
        for (int pixel = STEPS * STRIDE + thread * GROUP; pixel < n; pixel += STRIDE)
            DIFFSEG_UNROLL
            for (int q = 0; q < QUERIES; ++q) add(q, read(q, pixel));
    }
    DIFFSEG_UNROLL
    for (int q = 0; q < QUERIES; ++q) sums[q][thread] = sum[q];
    for (int item = thread; item < pyramid.levels * QUERIES; item += THREADS) {
        // A query takes the nearest coarse query's map.
        const int index = item / QUERIES, q = item % QUERIES;
        const Level &level = pyramid.level[index];
        if (index == 0) continue;
        const int column = q < queries ? x + q : x + queries - 1;
        const int row = y * level.h / pyramid.h * level.w + column * level.w / pyramid.w;
        source[index][q] = row;
        factor[index][q] = scales[static_cast<size_t>(frame) * pyramid.coarse_rows + level.first_row + row];
    }
    DIFFSEG_BARRIER(AGGREGATE_SUM);
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) {
            for (int q = 0; q < QUERIES; ++q) sums[q][thread] += sums[q][thread + half];
        }
        DIFFSEG_BARRIER(AGGREGATE_TREE);
    }
    bool good = least >= 0.0f;  // a NaN or an infinity is seen in the sum
    float scale[QUERIES];
    DIFFSEG_UNROLL
    for (int q = 0; q < QUERIES; ++q) {
        scale[q] = 0.0f;
        if (!has_finest || q >= queries) continue;
        scale[q] = pyramid.level[0].total / sums[q][0];
        good = good && sums[q][0] <= FLT_MAX && scale[q] <= FLT_MAX;
    }
    if (!good) atomicOr(flags + frame, 1u);

    const auto finish = [&](int pixel, const Values (&values)[QUERIES]) {
        Pack<float, GROUP> value[QUERIES];
        DIFFSEG_UNROLL
        for (int q = 0; q < QUERIES; ++q)
            DIFFSEG_UNROLL
            for (int e = 0; e < GROUP; ++e) value[q].values[e] = Type::load(values[q].values + e) * scale[q];
        const int line = pixel / pyramid.w, column = pixel % pyramid.w;
        for (int index = 1; index < pyramid.levels; ++index) {
            const Level &level = pyramid.level[index];
            const Tap down((static_cast<float>(line) + 0.5f) * level.down, level.h);
            const size_t cells = static_cast<size_t>(level.h) * level.w;
            const Stored *maps = static_cast<const Stored *>(level.maps) + static_cast<size_t>(frame) * cells * cells;
            for (int q = 0; q < QUERIES;) {  // by coarse row, which queries in a row share
                const int row = source[index][q];
                const float share = factor[index][q];
                const Stored *top = maps + row * cells + down.first * level.w;
                const Stored *bottom = maps + row * cells + down.second * level.w;
                float coarse[GROUP];
                DIFFSEG_UNROLL
                for (int e = 0; e < GROUP; ++e) {
                    const Tap across((static_cast<float>(column + e) + 0.5f) * level.across, level.w);
                    const float a = Type::load(top + across.first), b = Type::load(top + across.second);
                    const float c = Type::load(bottom + across.first), d = Type::load(bottom + across.second);
                    const float upper = a + (b - a) * across.share, lower = c + (d - c) * across.share;
                    coarse[e] = (upper + (lower - upper) * down.share) * share;
                }
                DIFFSEG_UNROLL
                for (int other = 0; other < QUERIES; ++other) {
                    if (source[index][other] != row) continue;
                    ++q;
                    DIFFSEG_UNROLL
                    for (int e = 0; e < GROUP; ++e) value[other].values[e] += coarse[e];
                }
            }
        }
        DIFFSEG_UNROLL
        for (int q = 0; q < QUERIES; ++q) {
            if (q < queries)
                *reinterpret_cast<Pack<float, GROUP> *>(attention + (first + q) * pyramid.pitch + pixel) = value[q];
        }
    };
    DIFFSEG_UNROLL
    for (int step = 0; step < STEPS; ++step) {
        const int pixel = step * STRIDE + thread * GROUP;
        if (pixel < n) finish(pixel, kept[step]);
    }
    for (int pixel = STEPS * STRIDE + thread * GROUP; pixel < n; pixel += STRIDE) {
        Values again[QUERIES] = {};
        if (has_finest) {
            DIFFSEG_UNROLL
            for (int q = 0; q < QUERIES; ++q) again[q] = read(q, pixel);
        }
        finish(pixel, again);
    }
    for (int pixel = n + thread; pixel < pyramid.pitch; pixel += THREADS) {
        for (int q = 0; q < queries; ++q) attention[(first + q) * pyramid.pitch + pixel] = 0.0f;
    }
}

}  // namespace diffseg
