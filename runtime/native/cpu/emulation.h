// CUDA's keywords on a CPU, so that the kernels' own source can be run and tested without a GPU.
//
// The threads of a block are fibers of one thread, which switch at a barrier. With DIFFSEG_CPU_THREADS they are real
// threads, so that ThreadSanitizer reports the race that a missing barrier allows. Blocks run one after the other.
#pragma once

#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <ucontext.h>
#ifdef DIFFSEG_CPU_THREADS
#include <condition_variable>
#include <thread>
#include <vector>
#endif

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static  // one block runs at a time

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void *;

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned atomicOr(unsigned *at, unsigned bits) { return __atomic_fetch_or(at, bits, __ATOMIC_RELAXED); }
inline float __logf(float value) { return logf(value); }

// The barrier that is left out, for the test that its race is found; -1: none.
extern "C" __attribute__((visibility("default"))) int diffseg_cpu_dropped_barrier;
int diffseg_cpu_dropped_barrier = -1;

namespace emulation {

constexpr unsigned MOST_THREADS = 256;

static dim3 grid_size;

inline std::mutex &turn() {
    static std::mutex mutex;
    return mutex;
}

inline float half_to_float(uint16_t half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -small : small;
}

#ifdef DIFFSEG_CPU_THREADS

static thread_local dim3 thread_index(0, 0, 0), block_index(0, 0, 0);

static thread_local unsigned met = 0;

// Two locks in turns. With one, a thread that wakes late would take the lock after threads that are already at the next
// barrier released it, and ThreadSanitizer would see that as an order where there is a race.
class Meeting {
  public:
    explicit Meeting(unsigned members) : members_(members) {}
    void wait() {
        Room &room = rooms_[met++ % 2];
        std::unique_lock<std::mutex> lock(room.mutex);
        const unsigned round = room.round;
        if (++room.arrived == members_) {
            room.arrived = 0;
            ++room.round;
            room.everyone.notify_all();
        } else {
            room.everyone.wait(lock, [&] { return round != room.round; });
        }
    }

  private:
    struct Room {
        std::mutex mutex;
        std::condition_variable everyone;
        unsigned arrived = 0, round = 0;
    };
    Room rooms_[2];
    unsigned members_;
};
static Meeting *meeting;

inline void barrier(int number) {
    if (number != diffseg_cpu_dropped_barrier) meeting->wait();
}

template <class Body>
void launch(dim3 grid, unsigned threads, const Body &body) {
    const std::lock_guard<std::mutex> lock(turn());
    grid_size = grid;
    Meeting everyone(threads);
    meeting = &everyone;
    std::vector<std::thread> crew;
    for (unsigned t = 0; t < threads; ++t) {
        crew.emplace_back([&, t] {
            thread_index = dim3(t, 0, 0);
            for (unsigned z = 0; z < grid.z; ++z)
                for (unsigned y = 0; y < grid.y; ++y)
                    for (unsigned x = 0; x < grid.x; ++x) {
                        block_index = dim3(x, y, z);
                        body();
                        everyone.wait();  // now the next block may use the shared memory
                    }
        });
    }
    for (std::thread &member : crew) member.join();
}

#else

// One fiber per thread of a block, made once and used for every block of every launch. They start as ucontexts; after
// that setjmp and longjmp switch between them, which unlike swapcontext make no system call.
struct Fibers {
    static constexpr size_t STACK = 64 * 1024;
    jmp_buf scheduler, fiber[MOST_THREADS];
    ucontext_t start[MOST_THREADS], home;
    bool started[MOST_THREADS] = {}, finished[MOST_THREADS] = {};
    unsigned current = 0;
    void (*body)(const void *) = nullptr;
    const void *argument = nullptr;
};
static Fibers fibers;
static dim3 thread_index(0, 0, 0), block_index(0, 0, 0);

__attribute__((noinline)) inline void yield() {
    if (!_setjmp(fibers.fiber[fibers.current])) _longjmp(fibers.scheduler, 1);
}

inline void fiber_main() {
    for (;;) {
        fibers.body(fibers.argument);
        fibers.finished[fibers.current] = true;
        yield();
    }
}

__attribute__((noinline)) inline void resume() {
    if (_setjmp(fibers.scheduler)) return;
    if (fibers.started[fibers.current]) _longjmp(fibers.fiber[fibers.current], 1);
    fibers.started[fibers.current] = true;
    ucontext_t &context = fibers.start[fibers.current];
    getcontext(&context);
    context.uc_stack.ss_sp = std::malloc(Fibers::STACK);  // kept until the process ends
    context.uc_stack.ss_size = Fibers::STACK;
    context.uc_link = &fibers.home;
    makecontext(&context, fiber_main, 0);
    setcontext(&context);
}

inline void barrier(int number) {
    if (number != diffseg_cpu_dropped_barrier) yield();
}

template <class Body>
void launch(dim3 grid, unsigned threads, const Body &body) {
    const std::lock_guard<std::mutex> lock(turn());
    grid_size = grid;
    fibers.body = [](const void *argument) { (*static_cast<const Body *>(argument))(); };
    fibers.argument = &body;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                block_index = dim3(x, y, z);
                for (unsigned t = 0; t < threads; ++t) fibers.finished[t] = false;
                for (bool all = false; !all;) {
                    all = true;
                    for (unsigned t = 0; t < threads; ++t) {
                        if (fibers.finished[t]) continue;
                        fibers.current = t;
                        thread_index = dim3(t, 0, 0);
                        resume();
                        all = all && fibers.finished[t];
                    }
                }
            }
}

#endif

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size
#define DIFFSEG_BARRIER(number) emulation::barrier(number)
#define DIFFSEG_LAUNCH(kernel, grid, threads, stream, ...) \
    (static_cast<void>(stream), emulation::launch((grid), (threads), [&] { kernel(__VA_ARGS__); }))
