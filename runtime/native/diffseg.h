/*
 * DiffSeg's merge core: from a pyramid of attention maps on the device to labels on the device.
 *
 * Plain C99. No type of CUDA or of an inference library appears here; a stream is a `void *` (a `cudaStream_t`, or
 * NULL for the default stream). README.md beside this file is the embedding page: ownership, streams, threads, errors
 * and versions.
 */
#ifndef DIFFSEG_H
#define DIFFSEG_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(DIFFSEG_SHARED)
#ifdef DIFFSEG_BUILDING
#define DIFFSEG_API __declspec(dllexport)
#else
#define DIFFSEG_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define DIFFSEG_API __attribute__((visibility("default")))
#else
#define DIFFSEG_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a struct or a signature below changes; a caller built for another one is refused. */
#define DIFFSEG_ABI_VERSION 3

#define DIFFSEG_MAX_LEVELS 8
#define DIFFSEG_MAX_ITERATIONS 16
#define DIFFSEG_MAX_ANCHORS 128  /* per axis */
#define DIFFSEG_MAX_BATCH 1024
#define DIFFSEG_MAX_MAP 65536    /* h * w of a level */
#define DIFFSEG_MAX_SIDE 32768   /* of the labels */
#define DIFFSEG_STAGES 5         /* aggregate, divergence, mean, later iterations, labels */

typedef int32_t diffseg_status;
enum {
    DIFFSEG_OK = 0,
    DIFFSEG_NULL_POINTER = 1,
    DIFFSEG_ABI_MISMATCH = 2,
    DIFFSEG_BAD_GRID = 3,
    DIFFSEG_BAD_ANCHORS = 4,
    DIFFSEG_BAD_THRESHOLD = 5,
    DIFFSEG_BAD_WEIGHT = 6,
    DIFFSEG_BAD_TYPE = 7,
    DIFFSEG_BAD_BATCH = 8,
    DIFFSEG_BAD_SIZE = 9,
    DIFFSEG_BAD_WORKSPACE = 10,
    DIFFSEG_NO_DEVICE = 11,
    DIFFSEG_OUT_OF_MEMORY = 12,
    DIFFSEG_DEVICE_ERROR = 13,
    DIFFSEG_BAD_MAPS = 14,
    DIFFSEG_BAD_PARTS = 15
};

enum { DIFFSEG_FLOAT32 = 0, DIFFSEG_FLOAT16 = 1, DIFFSEG_BFLOAT16 = 2 };
enum { DIFFSEG_UINT8 = 0, DIFFSEG_UINT16 = 1 };

/* Settings that stay the same from frame to frame. Set the first two fields as their comments say. */
typedef struct diffseg_config {
    uint32_t struct_size;                       /* sizeof(diffseg_config) */
    uint32_t abi_version;                       /* DIFFSEG_ABI_VERSION */
    int32_t device;                             /* ordinal of the device */
    int32_t max_batch;                          /* frames per call at most */
    int32_t levels;                             /* resolutions of the pyramid, 1 to DIFFSEG_MAX_LEVELS */
    int32_t grids[DIFFSEG_MAX_LEVELS][2];       /* (h, w) of every level, finest first */
    int32_t input_type;                         /* DIFFSEG_FLOAT32, DIFFSEG_FLOAT16 or DIFFSEG_BFLOAT16 */
    int32_t anchors;                            /* per axis: 2 to the shorter side of the finest level */
    int32_t iterations;                         /* 1 to DIFFSEG_MAX_ITERATIONS */
    float weights[DIFFSEG_MAX_LEVELS];          /* of the levels; all 0: proportional to their sides */
} diffseg_config;

/* One call: a batch of frames. All pointers are device pointers and belong to the caller. */
typedef struct diffseg_frames {
    uint32_t struct_size;                       /* sizeof(diffseg_frames) */
    uint32_t abi_version;                       /* DIFFSEG_ABI_VERSION */
    int32_t batch;                              /* 1 to max_batch */
    int32_t label_type;                         /* DIFFSEG_UINT8 (up to 16 anchors per axis) or DIFFSEG_UINT16 */
    int32_t height, width;                      /* of the labels; any size */
    int32_t again;                              /* 1: of the last call's aggregated attention; maps are not read */
    int32_t blocks[2];                          /* blocks of pixels down and across, for the sums below; or 0 */
    float thresholds[DIFFSEG_MAX_ITERATIONS];   /* KL threshold of every iteration, above 0 */
    const void *maps[DIFFSEG_MAX_LEVELS];       /* [batch, h*w, h*w] each, contiguous; NULL where the weight is 0 */
    void *labels;                               /* [batch, height, width]: index of the proposal of every pixel */
    int32_t *segments;                          /* [batch]: number of proposals; or NULL */
    float *proposals;                           /* [batch, anchors^2, h*w], rows past the count are 0; or NULL */
    float *attention;                           /* aggregated attention [batch, h*w, h*w]; or NULL */
    float *attention_blocks;                    /* its rows' sums in blocks [batch, h*w, blocks]; or NULL */
    float *proposal_blocks;                     /* the proposals' sums in blocks [batch, anchors^2, blocks]; or NULL */
} diffseg_frames;

