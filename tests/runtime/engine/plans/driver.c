/* A stand-in for NVIDIA's driver on a machine without one: memory is the host's, work is done at once or not at all, and
 * every call is noted. For the order of calls and for lifetimes, never for results. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char notes[1 << 20];
static size_t used;
static int live, capturing;
static _Thread_local void *current, *pushed; /* contexts: without one most calls fail, as the driver's do */
int refuse_capture, refuse_memory;

void note(const char *text) { /* from several threads at once */
    size_t length = strlen(text), at = __atomic_fetch_add(&used, length + 1, __ATOMIC_RELAXED);
    if (at + length + 2 > sizeof notes) abort();
    memcpy(notes + at, text, length);
    notes[at + length] = '\n';
}
const char *read_notes(void) {
    notes[used] = 0;
    return notes;
}
void clear_notes(void) { used = 0; }
int living(void) { return live; }
int has_context(void) { return current != NULL; }
void leave_context(void) { current = NULL; }

static int made(const char *name, void **handle, size_t size) {
    if (!current) return 201;
    *handle = calloc(1, size ? size : 1);
    __atomic_fetch_add(&live, 1, __ATOMIC_RELAXED);
    note(name);
    return 0;
}
static int gone(const char *name, void *handle) {
    free(handle);
    __atomic_fetch_sub(&live, 1, __ATOMIC_RELAXED);
    note(name);
    return 0;
}
static int noted(const char *name) {
    note(name);
    return 0;
}

int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetName(char *name, int size, int device) { (void)device; snprintf(name, (size_t)size, "Stand-in"); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { (void)device; *value = attribute == 75 ? 8 : 9; return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = (size_t)8 << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)device; *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { current = context; return context != (void *)1; }
int cuCtxPushCurrent_v2(void *context) { pushed = current; return cuCtxSetCurrent(context); }
int cuCtxPopCurrent_v2(void **context) { *context = current; current = pushed; return 0; }
int cuCtxSynchronize(void) { return noted("wait for all"); }
int pointer_device; /* what the driver says of every pointer; negative: it knows none */
int cuPointerGetAttribute(void *value, int attribute, uint64_t pointer) {
    (void)pointer;
    if (attribute != 9 || pointer_device < 0) return 1;
    *(int *)value = pointer_device;
    return 0;
}
int cuMemAlloc_v2(uint64_t *memory, size_t size) {
    void *found;
    if (refuse_memory) return 2;
    if (made("alloc", &found, size)) return 201;
    *memory = (uint64_t)(uintptr_t)found;
    return 0;
}
int cuMemFree_v2(uint64_t memory) { return gone("free", (void *)(uintptr_t)memory); }
int cuMemHostAlloc(void **memory, size_t size, unsigned flags) { (void)flags; return made("alloc host", memory, size); }
int cuMemFreeHost(void *memory) { return gone("free host", memory); }
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = 1 << 20; *total = (size_t)8 << 30; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    (void)stream;
    memcpy((void *)(uintptr_t)to, from, size);
    return noted("upload");
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    (void)stream;
    memcpy(to, (void *)(uintptr_t)from, size);
    return noted("download");
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void *stream) {
    (void)stream;
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, size);
    return noted("copy");
}
int cuStreamCreate(void **stream, unsigned flags) { (void)flags; return made("stream", stream, 1); }
int cuStreamDestroy_v2(void *stream) { return gone("destroy stream", stream); }
int cuStreamSynchronize(void *stream) { (void)stream; return capturing ? 900 : noted("wait"); }
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) { (void)stream; (void)event; (void)flags; return noted("after"); }
int cuStreamBeginCapture_v2(void *stream, int mode) { (void)stream; (void)mode; capturing = 1; return noted("begin capture"); }
int cuStreamEndCapture(void *stream, void **graph) {
    (void)stream;
    capturing = 0;
    *graph = NULL;
    if (refuse_capture) return 901 + 0 * noted("capture refused");
    return made("end capture", graph, 1);
}
int cuEventCreate(void **event, unsigned flags) { (void)flags; return made("event", event, 1); }
int cuEventDestroy_v2(void *event) { return gone("destroy event", event); }
int cuEventRecord(void *event, void *stream) { (void)event; (void)stream; return noted("mark"); }
int cuEventSynchronize(void *event) { (void)event; return noted("wait for event"); }
int cuGraphInstantiateWithFlags(void **made_graph, void *graph, unsigned long long flags) {
    (void)graph;
    return flags ? 1 : made("instantiate", made_graph, 1);
}
int cuGraphLaunch(void *graph, void *stream) { (void)graph; (void)stream; return noted("launch"); }
int cuGraphDestroy(void *graph) { return gone("destroy graph", graph); }
int cuGraphExecDestroy(void *graph) { return gone("destroy executable", graph); }
int cuGetErrorName(int error, const char **text) {
    *text = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
