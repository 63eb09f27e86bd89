// The device functions that the host code uses: on CUDA, and on the CPU in its place.
#pragma once

#include "checks.h"

#ifdef DIFFSEG_CPU
#include <chrono>
#endif

namespace diffseg {

#ifdef DIFFSEG_CPU

using Stream = void *;

class OnDevice {
  public:
    explicit OnDevice(int) {}
    diffseg_status status() const { return DIFFSEG_OK; }
};
inline diffseg_status device_count(int32_t *count) {
    *count = 1;
    return DIFFSEG_OK;
}
inline diffseg_status device_name(int, char *name, size_t bytes, int32_t *capability) {
    std::snprintf(name, bytes, "CPU");
    *capability = 0;
    return DIFFSEG_OK;
}
template <class Kernel>
diffseg_status loadable(Kernel *) {
    return DIFFSEG_OK;
}
inline diffseg_status multiprocessors(int, int *count) {
    *count = diffseg_cpu_multiprocessors;
    return DIFFSEG_OK;
}
inline diffseg_status allocate(size_t bytes, void **memory) {
    *memory = nullptr;
    if (bytes <= SIZE_MAX - 256) *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return *memory ? DIFFSEG_OK : fail(DIFFSEG_OUT_OF_MEMORY, "no %zu bytes to be had", bytes);
}
inline void release(void *memory) { std::free(memory); }
inline diffseg_status copy(void *to, const void *from, size_t bytes, bool, Stream) {
    std::memcpy(to, from, bytes);
    return DIFFSEG_OK;
}
inline diffseg_status clear(void *at, size_t bytes, Stream) {
    std::memset(at, 0, bytes);
    return DIFFSEG_OK;
}
inline diffseg_status wait(Stream) { return DIFFSEG_OK; }
inline void wait_for_device() {}
inline diffseg_status launched() { return DIFFSEG_OK; }

class Timer {
  public:
    diffseg_status status() const { return DIFFSEG_OK; }
    void mark(Stream) { marks_[used_++] = std::chrono::steady_clock::now(); }
    diffseg_status read(float *milliseconds, Stream) const {
        for (int i = 0; i + 1 < used_; ++i)
            milliseconds[i] = std::chrono::duration<float, std::milli>(marks_[i + 1] - marks_[i]).count();
        return DIFFSEG_OK;
    }

  private:
    std::chrono::steady_clock::time_point marks_[DIFFSEG_STAGES + 1];
    int used_ = 0;
};

#else

using Stream = cudaStream_t;

inline diffseg_status cuda(cudaError_t error, const char *what) {
    if (error == cudaSuccess) return DIFFSEG_OK;
    diffseg_status status = DIFFSEG_DEVICE_ERROR;
    if (error == cudaErrorMemoryAllocation) status = DIFFSEG_OUT_OF_MEMORY;
    if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver || error == cudaErrorInvalidDevice)
        status = DIFFSEG_NO_DEVICE;
    return fail(status, "%s: %s", what, cudaGetErrorString(error));
}

// Makes a device current in the calling thread, and restores the former one at its end.
class OnDevice {
  public:
    explicit OnDevice(int device) {
        status_ = cuda(cudaGetDevice(&before_), "cudaGetDevice");
        if (status_ == DIFFSEG_OK && before_ != device) {
            status_ = cuda(cudaSetDevice(device), "cudaSetDevice");
            changed_ = status_ == DIFFSEG_OK;
        }
    }
    ~OnDevice() {
        if (changed_) static_cast<void>(cudaSetDevice(before_));
    }
    OnDevice(const OnDevice &) = delete;
    OnDevice &operator=(const OnDevice &) = delete;
    diffseg_status status() const { return status_; }

  private:
    int before_ = 0;
    bool changed_ = false;
    diffseg_status status_;
};
inline diffseg_status device_count(int32_t *count) {
    int found = 0;
    const diffseg_status status = cuda(cudaGetDeviceCount(&found), "cudaGetDeviceCount");
    *count = found;
    return status;
}
inline diffseg_status device_name(int device, char *name, size_t bytes, int32_t *capability) {
    cudaDeviceProp properties;
    const diffseg_status status = cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    if (status != DIFFSEG_OK) return status;
    std::snprintf(name, bytes, "%s", properties.name);
    *capability = 10 * properties.major + properties.minor;
    return DIFFSEG_OK;
}
// Loads a kernel, or finds that the library has no code of it for this device.
template <class Kernel>
diffseg_status loadable(Kernel *kernel) {
    cudaFuncAttributes attributes;
    const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel);
    if (error != cudaErrorNoKernelImageForDevice && error != cudaErrorInvalidDeviceFunction)
        return cuda(error, "cudaFuncGetAttributes");
    static_cast<void>(cudaGetLastError());
    return fail(DIFFSEG_NO_DEVICE, "the library has no code for this device's architecture; build it with that in the list");
}
inline diffseg_status multiprocessors(int device, int *count) {
    return cuda(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
}
inline diffseg_status allocate(size_t bytes, void **memory) { return cuda(cudaMalloc(memory, bytes), "cudaMalloc"); }
inline void release(void *memory) { static_cast<void>(cudaFree(memory)); }
inline diffseg_status wait(Stream stream) { return cuda(cudaStreamSynchronize(stream), "cudaStreamSynchronize"); }
inline void wait_for_device() { static_cast<void>(cudaDeviceSynchronize()); }
inline diffseg_status copy(void *to, const void *from, size_t bytes, bool to_device, Stream stream) {
    const cudaMemcpyKind kind = to_device ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost;
    const diffseg_status status = cuda(cudaMemcpyAsync(to, from, bytes, kind, stream), "cudaMemcpyAsync");
    return status == DIFFSEG_OK ? wait(stream) : status;
}
inline diffseg_status clear(void *at, size_t bytes, Stream stream) {
    return cuda(cudaMemsetAsync(at, 0, bytes, stream), "cudaMemsetAsync");
}
inline diffseg_status launched() { return cuda(cudaGetLastError(), "launch"); }

// Milliseconds between marks on a stream.
class Timer {
  public:
    Timer() {
        for (cudaEvent_t &event : events_) {
            if (status_ == DIFFSEG_OK) status_ = cuda(cudaEventCreate(&event), "cudaEventCreate");
        }
    }
    ~Timer() {
        for (cudaEvent_t event : events_) {
            if (event) static_cast<void>(cudaEventDestroy(event));
        }
    }
    Timer(const Timer &) = delete;
    Timer &operator=(const Timer &) = delete;
    diffseg_status status() const { return status_; }
    void mark(Stream stream) { static_cast<void>(cudaEventRecord(events_[used_++], stream)); }
    diffseg_status read(float *milliseconds, Stream stream) const {
        diffseg_status status = wait(stream);
        for (int i = 0; i + 1 < used_ && status == DIFFSEG_OK; ++i)
            status = cuda(cudaEventElapsedTime(&milliseconds[i], events_[i], events_[i + 1]), "cudaEventElapsedTime");
        return status;
    }

  private:
    cudaEvent_t events_[DIFFSEG_STAGES + 1] = {};
    diffseg_status status_ = DIFFSEG_OK;
    int used_ = 0;
};

#endif

}  // namespace diffseg
