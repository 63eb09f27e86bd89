// Checks of a caller's arguments, and the layout of the workspace. Host code only; touches no device.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "aggregate.cuh"
#include "diffseg.h"
#include "divergence.cuh"
#include "merge.cuh"

namespace diffseg {

static_assert(MAX_LEVELS == DIFFSEG_MAX_LEVELS, "the header and the kernels agree");
static_assert(MAX_PROPOSALS == DIFFSEG_MAX_ANCHORS * DIFFSEG_MAX_ANCHORS, "the header and the kernels agree");

inline char *error_text() {
    static thread_local char text[256] = "";
    return text;
}

// Keeps the message for diffseg_last_error, and returns the status.
#ifdef __GNUC__
__attribute__((format(printf, 2, 3)))
#endif
inline diffseg_status fail(diffseg_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(error_text(), 256, format, arguments);
    va_end(arguments);
    return status;
}

inline diffseg_status check_config(const diffseg_config *config) {
    if (!config) return fail(DIFFSEG_NULL_POINTER, "config is NULL");
    if (config->struct_size != sizeof(diffseg_config) || config->abi_version != DIFFSEG_ABI_VERSION)
        return fail(DIFFSEG_ABI_MISMATCH, "config: expected %u bytes of version %u, found %u bytes of version %u",
                    static_cast<unsigned>(sizeof(diffseg_config)), DIFFSEG_ABI_VERSION, config->struct_size,
                    config->abi_version);
    if (config->device < 0) return fail(DIFFSEG_NO_DEVICE, "device: expected 0 or more, found %d", config->device);
    if (config->max_batch < 1 || config->max_batch > DIFFSEG_MAX_BATCH)
        return fail(DIFFSEG_BAD_BATCH, "max_batch: expected 1 to %d, found %d", DIFFSEG_MAX_BATCH, config->max_batch);
    if (config->levels < 1 || config->levels > DIFFSEG_MAX_LEVELS)
        return fail(DIFFSEG_BAD_GRID, "levels: expected 1 to %d, found %d", DIFFSEG_MAX_LEVELS, config->levels);
    for (int r = 0; r < config->levels; ++r) {
        const int h = config->grids[r][0], w = config->grids[r][1];
        if (h < 1 || w < 1 || static_cast<int64_t>(h) * w > DIFFSEG_MAX_MAP)
            return fail(DIFFSEG_BAD_GRID, "grids[%d]: expected h*w of 1 to %d, found %dx%d", r, DIFFSEG_MAX_MAP, h, w);
        if (r == 0) continue;
        const int above = config->grids[r - 1][0], wide = config->grids[r - 1][1];
        if (h > above || w > wide || (h == above && w == wide))
            return fail(DIFFSEG_BAD_GRID, "grids: expected finest first, each once; found %dx%d after %dx%d", h, w,
                        above, wide);
    }
    if (config->input_type < DIFFSEG_FLOAT32 || config->input_type > DIFFSEG_BFLOAT16)
        return fail(DIFFSEG_BAD_TYPE, "input_type: expected 0 to 2, found %d", config->input_type);
    const int h = config->grids[0][0], w = config->grids[0][1], shorter = h < w ? h : w;
    const int most = shorter < DIFFSEG_MAX_ANCHORS ? shorter : DIFFSEG_MAX_ANCHORS;
    if (config->anchors < 2 || config->anchors > most)
        return fail(DIFFSEG_BAD_ANCHORS, "anchors: expected 2 to %d per axis, found %d", most, config->anchors);
    if (config->iterations < 1 || config->iterations > DIFFSEG_MAX_ITERATIONS)
        return fail(DIFFSEG_BAD_THRESHOLD, "iterations: expected 1 to %d, found %d", DIFFSEG_MAX_ITERATIONS,
                    config->iterations);
    for (int r = 0; r < config->levels; ++r) {
        if (!std::isfinite(config->weights[r]) || config->weights[r] < 0.0f)
            return fail(DIFFSEG_BAD_WEIGHT, "weights[%d]: expected a finite number of 0 or more, found %g", r,
                        static_cast<double>(config->weights[r]));
    }
    return DIFFSEG_OK;
}

// The share of every level in the aggregation; they sum to 1 (paper, equation 4).
inline void level_ratios(const diffseg_config &config, double ratios[DIFFSEG_MAX_LEVELS]) {
    double total = 0.0;
    for (int r = 0; r < config.levels; ++r) total += static_cast<double>(config.weights[r]);
    const bool proportional = total == 0.0;
    if (proportional) {
        for (int r = 0; r < config.levels; ++r)
            total += std::sqrt(static_cast<double>(config.grids[r][0]) * config.grids[r][1]);
    }
    for (int r = 0; r < config.levels; ++r) {
        const double side = std::sqrt(static_cast<double>(config.grids[r][0]) * config.grids[r][1]);
        ratios[r] = (proportional ? side : static_cast<double>(config.weights[r])) / total;
    }
}

// last: frames of the handle's last call, 0 before it.
inline diffseg_status check_frames(const diffseg_config &config, const diffseg_frames *frames, int32_t last) {
    if (!frames) return fail(DIFFSEG_NULL_POINTER, "frames is NULL");
    if (frames->struct_size != sizeof(diffseg_frames) || frames->abi_version != DIFFSEG_ABI_VERSION)
        return fail(DIFFSEG_ABI_MISMATCH, "frames: expected %u bytes of version %u, found %u bytes of version %u",
                    static_cast<unsigned>(sizeof(diffseg_frames)), DIFFSEG_ABI_VERSION, frames->struct_size,
                    frames->abi_version);
    if (frames->batch < 1 || frames->batch > config.max_batch)
        return fail(DIFFSEG_BAD_BATCH, "batch: expected 1 to %d, found %d", config.max_batch, frames->batch);
    for (int t = 0; t < config.iterations; ++t) {
        if (!std::isfinite(frames->thresholds[t]) || frames->thresholds[t] <= 0.0f)
            return fail(DIFFSEG_BAD_THRESHOLD, "thresholds[%d]: expected a finite number above 0, found %g", t,
                        static_cast<double>(frames->thresholds[t]));
    }
    if (frames->again != 0 && frames->again != 1)
        return fail(DIFFSEG_BAD_BATCH, "again: expected 0 or 1, found %d", frames->again);
    if (frames->again && frames->batch > last)
        return fail(DIFFSEG_BAD_BATCH, "again: expected at most the %d frames of the last call, found a batch of %d", last,
                    frames->batch);
    if (frames->attention_blocks || frames->proposal_blocks) {
        for (int axis = 0; axis < 2; ++axis) {
            const int side = config.grids[0][axis], count = frames->blocks[axis];
            if (count < 1 || count > side || side % count)
                return fail(DIFFSEG_BAD_SIZE, "blocks[%d]: expected a divisor of %d, found %d", axis, side, count);
        }
    }
    double ratios[DIFFSEG_MAX_LEVELS];
    level_ratios(config, ratios);
    for (int r = 0; r < config.levels && !frames->again; ++r) {
        if (!frames->maps[r] && ratios[r] > 0.0) return fail(DIFFSEG_NULL_POINTER, "maps[%d] is NULL", r);
    }
    if (!frames->labels) return fail(DIFFSEG_NULL_POINTER, "labels is NULL");
    if (frames->height < 1 || frames->width < 1 || frames->height > DIFFSEG_MAX_SIDE || frames->width > DIFFSEG_MAX_SIDE)
        return fail(DIFFSEG_BAD_SIZE, "labels: expected sides of 1 to %d, found %dx%d", DIFFSEG_MAX_SIDE,
                    frames->height, frames->width);
    if (frames->label_type != DIFFSEG_UINT8 && frames->label_type != DIFFSEG_UINT16)
        return fail(DIFFSEG_BAD_TYPE, "label_type: expected 0 or 1, found %d", frames->label_type);
    if (frames->label_type == DIFFSEG_UINT8 && config.anchors > 16)
        return fail(DIFFSEG_BAD_TYPE, "label_type: %d anchors per axis may give more than 256 labels; use uint16",
                    config.anchors);
    return DIFFSEG_OK;
}

inline diffseg_status check_parts(const diffseg_config &config, int32_t batch, const int32_t *part, int32_t parts,
                                  const float *means, int32_t last) {
    if (!part || !means) return fail(DIFFSEG_NULL_POINTER, "part or means is NULL");
    if (last < 1) return fail(DIFFSEG_BAD_BATCH, "part means: expected diffseg_run to be called before, found no frames");
    if (batch < 1 || batch > last)
        return fail(DIFFSEG_BAD_BATCH, "batch: expected 1 to %d, the frames of the last call, found %d", last, batch);
    const int most = config.anchors * config.anchors;
    if (parts < 1 || parts > most) return fail(DIFFSEG_BAD_PARTS, "parts: expected 1 to %d, found %d", most, parts);
    return DIFFSEG_OK;
}

// Sizes that follow from a configuration and the number of the device's multiprocessors, and the place of every buffer in
// the workspace, which does not depend on the device.
struct Plan {
    int n, pitch, proposals, words, coarse_rows;
    int first_splits, later_splits, mean_splits;  // parts of the sums, so that small products also fill a GPU
    size_t attention, scales, cross, left_entropy, right_entropy, bits, means[2], members, kept, counts, flags, bad, shares;
    size_t bytes;

