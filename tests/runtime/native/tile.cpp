// The tile product alone, on the CPU, against a plain loop: prints how many elements are wrong, and how many of the loads
// and stores of 16 bytes meet others in a bank of shared memory.
#include <cstdio>
#include <set>
#include <utility>
#include <vector>

static void touched(const void *at);
#define DIFFSEG_TOUCH(at) touched(at)
#include "tile.cuh"

using namespace diffseg;

static std::vector<const void *> accesses[THREADS];  // of every thread, in order
static void touched(const void *at) { accesses[threadIdx.x].push_back(at); }

static float left_matrix[TILE_M][TILE_K], right_matrix[TILE_K][TILE_N], found[TILE_M][TILE_N];

template <Along ALONG>
__global__ void product() {
    using Place = Layout<ALONG>;
    __shared__ __align__(128) float left[Place::LEFT_TILE];
    __shared__ __align__(128) float right[Place::RIGHT_TILE];
    const int thread = static_cast<int>(threadIdx.x), row = thread / 4, k = thread % 4 * 4;
    float upper[4], lower[4], four[4];
    for (int e = 0; e < 4; ++e) {
        upper[e] = left_matrix[row][k + e];
        lower[e] = left_matrix[row + 64][k + e];
    }
    Place::put_left(left, row, k, upper, lower);
    const int first = ALONG == Along::K ? k : thread / 32 * 2, n = ALONG == Along::K ? row : thread % 32 * 2;
    for (int e = 0; e < 4; ++e)
        four[e] = ALONG == Along::K ? right_matrix[first + e][n] : right_matrix[first + e % 2][n + e / 2];
    Place::put_right(right, first, n, four);
    DIFFSEG_BARRIER(0);
    Accumulator<ALONG> sum;
    sum.multiply(left, right);
    sum.fold();
    for (std::vector<const void *> &mine : accesses) mine.push_back(nullptr);  // what follows is not shared memory
    sum.store(found[0], TILE_N);
}

// Eight lanes are served together: their 32 floats must come from 32 banks.
static int conflicts() {
    int count = 0;
    for (int first = 0; first < THREADS; first += 8)
        for (size_t i = 0; accesses[first][i]; ++i) {
            std::set<const void *> places;
            std::set<size_t> banks;
            for (int lane = first; lane < first + 8; ++lane) places.insert(accesses[lane][i]);
            for (const void *place : places) banks.insert(reinterpret_cast<size_t>(place) / 16 % 8);
            count += banks.size() != places.size();
        }
    for (std::vector<const void *> &mine : accesses) mine.clear();
    return count;
}

template <Along ALONG>
void compare(const char *name) {
    DIFFSEG_LAUNCH(product<ALONG>, dim3(1), THREADS, nullptr);
    int wrong = 0;
    for (int row = 0; row < TILE_M; ++row)
        for (int n = 0; n < TILE_N; ++n) {
            float sum = 0.0f;  // of small integers: exact in any order
            for (int k = 0; k < TILE_K; ++k) sum += left_matrix[row][k] * right_matrix[k][n];
            wrong += sum != found[row][n];
        }
    std::printf("%s: %d wrong, %d conflicts\n", name, wrong, conflicts());
}

int main() {
    unsigned state = 1;
    const auto next = [&] { return static_cast<float>((state = state * 1664525u + 1013904223u) >> 24) - 100.0f; };
    for (auto &row : left_matrix)
        for (float &value : row) value = next();
    for (auto &row : right_matrix)
        for (float &value : row) value = next();
    compare<Along::K>("along k");
    compare<Along::N>("along n");
}
