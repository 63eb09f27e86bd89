// CUDA's keywords on a CPU, so that the kernels' own source can be run and tested without a GPU.
//
// The threads of a block are fibers of one thread, which switch at a barrier. With DIFFSEG_CPU_THREADS they are real
// threads: then ThreadSanitizer reports the race that a missing barrier allows, and AddressSanitizer knows their stacks.
// Blocks run one after the other.
#pragma once

#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <ucontext.h>
#ifdef DIFFSEG_CPU_THREADS
#include <condition_variable>
#include <pthread.h>
#include <thread>
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
struct float2 {
    float x, y;
};

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

// The barrier that is left out, for the test that its race is found; -1: none.
extern "C" __attribute__((visibility("default"))) int diffseg_cpu_dropped_barrier;
int diffseg_cpu_dropped_barrier = -1;
// As many multiprocessors as an H200, so that sums are split as they are there; tests set other numbers.
extern "C" __attribute__((visibility("default"))) int diffseg_cpu_multiprocessors;
int diffseg_cpu_multiprocessors = 132;

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

static thread_local unsigned met = 0, met_warp = 0;

#ifdef DIFFSEG_CPU_BARRIERS

// The system's barriers: several times as fast, and an order between all threads, in which ThreadSanitizer sees no race.
class Meeting {
  public:
    explicit Meeting(unsigned members) { pthread_barrier_init(&barrier_, nullptr, members); }
    void wait(unsigned &) { pthread_barrier_wait(&barrier_); }

  private:
    pthread_barrier_t barrier_;
};

#else

// Two locks in turns. With one, a thread that wakes late would take the lock after threads that are already at the next
// barrier released it, and ThreadSanitizer would see that as an order where there is a race.
class Meeting {
  public:
    explicit Meeting(unsigned members) : members_(members) {}
    void wait(unsigned &times) {
        Room &room = rooms_[times++ % 2];
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

#endif

// The threads of a block: made at the first launch and kept, since making them takes longer than most launches.
class Crew {
  public:
    Crew() {
        for (Meeting *&warp : warps_) warp = new Meeting(32);
        for (unsigned t = 0; t < MOST_THREADS; ++t) std::thread([this, t] { work(t); }).detach();
    }
    void run(dim3 grid, void (*body)(const void *), const void *argument) {
        grid_ = grid;
        body_ = body;
        argument_ = argument;
        launch_.wait(launches_);
        launch_.wait(launches_);
    }
    void meet() { block_.wait(met); }
    void meet_warp(unsigned warp) { warps_[warp]->wait(met_warp); }

  private:
    void work(unsigned t) {
        thread_index = dim3(t, 0, 0);
        for (unsigned launches = 0;;) {
            launch_.wait(launches);
            for (unsigned z = 0; z < grid_.z; ++z)
                for (unsigned y = 0; y < grid_.y; ++y)
                    for (unsigned x = 0; x < grid_.x; ++x) {
                        block_index = dim3(x, y, z);
                        body_(argument_);
                        meet();  // now the next block may use the shared memory
                    }
            launch_.wait(launches);
        }
    }
    Meeting block_{MOST_THREADS}, launch_{MOST_THREADS + 1}, *warps_[MOST_THREADS / 32];
    dim3 grid_;
    void (*body_)(const void *) = nullptr;
    const void *argument_ = nullptr;
    unsigned launches_ = 0;
};
inline Crew &crew() {
    static Crew *const made = new Crew;  // never destroyed, since its threads wait in it until the process ends
    return *made;
}

inline void barrier(int number) {
    if (number != diffseg_cpu_dropped_barrier) crew().meet();
}
inline void meet_warp(unsigned warp) { crew().meet_warp(warp); }

template <class Body>
void launch(dim3 grid, unsigned threads, const Body &body) {
    const std::lock_guard<std::mutex> lock(turn());
    if (threads != MOST_THREADS) std::abort();
    grid_size = grid;
    crew().run(grid, [](const void *argument) { (*static_cast<const Body *>(argument))(); }, &body);
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
// Every thread of the block yields here, in the order of their numbers, so that a warp's lanes have all arrived.
inline void meet_warp(unsigned) { yield(); }

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

#ifdef DIFFSEG_CPU_TENSOR

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32. The tables of the PTX ISA ("Matrix Fragments for mma.m16n8k8") read
// from the matrix's side: which lane has an element, and in which register. The kernels have no part in this.
//
// A lane queues its registers and goes on; mma_settle computes. Before it a sum must not be read, and registers may be
// changed only because they are copied here.
struct Instructions {
    static constexpr int MOST = 16;  // between two mma_settle
    struct One {
        float *sum[32];
        float a[32][4], b[32][2];
    };
    One queue[MOST];
    int queued[32];
};
static Instructions instructions[MOST_THREADS / 32];

// What a tensor core reads of a register: TF32, which is float32 without its lowest 13 bits.
inline float as_tf32(float value) { return __uint_as_float(__float_as_uint(value) & 0xffffe000u); }

inline void mma_m16n8k8_tf32(float (&sum)[4], const float (&a)[4], const float (&b)[2]) {
    const unsigned lane = thread_index.x % 32;
    Instructions &warp = instructions[thread_index.x / 32];
    const int number = warp.queued[lane]++;
    if (number >= Instructions::MOST) std::abort();
    Instructions::One &one = warp.queue[number];
    one.sum[lane] = sum;
    for (int i = 0; i < 4; ++i) one.a[lane][i] = as_tf32(a[i]);
    for (int i = 0; i < 2; ++i) one.b[lane][i] = as_tf32(b[i]);
}

// One instruction for the whole warp: D[16][8] = A[16][8] · B[8][8] + C[16][8].
inline void execute(const Instructions::One &one) {
    float a[16][8], b[8][8], d[16][8];
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 8; ++k) a[row][k] = one.a[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2];
    for (int k = 0; k < 8; ++k)
        for (int n = 0; n < 8; ++n) b[k][n] = one.b[n * 4 + k % 4][k / 4];
    for (int row = 0; row < 16; ++row)
        for (int n = 0; n < 8; ++n) d[row][n] = one.sum[row % 8 * 4 + n / 2][row / 8 * 2 + n % 2];
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < 8; ++k)
            for (int n = 0; n < 8; ++n) d[row][n] += a[row][k] * b[k][n];
    for (int row = 0; row < 16; ++row)
        for (int n = 0; n < 8; ++n) one.sum[row % 8 * 4 + n / 2][row / 8 * 2 + n % 2] = d[row][n];
}

// The lanes of a warp wait for each other, and one of them computes what they have queued.
inline void mma_settle() {
    const unsigned lane = thread_index.x % 32, warp = thread_index.x / 32;
    Instructions &mine = instructions[warp];
    meet_warp(warp);
    if (lane == 0) {
        for (int other = 1; other < 32; ++other)
            if (mine.queued[other] != mine.queued[0]) std::abort();  // .aligned: all lanes execute the same
        for (int number = 0; number < mine.queued[0]; ++number) execute(mine.queue[number]);
        for (int &count : mine.queued) count = 0;
    }
    meet_warp(warp);
}

#endif

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size
#define DIFFSEG_BARRIER(number) emulation::barrier(number)
#define DIFFSEG_LAUNCH(kernel, grid, threads, stream, ...) \
    (static_cast<void>(stream), emulation::launch((grid), (threads), [&] { kernel(__VA_ARGS__); }))