typedef struct diffseg_handle diffseg_handle;

/* The text of a status. Never NULL, for any number. */
DIFFSEG_API const char *diffseg_status_text(diffseg_status status);

/* What the last failing call on this thread found, for a log. Never NULL; valid until the next call on this thread. */
DIFFSEG_API const char *diffseg_last_error(void);

/* DIFFSEG_ABI_VERSION of the library, and "cuda" or "cpu": what it runs on. */
DIFFSEG_API uint32_t diffseg_abi_version(void);
DIFFSEG_API const char *diffseg_backend(void);

/* What the build was told about itself: a hash of the sources and the architectures, or "". */
DIFFSEG_API const char *diffseg_built(void);

/* Bytes of device memory that a handle of this configuration needs. Touches no device. */
DIFFSEG_API diffseg_status diffseg_workspace_size(const diffseg_config *config, size_t *bytes);

/*
 * Make a handle. workspace: device memory of at least diffseg_workspace_size bytes, aligned to 256, that is the
 * only this handle uses until it is destroyed; NULL: the handle allocates its own. May synchronise.
 */
DIFFSEG_API diffseg_status diffseg_create(const diffseg_config *config, void *workspace, size_t bytes,
                                          diffseg_handle **handle);

/*
 * Queue the segmentation of a batch on a stream. Neither allocates nor synchronises, and queues the same launches
 * every time, so that it may be captured into a CUDA graph. Arguments are checked before anything is queued.
 * A frame whose maps are not probabilities (NaN, infinite, negative, all 0) gets labels of 0 and no segments;
 * diffseg_check reports it.
 */
DIFFSEG_API diffseg_status diffseg_run(diffseg_handle *handle, const diffseg_frames *frames, void *stream);

/*
 * Queue the mean attention of parts of the pixels, for the frames of the last diffseg_run of this handle, on the same
 * stream. part [batch, h*w] is the number of the part of every query, 0 to parts - 1; means [batch, parts, h*w] are the
 * plain means of the parts' rows of the aggregated attention, 0 for a part without queries. parts: 1 to anchors^2.
 * Neither allocates nor synchronises. A query with another number is in no part; diffseg_check reports it.
 */
DIFFSEG_API diffseg_status diffseg_part_means(diffseg_handle *handle, int32_t batch, const int32_t *part, int32_t parts,
                                              float *means, void *stream);

/*
 * Wait for the stream. DIFFSEG_BAD_MAPS if a frame since the last check had maps that are not probabilities,
 * DIFFSEG_BAD_PARTS if it had queries in no part; then *frame (unless NULL) is its index in the batch.
 */
DIFFSEG_API diffseg_status diffseg_check(diffseg_handle *handle, void *stream, int32_t *frame);

/* As diffseg_run, but waits, and writes the milliseconds of every stage. For measurements; cannot be captured. */
DIFFSEG_API diffseg_status diffseg_profile(diffseg_handle *handle, const diffseg_frames *frames, void *stream,
                                           float milliseconds[DIFFSEG_STAGES]);

/* Free a handle, and its workspace if the handle allocated it. Waits for the device. NULL does nothing. */
DIFFSEG_API void diffseg_destroy(diffseg_handle *handle);

/* Device memory for hosts without a CUDA runtime of their own (Python). Copies wait for the stream. */
DIFFSEG_API diffseg_status diffseg_device_count(int32_t *count);
DIFFSEG_API diffseg_status diffseg_device_name(int32_t device, char *name, size_t bytes, int32_t *capability);
DIFFSEG_API diffseg_status diffseg_allocate(int32_t device, size_t bytes, void **memory);
DIFFSEG_API void diffseg_free(int32_t device, void *memory);
DIFFSEG_API diffseg_status diffseg_upload(int32_t device, void *to, const void *from, size_t bytes, void *stream);
DIFFSEG_API diffseg_status diffseg_download(int32_t device, void *to, const void *from, size_t bytes, void *stream);

#ifdef __cplusplus
}
#endif
#endif
