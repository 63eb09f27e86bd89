// What a caller may ask for in addition to labels: rows of the aggregated attention or of proposals, whole or summed in blocks.
#pragma once

#include "platform.cuh"

namespace diffseg {

// Rows that a kernel reads, [frame, `room`, pitch], which sum to n. Of these are given `rows`; those past the count, and
// all of an invalid frame, become 0.
struct Rows {
    const float *from;
    int room, rows, n, pitch;
    const int32_t *counts;  // number of rows in every frame; NULL: all
    const unsigned *flags;  // not 0: the frame is invalid

    __device__ int present(int frame) const { return flags[frame] ? 0 : counts ? counts[frame] : rows; }
    __device__ const float *row(int frame, int index) const {
        return from + (static_cast<size_t>(frame) * room + index) * pitch;
    }
};

// Copies rows into [frame, rows, n], where they sum to 1. One thread per pixel of a row.
__global__ void __launch_bounds__(THREADS) copy_rows(Rows source, float *to) {
    const int pixel = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (pixel >= source.n) return;
    const int frame = static_cast<int>(blockIdx.z), present = source.present(frame);
    for (int row = static_cast<int>(blockIdx.y); row < source.rows; row += static_cast<int>(gridDim.y)) {
        const size_t target = static_cast<size_t>(frame) * source.rows + row;
        to[target * source.n + pixel] =
            row < present ? source.row(frame, row)[pixel] / static_cast<float>(source.n) : 0.0f;
    }
}

// Sums rows in down × across equal blocks of pixels, into [frame, rows, down·across], where they sum to 1. One thread per
// block of pixels, which it adds in their order. width: of the finest level; tall, wide: pixels of a block per axis.
__global__ void __launch_bounds__(THREADS) sum_blocks(Rows source, int width, int tall, int wide, float *to) {
    const int across = width / wide, blocks = source.n / (tall * wide);
    const int block = static_cast<int>(blockIdx.x) * THREADS + static_cast<int>(threadIdx.x);
    if (block >= blocks) return;
    const int frame = static_cast<int>(blockIdx.z), present = source.present(frame);
    const int first = block / across * tall * width + block % across * wide;
    for (int row = static_cast<int>(blockIdx.y); row < source.rows; row += static_cast<int>(gridDim.y)) {
        float sum = 0.0f;
        if (row < present) {
            const float *pixels = source.row(frame, row) + first;
            for (int y = 0; y < tall; ++y)
                for (int x = 0; x < wide; ++x) sum += pixels[y * width + x];
        }
        const size_t target = static_cast<size_t>(frame) * source.rows + row;
        to[target * blocks + block] = sum / static_cast<float>(source.n);
    }
}

}  // namespace diffseg