    explicit Plan(const diffseg_config &config, int multiprocessors = 1) {
        const size_t batch = static_cast<size_t>(config.max_batch);
        n = config.grids[0][0] * config.grids[0][1];
        pitch = divide_up(n, TILE_N) * TILE_N;
        proposals = config.anchors * config.anchors;
        words = pitch / 32;
        coarse_rows = 0;
        size_t axes = 0;
        for (int r = 1; r < config.levels; ++r) {
            coarse_rows += config.grids[r][0] * config.grids[r][1];
            axes += static_cast<size_t>(config.grids[r][0]) + config.grids[r][1];
        }
        // The first iteration's products and all means are as wide as a map. The later products are small, and need many
        // parts; each may have as many as `most` says.
        const int wide_tiles = cross_rows() / TILE_M * (pitch / TILE_N), later_tiles = cross_rows() / TILE_M * later_pitch() / TILE_N;
        const int most_wide = most_splits(pitch / TILE_K, 5), most_later = most_splits(pitch / TILE_K, 16);
        first_splits = splits(wide_tiles, pitch / TILE_K, most_wide, multiprocessors);
        later_splits = splits(later_tiles, pitch / TILE_K, most_later, multiprocessors);
        mean_splits = splits(wide_tiles, divide_up(proposals, TILE_K), most_wide, multiprocessors);
        const size_t first = static_cast<size_t>(most_wide) * cross_rows() * pitch;
        const size_t later = static_cast<size_t>(most_later) * cross_rows() * later_pitch();
        const size_t p = static_cast<size_t>(proposals), wide = static_cast<size_t>(pitch);
        const size_t most = static_cast<size_t>(most_later);
        bytes = 0;
        attention = take(batch * n * wide * 4);
        scales = take(batch * coarse_rows * 4);
        cross = take(batch * (first > later ? first : later) * 4);  // also the parts of the means
        left_entropy = take(batch * most * p * 4);
        right_entropy = take(batch * most * n * 4);
        bits = take(batch * p * words * 4);
        means[0] = take(batch * p * wide * 4);
        means[1] = take(batch * p * wide * 4);
        members = take(batch * most * p * 4);
        kept = take(batch * p * 4);
        counts = take(batch * (DIFFSEG_MAX_ITERATIONS + 1) * 4);
        flags = take(batch * 4);
        bad = take(batch * 4);
        shares = take(axes * 4);
    }

    int cross_rows() const { return divide_up(proposals, TILE_M) * TILE_M; }
    int later_pitch() const { return divide_up(proposals, TILE_N) * TILE_N; }

  private:
    // A part has at least 16 slices.
    static int most_splits(int slices, int most) {
        const int possible = slices / 16;
        return possible < 1 ? 1 : possible < most ? possible : most;
    }
    // The number of parts with which a product takes least time. Two blocks run on a multiprocessor at a time, and the
    // start and the end of a block take about as long as 4 slices. The batch has no part in this, so that a frame's sums
    // have the same order in every batch.
    static int splits(int tiles, int slices, int most, int multiprocessors) {
        int best = 1;
        int64_t least = INT64_MAX;
        for (int parts = 1; parts <= most_splits(slices, most); ++parts) {
            const int64_t rounds = (static_cast<int64_t>(tiles) * parts + 2 * multiprocessors - 1) / (2 * multiprocessors);
            const int64_t time = rounds * (divide_up(slices, parts) + 4);
            if (time < least) {
                least = time;
                best = parts;
            }
        }
        return best;
    }
    size_t take(size_t size) {
        const size_t start = bytes;
        bytes = (bytes + size + 255) / 256 * 256;
        return start;
    }
};

}  // namespace diffseg
