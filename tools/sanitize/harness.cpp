// A libFuzzer harness of diffseg.h: bytes choose a configuration, frames, and a sequence of calls.
//
// Most numbers are chosen to be valid, so that kernels run; some are any number at all. All memory that a call is given is
// as large as the header says, and no larger, so that AddressSanitizer sees every access beyond it. What a call gives is
// checked, too: a number that is wrong ends the program as a sanitizer's finding does.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "diffseg.h"

unsigned long diffseg_segmented = 0;  // frames; a test sees that inputs reach the kernels

namespace {

#define EXPECT(condition)                                                             \
    do {                                                                              \
        if (!(condition)) {                                                           \
            std::fprintf(stderr, "wrong: %s, line %d\n", #condition, __LINE__);       \
            std::fprintf(stderr, "last error: %s\n", diffseg_last_error());           \
            std::abort();                                                             \
        }                                                                             \
    } while (false)

// The input, read from its start; past its end it is 0.
class Bytes {
  public:
    Bytes(const uint8_t *data, size_t size) : data_(data), size_(size) {}
    unsigned byte() { return at_ < size_ ? data_[at_++] : 0; }
    uint32_t word() {
        uint32_t value = 0;
        for (int i = 0; i < 4; ++i) value = value << 8 | byte();
        return value;
    }
    bool one_in(unsigned count) { return byte() % count == count - 1; }
    // From low to high; one time in 32 any number.
    int32_t number(int32_t low, int32_t high) {
        if (one_in(32)) return static_cast<int32_t>(word());
        return low + static_cast<int32_t>(byte() % static_cast<unsigned>(high - low + 1));
    }
    float real() {
        const uint32_t bits = word();
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }

  private:
    const uint8_t *data_;
    size_t size_, at_ = 0;
};

// Memory of exactly so many bytes, aligned as device memory is.
using Memory = std::unique_ptr<char, decltype(&std::free)>;
Memory place(size_t bytes) {
    void *memory = nullptr;
    if (posix_memalign(&memory, 256, bytes ? bytes : 1)) std::abort();
    std::memset(memory, 0xA5, bytes);
    return Memory(static_cast<char *>(memory), &std::free);
}

struct Shape {
    size_t n[DIFFSEG_MAX_LEVELS], element, anchors, blocks;
};

uint16_t half(float value) {  // of numbers between 0 and 1, near enough
    return static_cast<uint16_t>(value * 1024.0f * 14.0f);
}

// A level of the pyramid: numbers from 0 on, and wherever the input says so any number.
Memory draw_maps(Bytes &bytes, size_t batch, size_t n, int32_t type) {
    const size_t count = batch * n * n;
    Memory memory = place(count * (type == DIFFSEG_FLOAT32 ? 4 : 2));
    uint32_t state = bytes.word() | 1u;
    const float sharpness = static_cast<float>(bytes.byte() % 32);
    const auto put = [&](size_t index, float value) {
        if (type == DIFFSEG_FLOAT32) {
            std::memcpy(memory.get() + 4 * index, &value, 4);
            return;
        }
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        const uint16_t stored = type == DIFFSEG_BFLOAT16 ? static_cast<uint16_t>(bits >> 16) : half(value);
        std::memcpy(memory.get() + 2 * index, &stored, 2);
    };
    for (size_t index = 0; index < count; ++index) {
        state = state * 1664525u + 1013904223u;
        put(index, std::exp(-sharpness * static_cast<float>(state >> 8) / 16777216.0f));
    }
    for (unsigned odd = bytes.one_in(4) ? bytes.byte() % 8 : 0; odd > 0; --odd) {
        const size_t index = bytes.word() % count;
        const uint32_t bits = bytes.word();
        if (type == DIFFSEG_FLOAT32) std::memcpy(memory.get() + 4 * index, &bits, 4);
        else std::memcpy(memory.get() + 2 * index, &bits, 2);
    }
    if (bytes.one_in(32)) std::memset(memory.get(), 0, count * (type == DIFFSEG_FLOAT32 ? 4 : 2));
    return memory;
}

diffseg_config draw_config(Bytes &bytes) {
    diffseg_config config;
    std::memset(&config, 0, sizeof config);
    config.struct_size = static_cast<uint32_t>(bytes.number(sizeof config, sizeof config));
    config.abi_version = static_cast<uint32_t>(bytes.number(DIFFSEG_ABI_VERSION, DIFFSEG_ABI_VERSION));
    config.device = bytes.number(0, 0);
    config.max_batch = bytes.number(1, 2);
    config.levels = bytes.number(1, 3);
    const unsigned sides = bytes.one_in(8) ? 9 : 4;  // mostly small ones: real threads meet slowly
    int32_t height = 2 + static_cast<int32_t>(bytes.byte() % sides), width = 2 + static_cast<int32_t>(bytes.byte() % sides);
    const int32_t shorter = height < width ? height : width;
    for (int level = 0; level < DIFFSEG_MAX_LEVELS; ++level) {
        config.grids[level][0] = bytes.number(height, height);
        config.grids[level][1] = bytes.number(width, width);
        height = height > 1 ? 1 + static_cast<int32_t>(bytes.byte()) % (height - 1) : 1;
        width = width > 1 ? 1 + static_cast<int32_t>(bytes.byte()) % width : 1;
    }
    config.input_type = bytes.number(DIFFSEG_FLOAT32, DIFFSEG_BFLOAT16);
    config.anchors = bytes.number(2, shorter);
    config.iterations = bytes.number(1, 3);
    if (bytes.one_in(4)) {
        for (float &weight : config.weights)
            weight = bytes.one_in(16) ? bytes.real() : static_cast<float>(bytes.byte() % 4);
    }
    return config;
}

bool is_small(const diffseg_config &config, size_t workspace) {
    size_t most = 0;
    for (int level = 0; level < config.levels; ++level) {
        const size_t n = static_cast<size_t>(config.grids[level][0]) * static_cast<size_t>(config.grids[level][1]);
        most = n > most ? n : most;
    }
    return workspace < (size_t{16} << 20) && most <= 144 && config.max_batch <= 4 && config.iterations <= 4;
}

// One call of diffseg_run or diffseg_profile, and what it must have done.
void segment(Bytes &bytes, const diffseg_config &config, const Shape &shape, diffseg_handle *handle, int32_t *last) {
    diffseg_frames frames;
    std::memset(&frames, 0, sizeof frames);
    frames.struct_size = static_cast<uint32_t>(bytes.number(sizeof frames, sizeof frames));
    frames.abi_version = static_cast<uint32_t>(bytes.number(DIFFSEG_ABI_VERSION, DIFFSEG_ABI_VERSION));
    frames.batch = bytes.number(1, config.max_batch);
    frames.label_type = bytes.number(config.anchors > 16 ? 1 : 0, 1);
    frames.height = bytes.number(1, 20);
    frames.width = bytes.number(1, 20);
    const auto is_side = [](int32_t side) { return side >= 1 && side <= DIFFSEG_MAX_SIDE; };
    const bool has_labels = is_side(frames.height) && is_side(frames.width);
    if (has_labels && static_cast<int64_t>(frames.height) * frames.width > 100000) frames.height = 1;
    frames.again = bytes.one_in(4) ? bytes.number(0, 1) : 0;
    for (float &threshold : frames.thresholds)
        threshold = bytes.one_in(32) ? bytes.real() : static_cast<float>(bytes.byte() + 1) / 64.0f;
    for (int axis = 0; axis < 2; ++axis) {
        const int32_t side = config.grids[0][axis];
        frames.blocks[axis] = bytes.number(1, side);
        if (frames.blocks[axis] <= side && !bytes.one_in(8))
            while (frames.blocks[axis] > 0 && side % frames.blocks[axis]) --frames.blocks[axis];
    }
    const size_t batch = frames.batch > 0 && frames.batch <= config.max_batch ? static_cast<size_t>(frames.batch) : 1;
    const size_t n = shape.n[0];  // what is refused needs no memory
    const size_t pixels = has_labels ? static_cast<size_t>(frames.height) * static_cast<size_t>(frames.width) : 1;
    size_t blocks = 1;
    for (int axis = 0; axis < 2; ++axis)
        if (frames.blocks[axis] > 0 && frames.blocks[axis] <= config.grids[0][axis])
            blocks *= static_cast<size_t>(frames.blocks[axis]);
    std::vector<Memory> owned;
    const auto given = [&](size_t size, bool wanted) -> void * {
        if (!wanted) return nullptr;
        owned.push_back(place(size));
        return owned.back().get();
    };
    for (int level = 0; level < config.levels; ++level) {
        if (bytes.one_in(32) || frames.again == 1) continue;  // NULL
        owned.push_back(draw_maps(bytes, batch, shape.n[level], config.input_type));
        frames.maps[level] = owned.back().get();
    }
    const size_t label = frames.label_type == DIFFSEG_UINT16 ? 2 : 1;
    frames.labels = given(batch * pixels * label, !bytes.one_in(32));
    frames.segments = static_cast<int32_t *>(given(batch * 4, true));
    frames.proposals = static_cast<float *>(given(batch * shape.anchors * n * 4, bytes.one_in(2)));
    frames.attention = static_cast<float *>(given(batch * n * n * 4, bytes.one_in(2)));
    frames.attention_blocks = static_cast<float *>(given(batch * n * blocks * 4, bytes.one_in(2)));
    frames.proposal_blocks = static_cast<float *>(given(batch * shape.anchors * blocks * 4, bytes.one_in(2)));

    float times[DIFFSEG_STAGES];
    const diffseg_status status =
        bytes.one_in(8) ? diffseg_profile(handle, &frames, nullptr, times) : diffseg_run(handle, &frames, nullptr);
    if (status != DIFFSEG_OK) {
        EXPECT(diffseg_last_error()[0]);
        return;
    }
    if (!frames.again) *last = frames.batch;
    diffseg_segmented += batch;
    int32_t wrong = -1;
    const diffseg_status check = diffseg_check(handle, nullptr, &wrong);
    EXPECT(check == DIFFSEG_OK || (check == DIFFSEG_BAD_MAPS && wrong >= 0 && wrong < config.max_batch));
    for (size_t frame = 0; frame < batch; ++frame) {
        const int32_t segments = frames.segments[frame];
        EXPECT(segments >= 0 && segments <= static_cast<int32_t>(shape.anchors));
        EXPECT(segments > 0 || check == DIFFSEG_BAD_MAPS);
        const char *labels = static_cast<const char *>(frames.labels) + frame * pixels * label;
        for (size_t pixel = 0; pixel < pixels; ++pixel) {
            uint16_t value = 0;
            std::memcpy(&value, labels + pixel * label, label);
            EXPECT(value < (segments > 0 ? segments : 1));
        }
        if (!frames.attention) continue;
        for (size_t row = 0; row < n; ++row) {
            double sum = 0.0;
            for (size_t pixel = 0; pixel < n; ++pixel)
                sum += static_cast<double>(frames.attention[(frame * n + row) * n + pixel]);
            EXPECT(std::fabs(sum - (segments > 0 ? 1.0 : 0.0)) < 1e-3);
        }
    }
}

void average(Bytes &bytes, const diffseg_config &config, const Shape &shape, diffseg_handle *handle, int32_t last) {
    const size_t n = shape.n[0];
    const int32_t batch = bytes.number(1, config.max_batch), most = static_cast<int32_t>(shape.anchors < 8 ? shape.anchors : 8);
    const int32_t parts = bytes.number(1, most);
    const size_t frames = batch > 0 && batch <= config.max_batch ? static_cast<size_t>(batch) : 1;
    const size_t rows = parts > 0 && parts <= static_cast<int32_t>(shape.anchors) ? static_cast<size_t>(parts) : 1;
    const Memory part = place(frames * n * 4), means = place(frames * rows * n * 4);
    for (size_t index = 0; index < frames * n; ++index) {
        const int32_t value = bytes.number(0, static_cast<int32_t>(rows) - 1);
        std::memcpy(part.get() + 4 * index, &value, 4);
    }
    const diffseg_status status = diffseg_part_means(handle, batch, reinterpret_cast<const int32_t *>(part.get()), parts,
                                                     reinterpret_cast<float *>(means.get()), nullptr);
    EXPECT(status != DIFFSEG_OK || batch <= last);
    if (status != DIFFSEG_OK) return;
    const diffseg_status check = diffseg_check(handle, nullptr, nullptr);
    EXPECT(check == DIFFSEG_OK || check == DIFFSEG_BAD_PARTS);
    for (size_t row = 0; row < frames * rows; ++row) {
        double sum = 0.0;
        for (size_t pixel = 0; pixel < n; ++pixel)
            sum += static_cast<double>(reinterpret_cast<const float *>(means.get())[row * n + pixel]);
        EXPECT(std::fabs(sum) < 1e-3 || std::fabs(sum - 1.0) < 1e-3);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Bytes bytes(data, size);
    const diffseg_config config = draw_config(bytes);
    size_t needed = 0;
    const diffseg_status sized = diffseg_workspace_size(&config, &needed);
    EXPECT(diffseg_status_text(sized)[0]);
    if (sized == DIFFSEG_OK && !is_small(config, needed)) return 0;  // valid, and too slow
    Memory workspace(nullptr, &std::free);
    size_t offered = 0;
    if (bytes.one_in(3) && sized == DIFFSEG_OK) {
        workspace = place(needed);
        offered = bytes.one_in(8) ? bytes.word() % needed : needed;
    }
    diffseg_handle *handle = nullptr;
    const diffseg_status status = diffseg_create(&config, workspace.get(), offered, &handle);
    EXPECT((status == DIFFSEG_OK) == (handle != nullptr));
    EXPECT(sized == DIFFSEG_OK || status == sized);
    if (!handle) return 0;
    Shape shape{};
    for (int level = 0; level < config.levels; ++level)
        shape.n[level] = static_cast<size_t>(config.grids[level][0]) * static_cast<size_t>(config.grids[level][1]);
    shape.anchors = static_cast<size_t>(config.anchors) * static_cast<size_t>(config.anchors);
    int32_t last = 0;
    for (unsigned calls = 1 + bytes.byte() % 3; calls > 0; --calls) {
        if (bytes.one_in(3)) average(bytes, config, shape, handle, last);
        else segment(bytes, config, shape, handle, &last);
    }
    diffseg_destroy(handle);
    return 0;
}
