/*
 * The C interface from C99: a tiny pyramid, segmented. Built with the kernels' threads as real threads, and
 * ThreadSanitizer around them, it finds every race; the first argument is the number of a barrier to leave out.
 */
#include <stdio.h>
#include <stdlib.h>

#include "diffseg.h"

extern int diffseg_cpu_dropped_barrier;

int main(int count, char **arguments)
{
    static float finest[64 * 64], coarse[16 * 16];
    static uint8_t labels[12 * 10];
    static int32_t part[64];
    static float means[2 * 64];
    int32_t segments = -1;
    diffseg_config config = {0};
    diffseg_frames frames = {0};
    diffseg_handle *handle = NULL;
    diffseg_status status;
    int i, j, others = 0;

    if (count > 1) diffseg_cpu_dropped_barrier = atoi(arguments[1]);
    /* Queries of the left half look left, those of the right half look right. */
    for (i = 0; i < 64; ++i)
        for (j = 0; j < 64; ++j) finest[64 * i + j] = i % 8 / 4 == j % 8 / 4 ? 1.0f : 0.01f;
    for (i = 0; i < 16; ++i)
        for (j = 0; j < 16; ++j) coarse[16 * i + j] = i % 4 / 2 == j % 4 / 2 ? 1.0f : 0.01f;

    config.struct_size = sizeof config;
    config.abi_version = DIFFSEG_ABI_VERSION;
    config.max_batch = 1;
    config.levels = 2;
    config.grids[0][0] = config.grids[0][1] = 8;
    config.grids[1][0] = config.grids[1][1] = 4;
    config.anchors = 4;
    config.iterations = 2;
    frames.struct_size = sizeof frames;
    frames.abi_version = DIFFSEG_ABI_VERSION;
    frames.batch = 1;
    frames.label_type = DIFFSEG_UINT8;
    frames.height = 10;
    frames.width = 12;
    frames.thresholds[0] = frames.thresholds[1] = 0.5f;
    frames.maps[0] = finest;
    frames.maps[1] = coarse;
    frames.labels = labels;
    frames.segments = &segments;

    status = diffseg_create(&config, NULL, 0, &handle);
    if (status == DIFFSEG_OK) status = diffseg_run(handle, &frames, NULL);
    /* The mean attention of the left half and of the right half. */
    for (i = 0; i < 64; ++i) part[i] = i % 8 / 4;
    if (status == DIFFSEG_OK) status = diffseg_part_means(handle, 1, part, 2, means, NULL);
    if (status == DIFFSEG_OK) status = diffseg_check(handle, NULL, NULL);
    diffseg_destroy(handle);
    for (i = 0; i < 10; ++i)
        for (j = 0; j < 12; ++j) others += labels[12 * i + j] != (j >= 6);
    for (i = 0; i < 64; ++i) others += (means[i] > means[64 + i]) != (part[i] == 0);
    printf("%s, %d segments, %d wrong\n", diffseg_status_text(status), (int)segments, others);
    return status != DIFFSEG_OK || segments != 2 || others != 0;
}
