// Step 3: one label per pixel (paper, section 3.4, "Non-Maximum Suppression").
#pragma once

#include "platform.cuh"

namespace diffseg {

// The proposal whose interpolated value is largest at a pixel of the labels; the first on a tie. One thread per pixel.
// A frame whose maps are not probabilities gets labels of 0 and no segments.
template <class Label>
__global__ void __launch_bounds__(THREADS)
    suppress(const float *proposals, int rows, int pitch, int h, int w, const int32_t *counts, const unsigned *flags,
             unsigned *bad_frames, int height, int width, Label *labels, int32_t *segments) {
    const int frame = static_cast<int>(blockIdx.z);
    const size_t pixel = static_cast<size_t>(blockIdx.x) * THREADS + threadIdx.x;
    const bool good = flags[frame] == 0;
    if (pixel == 0) {
        if (segments) segments[frame] = good ? counts[frame] : 0;
        if (!good) bad_frames[frame] |= BAD_MAPS;
    }
    const size_t pixels = static_cast<size_t>(height) * width;
    if (pixel >= pixels) return;
    int best = 0;
    if (good) {
        const Tap down(static_cast<int>(pixel / width), h, height), across(static_cast<int>(pixel % width), w, width);
        const float *map = proposals + static_cast<size_t>(frame) * rows * pitch;
        const int a = down.first * w + across.first, b = down.first * w + across.second;
        const int c = down.second * w + across.first, d = down.second * w + across.second;
        const int count = counts[frame];
        float largest = -1.0f;
        for (int index = 0; index < count; ++index, map += pitch) {
            const float upper = map[a] * (1.0f - across.share) + map[b] * across.share;
            const float lower = map[c] * (1.0f - across.share) + map[d] * across.share;
            const float value = upper * (1.0f - down.share) + lower * down.share;
            if (value > largest) {
                largest = value;
                best = index;
            }
        }
    }
    labels[static_cast<size_t>(frame) * pixels + pixel] = static_cast<Label>(best);
}

}  // namespace diffseg
