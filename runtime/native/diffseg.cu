// The C interface of diffseg.h: checks arguments, then passes them to the launches of sequence.h.
#ifdef DIFFSEG_CPU
#undef _FORTIFY_SOURCE  // with it, longjmp aborts when fibers switch; some distributions' compilers set it
#endif
#include <new>

#include "sequence.h"

using namespace diffseg;

namespace {

// The weight of every pixel of a coarse axis in a sum over the fine axis.
void axis_shares(int source, int target, float *shares) {
    for (int i = 0; i < source; ++i) shares[i] = 0.0f;
    for (int position = 0; position < target; ++position) {
        const double place = (position + 0.5) * source / target - 0.5, below = std::floor(place);
        const int first = static_cast<int>(below);
        shares[first < 0 ? 0 : first] += static_cast<float>(1.0 - (place - below));
        shares[first + 1 < source ? first + 1 : source - 1] += static_cast<float>(place - below);
    }
}

Anchors make_anchors(const diffseg_config &config) {
    const int h = config.grids[0][0], w = config.grids[0][1], count = config.anchors;
    Anchors anchors{count, w, 0, (h - 1) / (count - 1), 0, (w - 1) / (count - 1)};
    anchors.start_y = (h - 1 - anchors.step_y * (count - 1)) / 2;
    anchors.start_x = (w - 1 - anchors.step_x * (count - 1)) / 2;
    return anchors;
}

// Fills in what stays the same in the pyramid from frame to frame, and the axes' shares in the workspace.
diffseg_status prepare_pyramid(diffseg_handle &handle) {
    const diffseg_config &config = handle.config;
    Pyramid &pyramid = handle.pyramid;
    double ratios[DIFFSEG_MAX_LEVELS];
    level_ratios(config, ratios);
    pyramid = Pyramid();
    pyramid.h = config.grids[0][0];
    pyramid.w = config.grids[0][1];
    pyramid.n = handle.plan.n;
    pyramid.pitch = handle.plan.pitch;
    float *shares = handle.at<float>(handle.plan.shares);
    for (int r = 0; r < config.levels; ++r) {
        if (r > 0 && ratios[r] == 0.0) continue;  // never read
        Level level{};
        level.h = config.grids[r][0];
        level.w = config.grids[r][1];
        level.down = static_cast<float>(level.h) / static_cast<float>(pyramid.h);
        level.across = static_cast<float>(level.w) / static_cast<float>(pyramid.w);
        level.total = static_cast<float>(ratios[r] * handle.plan.n);
        if (r > 0) {
            level.first_row = pyramid.coarse_rows;
            pyramid.coarse_rows += level.h * level.w;
            const int sides[2] = {level.h, level.w}, targets[2] = {pyramid.h, pyramid.w};
            const float **tables[2] = {&level.row_share, &level.column_share};
            for (int axis = 0; axis < 2; ++axis) {
                float *host = new (std::nothrow) float[static_cast<size_t>(sides[axis])];
                if (!host) return fail(DIFFSEG_OUT_OF_MEMORY, "no memory on the host");
                axis_shares(sides[axis], targets[axis], host);
                const diffseg_status status =
                    copy(shares, host, static_cast<size_t>(sides[axis]) * sizeof(float), true, nullptr);
                delete[] host;
                if (status != DIFFSEG_OK) return status;
                *tables[axis] = shares;
                shares += sides[axis];
            }
        }
        handle.level[pyramid.levels] = r;
        pyramid.level[pyramid.levels++] = level;
    }
    return DIFFSEG_OK;
}

}  // namespace

