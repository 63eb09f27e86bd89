// The sequence of launches that makes labels.
//
// It is the same for every frame but for the thresholds: the number of proposals stays on the device, where the kernels read it. So a call
// does not wait for the device, does not allocate, and can be captured into a CUDA graph.
#pragma once

#include "device.h"
#include "outputs.cuh"
#include "suppress.cuh"

struct diffseg_handle {
    diffseg_config config;
    diffseg::Plan plan;
    diffseg::Pyramid pyramid;          // without the maps' addresses
    int level[diffseg::MAX_LEVELS];    // index in the configuration of each level of the pyramid
    diffseg::Anchors anchors;
    char *workspace;
    bool owns_workspace;
    int32_t last_frames;               // of the last call, whose aggregated attention the workspace has; 0 before it

    template <class T>
    T *at(size_t offset) const {
        return reinterpret_cast<T *>(workspace + offset);
    }
};

namespace diffseg {

template <class Type>
inline void launch_aggregate(const diffseg_handle &handle, const diffseg_frames &frames, Stream stream) {
    const Plan &plan = handle.plan;
    Pyramid pyramid = handle.pyramid;
    for (int index = 0; index < pyramid.levels; ++index) pyramid.level[index].maps = frames.maps[handle.level[index]];
    const unsigned batch = static_cast<unsigned>(frames.batch);
    float *scales = handle.at<float>(plan.scales), *attention = handle.at<float>(plan.attention);
    unsigned *flags = handle.at<unsigned>(plan.flags);
    if (pyramid.coarse_rows) {
        const dim3 rows(static_cast<unsigned>(pyramid.coarse_rows), 1, batch);
        DIFFSEG_LAUNCH(coarse_scales<Type>, rows, THREADS, stream, pyramid, scales, flags);
    }
    const dim3 blocks(static_cast<unsigned>(divide_up(pyramid.w, QUERIES)), static_cast<unsigned>(pyramid.h), batch);
    // 16 bytes at a time where a row of the map is made of whole ones.
    constexpr int group = 16 / sizeof(typename Type::Stored);
    const bool wide = pyramid.w % group == 0 && reinterpret_cast<uintptr_t>(pyramid.level[0].maps) % 16 == 0;
    const auto kernel = wide ? aggregate<Type, group> : aggregate<Type, 1>;
    DIFFSEG_LAUNCH(kernel, blocks, THREADS, stream, pyramid, scales, attention, flags);
}

// Gives the caller rows of each frame: whole, and as sums of blocks of pixels. Both may be NULL.
inline void launch_rows(const diffseg_handle &handle, int batch, const float *from, int room, int rows,
                        const int32_t *counts, float *whole, float *sums, const int32_t *blocks, Stream stream) {
    const Plan &plan = handle.plan;
    const Rows source{from, room, rows, plan.n, plan.pitch, counts, handle.at<unsigned>(plan.flags)};
    const auto grid = [&](int columns) {
        return dim3(static_cast<unsigned>(divide_up(columns, THREADS)), static_cast<unsigned>(rows < 32768 ? rows : 32768),
                    static_cast<unsigned>(batch));
    };
    if (whole) DIFFSEG_LAUNCH(copy_rows, grid(plan.n), THREADS, stream, source, whole);
    if (!sums) return;
    const int tall = handle.pyramid.h / blocks[0], wide = handle.pyramid.w / blocks[1];
    DIFFSEG_LAUNCH(sum_blocks, grid(blocks[0] * blocks[1]), THREADS, stream, source, handle.pyramid.w, tall, wide, sums);
}

inline void launch_divergence(const diffseg_handle &handle, int batch, const Products &products, float threshold,
                       Stream stream) {
    const Plan &plan = handle.plan;
    const dim3 tiles(static_cast<unsigned>(divide_up(products.right_rows, TILE_N)),
                     static_cast<unsigned>(divide_up(products.left_rows, TILE_M)),
                     static_cast<unsigned>(batch * products.splits));
    DIFFSEG_LAUNCH(divergence, tiles, THREADS, stream, products);
    const dim3 pairs(static_cast<unsigned>(divide_up(products.cross_pitch, THREADS)),
                     static_cast<unsigned>(products.left_rows), static_cast<unsigned>(batch));
    const float limit = static_cast<float>(2.0 * plan.n * static_cast<double>(threshold) / std::log(2.0));
    unsigned *bits = handle.at<unsigned>(plan.bits);
    DIFFSEG_LAUNCH(decide, pairs, THREADS, stream, products, limit, bits, plan.proposals, plan.words);
}

inline void launch_means(const diffseg_handle &handle, int batch, const Means &means, Stream stream) {
    const dim3 tiles(static_cast<unsigned>(handle.plan.pitch / TILE_N),
                     static_cast<unsigned>(divide_up(means.kept_rows, TILE_M)),
                     static_cast<unsigned>(batch * means.splits));
    DIFFSEG_LAUNCH(member_sums, tiles, THREADS, stream, means);
    const dim3 rows(static_cast<unsigned>(divide_up(means.pitch / 4, THREADS)), static_cast<unsigned>(means.kept_rows),
                    static_cast<unsigned>(batch));
    DIFFSEG_LAUNCH(member_means, rows, THREADS, stream, means);
}

template <class Label>
inline void launch_suppress(const diffseg_handle &handle, const diffseg_frames &frames, const float *proposals,
                     const int32_t *counts, Stream stream) {
    const Plan &plan = handle.plan;
    const size_t pixels = static_cast<size_t>(frames.height) * static_cast<size_t>(frames.width);
    const dim3 blocks(static_cast<unsigned>((pixels + THREADS - 1) / THREADS), 1, static_cast<unsigned>(frames.batch));
    DIFFSEG_LAUNCH(suppress<Label>, blocks, THREADS, stream, proposals, plan.proposals, plan.pitch, handle.pyramid.h,
                   handle.pyramid.w, counts, handle.at<unsigned>(plan.flags), handle.at<unsigned>(plan.bad),
                   frames.height, frames.width, static_cast<Label *>(frames.labels), frames.segments);
}

template <class Type>
inline diffseg_status load_aggregate() {
    diffseg_status status = loadable(coarse_scales<Type>);
    if (status == DIFFSEG_OK) status = loadable(aggregate<Type, 16 / sizeof(typename Type::Stored)>);
    return status == DIFFSEG_OK ? loadable(aggregate<Type, 1>) : status;
}

// Loads every kernel of a configuration. Without this CUDA loads each at its first launch, which may be in a capture.
inline diffseg_status load_kernels(const diffseg_config &config) {
    diffseg_status status = DIFFSEG_OK;
    const auto then = [&](auto load) {
        if (status == DIFFSEG_OK) status = load();
    };
    then(config.input_type == DIFFSEG_FLOAT32   ? load_aggregate<Float32>
         : config.input_type == DIFFSEG_FLOAT16 ? load_aggregate<Float16>
                                                : load_aggregate<BFloat16>);
    then([] { return loadable(copy_rows); });
    then([] { return loadable(sum_blocks); });
    then([] { return loadable(divergence); });
    then([] { return loadable(decide); });
    then([] { return loadable(all_present); });
    then([] { return loadable(claim); });
    then([] { return loadable(part_members); });
    then([] { return loadable(member_sums); });
    then([] { return loadable(member_means); });
    then([] { return loadable(suppress<uint8_t>); });
    then([] { return loadable(suppress<uint16_t>); });
    return status;
}

// The means of some rows of the aggregated attention, by the bits in the workspace.
inline Means attention_means(const diffseg_handle &handle) {
    const Plan &plan = handle.plan;
    Means means{};
    means.maps = handle.at<float>(plan.attention);
    means.stride = static_cast<size_t>(plan.n) * plan.pitch;
    means.bits = handle.at<unsigned>(plan.bits);
    means.bit_rows = plan.proposals;
    means.words = plan.words;
    means.kept_rows = plan.proposals;
    means.map_rows = plan.n;
    means.pitch = plan.pitch;
    means.splits = plan.first_splits;
    means.sums = handle.at<float>(plan.cross);
    means.sum_rows = plan.cross_rows();
    means.members = handle.at<int32_t>(plan.members);
    means.means = handle.at<float>(plan.means[0]);
    return means;
}

// The means of parts of the queries that the caller chose: the kernels of the first iteration, with other bits.
inline diffseg_status part_means(const diffseg_handle &handle, int batch, const int32_t *part, int parts, float *to,
                                 Stream stream) {
    const Plan &plan = handle.plan;
    const dim3 blocks(static_cast<unsigned>(divide_up(plan.words, THREADS)), static_cast<unsigned>(parts),
                      static_cast<unsigned>(batch));
    Means means = attention_means(handle);
    DIFFSEG_LAUNCH(part_members, blocks, THREADS, stream, part, plan.n, parts, handle.at<unsigned>(plan.bits),
                   means.bit_rows, means.words, handle.at<unsigned>(plan.bad));
    means.kept_rows = parts;
    launch_means(handle, batch, means, stream);
    launch_rows(handle, batch, means.means, means.bit_rows, parts, nullptr, to, nullptr, nullptr, stream);
    return launched();
}

// All launches from maps to labels. timer: marks the stages; may be NULL.
inline diffseg_status run(diffseg_handle &handle, const diffseg_frames &frames, Stream stream, Timer *timer) {
    const Plan &plan = handle.plan;
    const diffseg_config &config = handle.config;
    const int batch = frames.batch, anchors = plan.proposals;
    const auto mark = [&] {
        if (timer) timer->mark(stream);
    };
    float *attention = handle.at<float>(plan.attention);
    int32_t *kept = handle.at<int32_t>(plan.kept), *counts = handle.at<int32_t>(plan.counts);
    const size_t map_stride = static_cast<size_t>(plan.n) * plan.pitch;
    const size_t mean_stride = static_cast<size_t>(anchors) * plan.pitch;

    mark();
    if (!frames.again) {
        handle.last_frames = 0;
        const diffseg_status cleared = clear(handle.at<char>(plan.flags), static_cast<size_t>(batch) * 4, stream);
        if (cleared != DIFFSEG_OK) return cleared;
        if (config.input_type == DIFFSEG_FLOAT32) launch_aggregate<Float32>(handle, frames, stream);
        if (config.input_type == DIFFSEG_FLOAT16) launch_aggregate<Float16>(handle, frames, stream);
        if (config.input_type == DIFFSEG_BFLOAT16) launch_aggregate<BFloat16>(handle, frames, stream);
        handle.last_frames = batch;
    }
    launch_rows(handle, batch, attention, plan.n, plan.n, nullptr, frames.attention, frames.attention_blocks,
                frames.blocks, stream);
    mark();

    // Iteration 0: all anchors against all maps; every anchor is kept.
    Products products{};
    products.left = products.right = attention;
    products.left_stride = products.right_stride = map_stride;
    products.anchors = handle.anchors;
    products.left_rows = anchors;
    products.right_rows = plan.n;
    products.pitch = plan.pitch;
    products.splits = plan.first_splits;
    products.smallest = static_cast<float>(plan.n * 1e-12);
    products.cross = handle.at<float>(plan.cross);
    products.cross_rows = plan.cross_rows();
    products.cross_pitch = plan.pitch;
    products.left_entropy = handle.at<float>(plan.left_entropy);
    products.right_entropy = handle.at<float>(plan.right_entropy);
    launch_divergence(handle, batch, products, frames.thresholds[0], stream);
    mark();

    Means means = attention_means(handle);
    launch_means(handle, batch, means, stream);
    DIFFSEG_LAUNCH(all_present, dim3(static_cast<unsigned>(divide_up(batch, THREADS))), THREADS, stream, counts, batch,
                   anchors);
    mark();

    // Later iterations: the same kernels, proposals against proposals.
    for (int iteration = 1; iteration < config.iterations; ++iteration) {
        const float *proposals = means.means;
        products.left = products.right = proposals;
        products.left_stride = products.right_stride = mean_stride;
        products.anchors.per_axis = 0;
        products.counts = counts;
        products.right_rows = anchors;
        products.splits = plan.later_splits;
        products.cross_pitch = plan.later_pitch();
        launch_divergence(handle, batch, products, frames.thresholds[iteration], stream);
        DIFFSEG_LAUNCH(claim, dim3(static_cast<unsigned>(batch)), THREADS, stream, means.bits, anchors, plan.words,
                       counts, kept, counts + batch);
        means.maps = proposals;
        means.stride = mean_stride;
        means.kept = kept;
        means.kept_counts = counts + batch;
        means.counts = counts;
        means.splits = plan.mean_splits;
        means.means = handle.at<float>(plan.means[iteration % 2]);
        launch_means(handle, batch, means, stream);
        counts += batch;
    }
    launch_rows(handle, batch, means.means, anchors, anchors, counts, frames.proposals, frames.proposal_blocks,
                frames.blocks, stream);
    mark();

    if (frames.label_type == DIFFSEG_UINT8) launch_suppress<uint8_t>(handle, frames, means.means, counts, stream);
    else launch_suppress<uint16_t>(handle, frames, means.means, counts, stream);
    mark();
    return launched();
}

}  // namespace diffseg