extern "C" {

const char *diffseg_status_text(diffseg_status status) {
    switch (status) {
        case DIFFSEG_OK: return "ok";
        case DIFFSEG_NULL_POINTER: return "a pointer that is needed is NULL";
        case DIFFSEG_ABI_MISMATCH: return "the caller was built for another version of diffseg.h; rebuild it";
        case DIFFSEG_BAD_GRID: return "levels and grids must be (h, w) of 1 to 8 levels, finest first, each once";
        case DIFFSEG_BAD_ANCHORS: return "anchors must be 2 to the shorter side of the finest level, at most 128";
        case DIFFSEG_BAD_THRESHOLD: return "thresholds must be 1 to 16 finite numbers above 0";
        case DIFFSEG_BAD_WEIGHT: return "weights must be finite and not negative";
        case DIFFSEG_BAD_TYPE: return "no such type of maps or labels, or one too small for the labels";
        case DIFFSEG_BAD_BATCH: return "the batch must be 1 to max_batch, at most 1024, or to the frames of the last call";
        case DIFFSEG_BAD_SIZE: return "the labels' sides must be 1 to 32768, and blocks must divide the finest level";
        case DIFFSEG_BAD_WORKSPACE: return "the workspace is smaller than diffseg_workspace_size or not aligned to 256";
        case DIFFSEG_NO_DEVICE: return "no such device, no driver for it, or no code for it in this library";
        case DIFFSEG_OUT_OF_MEMORY: return "out of memory";
        case DIFFSEG_DEVICE_ERROR: return "the device failed; see diffseg_last_error";
        case DIFFSEG_BAD_MAPS: return "maps have a NaN, an infinity, a negative value or a row of zeros";
        case DIFFSEG_BAD_PARTS: return "parts must be 1 to anchors^2, and each query's number below them";
        default: return "unknown status";
    }
}

const char *diffseg_last_error(void) { return error_text(); }
uint32_t diffseg_abi_version(void) { return DIFFSEG_ABI_VERSION; }
const char *diffseg_backend(void) {
#ifdef DIFFSEG_CPU
    return "cpu";
#else
    return "cuda";
#endif
}

#ifndef DIFFSEG_BUILT
#define DIFFSEG_BUILT
#endif
#define DIFFSEG_TEXT_OF(...) #__VA_ARGS__
#define DIFFSEG_TEXT(...) DIFFSEG_TEXT_OF(__VA_ARGS__)
const char *diffseg_built(void) { return DIFFSEG_TEXT(DIFFSEG_BUILT); }

diffseg_status diffseg_workspace_size(const diffseg_config *config, size_t *bytes) {
    const diffseg_status status = check_config(config);
    if (status != DIFFSEG_OK) return status;
    if (!bytes) return fail(DIFFSEG_NULL_POINTER, "bytes is NULL");
    *bytes = Plan(*config).bytes;
    return DIFFSEG_OK;
}

diffseg_status diffseg_create(const diffseg_config *config, void *workspace, size_t bytes, diffseg_handle **handle) {
    if (!handle) return fail(DIFFSEG_NULL_POINTER, "handle is NULL");
    *handle = nullptr;
    diffseg_status status = check_config(config);
    if (status != DIFFSEG_OK) return status;
    Plan plan(*config);
    if (workspace && (bytes < plan.bytes || reinterpret_cast<uintptr_t>(workspace) % 256))
        return fail(DIFFSEG_BAD_WORKSPACE, "workspace: expected %zu bytes aligned to 256, found %zu", plan.bytes, bytes);
    const OnDevice device(config->device);
    if (device.status() != DIFFSEG_OK) return device.status();
    int processors = 0;
    status = multiprocessors(config->device, &processors);
    if (status == DIFFSEG_OK) status = load_kernels(*config);
    if (status != DIFFSEG_OK) return status;
    plan = Plan(*config, processors);
    void *own = nullptr;
    if (!workspace) {
        status = allocate(plan.bytes, &own);
        if (status != DIFFSEG_OK) return status;
    }
    char *memory = static_cast<char *>(workspace ? workspace : own);
    diffseg_handle *made = new (std::nothrow)
        diffseg_handle{*config, plan, Pyramid(), {}, make_anchors(*config), memory, workspace == nullptr, 0};
    status = made ? prepare_pyramid(*made) : fail(DIFFSEG_OUT_OF_MEMORY, "no memory on the host");
    if (status == DIFFSEG_OK) status = clear(memory + plan.bad, static_cast<size_t>(config->max_batch) * 4, nullptr);
    if (status == DIFFSEG_OK) status = wait(nullptr);
    if (status != DIFFSEG_OK) {
        release(own);
        delete made;
        return status;
    }
    *handle = made;
    return DIFFSEG_OK;
}

diffseg_status diffseg_run(diffseg_handle *handle, const diffseg_frames *frames, void *stream) {
    if (!handle) return fail(DIFFSEG_NULL_POINTER, "handle is NULL");
    const diffseg_status status = check_frames(handle->config, frames, handle->last_frames);
    if (status != DIFFSEG_OK) return status;
    const OnDevice device(handle->config.device);
    if (device.status() != DIFFSEG_OK) return device.status();
    return run(*handle, *frames, static_cast<Stream>(stream), nullptr);
}

diffseg_status diffseg_part_means(diffseg_handle *handle, int32_t batch, const int32_t *part, int32_t parts, float *means,
                                  void *stream) {
    if (!handle) return fail(DIFFSEG_NULL_POINTER, "handle is NULL");
    const diffseg_status status = check_parts(handle->config, batch, part, parts, means, handle->last_frames);
    if (status != DIFFSEG_OK) return status;
    const OnDevice device(handle->config.device);
    if (device.status() != DIFFSEG_OK) return device.status();
    return part_means(*handle, batch, part, parts, means, static_cast<Stream>(stream));
}

diffseg_status diffseg_profile(diffseg_handle *handle, const diffseg_frames *frames, void *stream,
                               float milliseconds[DIFFSEG_STAGES]) {
    if (!handle) return fail(DIFFSEG_NULL_POINTER, "handle is NULL");
    if (!milliseconds) return fail(DIFFSEG_NULL_POINTER, "milliseconds is NULL");
    diffseg_status status = check_frames(handle->config, frames, handle->last_frames);
    if (status != DIFFSEG_OK) return status;
    const OnDevice device(handle->config.device);
    if (device.status() != DIFFSEG_OK) return device.status();
    Timer timer;
    if (timer.status() != DIFFSEG_OK) return timer.status();
    status = run(*handle, *frames, static_cast<Stream>(stream), &timer);
    return status == DIFFSEG_OK ? timer.read(milliseconds, static_cast<Stream>(stream)) : status;
}

diffseg_status diffseg_check(diffseg_handle *handle, void *stream, int32_t *frame) {
    if (!handle) return fail(DIFFSEG_NULL_POINTER, "handle is NULL");
    const OnDevice device(handle->config.device);
    if (device.status() != DIFFSEG_OK) return device.status();
    unsigned bad[DIFFSEG_MAX_BATCH];
    const size_t bytes = static_cast<size_t>(handle->config.max_batch) * 4;
    unsigned *at = handle->at<unsigned>(handle->plan.bad);
    diffseg_status status = copy(bad, at, bytes, false, static_cast<Stream>(stream));
    if (status == DIFFSEG_OK) status = clear(at, bytes, static_cast<Stream>(stream));
    if (status != DIFFSEG_OK) return status;
    for (int index = 0; index < handle->config.max_batch; ++index) {
        if (!bad[index]) continue;
        if (frame) *frame = index;
        if (!(bad[index] & BAD_MAPS))
            return fail(DIFFSEG_BAD_PARTS, "frame %d of the batch: part: expected numbers from 0 and below `parts`, found "
                        "others", index);
        return fail(DIFFSEG_BAD_MAPS, "frame %d of the batch: maps have a NaN, an infinity, a negative value or a row "
                    "of zeros; its labels are 0", index);
    }
    return DIFFSEG_OK;
}

void diffseg_destroy(diffseg_handle *handle) {
    if (!handle) return;
    const OnDevice device(handle->config.device);
    wait_for_device();
    if (handle->owns_workspace) release(handle->workspace);
    delete handle;
}

diffseg_status diffseg_device_count(int32_t *count) {
    return count ? device_count(count) : fail(DIFFSEG_NULL_POINTER, "count is NULL");
}

diffseg_status diffseg_device_name(int32_t device, char *name, size_t bytes, int32_t *capability) {
    if (!name || !capability || !bytes) return fail(DIFFSEG_NULL_POINTER, "name or capability is NULL");
    return device_name(device, name, bytes, capability);
}

diffseg_status diffseg_allocate(int32_t device, size_t bytes, void **memory) {
    if (!memory) return fail(DIFFSEG_NULL_POINTER, "memory is NULL");
    const OnDevice current(device);
    return current.status() == DIFFSEG_OK ? allocate(bytes, memory) : current.status();
}

void diffseg_free(int32_t device, void *memory) {
    const OnDevice current(device);
    if (memory) release(memory);
}

diffseg_status diffseg_upload(int32_t device, void *to, const void *from, size_t bytes, void *stream) {
    if (!to || !from) return fail(DIFFSEG_NULL_POINTER, "to or from is NULL");
    const OnDevice current(device);
    return current.status() == DIFFSEG_OK ? copy(to, from, bytes, true, static_cast<Stream>(stream)) : current.status();
}

diffseg_status diffseg_download(int32_t device, void *to, const void *from, size_t bytes, void *stream) {
    if (!to || !from) return fail(DIFFSEG_NULL_POINTER, "to or from is NULL");
    const OnDevice current(device);
    return current.status() == DIFFSEG_OK ? copy(to, from, bytes, false, static_cast<Stream>(stream)) : current.status();
}

}  // extern "C"
