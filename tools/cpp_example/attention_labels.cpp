// Labels from attention maps, with the C library: attention_labels OUT.npy HxW ANCHORS THRESHOLDS HxW=MAPS.npy...
//
// The maps are .npy files, float32 or float16, [n, n] each, finest first. With the CUDA build they are uploaded; in an
// application they would lie on the GPU already, where the network left them.
#include <cstdio>
#include <iostream>
#include <memory>

#include "diffseg.h"
#include "npy.h"

namespace {

void must(diffseg_status status) {
    if (status != DIFFSEG_OK)
        throw std::runtime_error(std::string(diffseg_status_text(status)) + " (" + diffseg_last_error() + ")");
}

struct FreeMemory {
    void operator()(void *memory) const { diffseg_free(0, memory); }
};
using Memory = std::unique_ptr<void, FreeMemory>;

Memory allocate(size_t bytes) {
    void *memory = nullptr;
    must(diffseg_allocate(0, bytes, &memory));
    return Memory(memory);
}

struct Destroy {
    void operator()(diffseg_handle *handle) const { diffseg_destroy(handle); }
};

void parse_size(const std::string &text, int32_t *height, int32_t *width) {
    if (std::sscanf(text.c_str(), "%dx%d", height, width) != 2)
        throw std::runtime_error("expected HEIGHTxWIDTH, found " + text);
}

void run(int count, char **words) {
    diffseg_config config{};
    config.struct_size = sizeof config;
    config.abi_version = DIFFSEG_ABI_VERSION;
    config.max_batch = 1;
    config.anchors = std::stoi(words[3]);
    const std::vector<float> thresholds = npy::numbers(words[4]);
    config.iterations = static_cast<int32_t>(thresholds.size());
    for (size_t t = 0; t < thresholds.size() && t < DIFFSEG_MAX_ITERATIONS; ++t) config.thresholds[t] = thresholds[t];

    diffseg_frames frames{};
    frames.struct_size = sizeof frames;
    frames.abi_version = DIFFSEG_ABI_VERSION;
    frames.batch = 1;
    parse_size(words[2], &frames.height, &frames.width);

    std::vector<Memory> maps;
    config.levels = count - 5;
    for (int r = 0; r < config.levels && r < DIFFSEG_MAX_LEVELS; ++r) {
        const std::string word = words[5 + r];
        const size_t equals = word.find('=');
        if (equals == std::string::npos) throw std::runtime_error("expected HxW=MAPS.npy, found " + word);
        parse_size(word.substr(0, equals), &config.grids[r][0], &config.grids[r][1]);
        const npy::Array level = npy::read(word.substr(equals + 1));
        const size_t n = static_cast<size_t>(config.grids[r][0]) * static_cast<size_t>(config.grids[r][1]);
        if (level.shape.size() != 2 || level.shape[0] != n || level.shape[1] != n)
            throw std::runtime_error(word + ": expected maps [h*w, h*w]");
        const int32_t type = level.type == "<f4" ? DIFFSEG_FLOAT32 : level.type == "<f2" ? DIFFSEG_FLOAT16 : -1;
        if (type < 0 || (r > 0 && type != config.input_type))
            throw std::runtime_error(word + ": expected float32 or float16, the same for all levels");
        config.input_type = type;
        maps.push_back(allocate(level.bytes.size()));
        must(diffseg_upload(0, maps.back().get(), level.bytes.data(), level.bytes.size(), nullptr));
        frames.maps[r] = maps.back().get();
    }

    npy::Array labels;
    labels.type = "<u2";
    frames.label_type = DIFFSEG_UINT16;
    labels.shape = {static_cast<size_t>(frames.height), static_cast<size_t>(frames.width)};
    labels.bytes.resize(npy::count(labels.shape) * 2);
    const Memory found = allocate(labels.bytes.size()), segments = allocate(sizeof(int32_t));
    frames.labels = found.get();
    frames.segments = static_cast<int32_t *>(segments.get());

    diffseg_handle *made = nullptr;
    must(diffseg_create(&config, nullptr, 0, &made));
    const std::unique_ptr<diffseg_handle, Destroy> handle(made);
    must(diffseg_run(handle.get(), &frames, nullptr));
    must(diffseg_check(handle.get(), nullptr, nullptr));  // waits, and tells of maps that are no probabilities
    int32_t number = 0;
    must(diffseg_download(0, labels.bytes.data(), found.get(), labels.bytes.size(), nullptr));
    must(diffseg_download(0, &number, segments.get(), sizeof number, nullptr));
    npy::write(words[1], labels);
    std::cout << number << " proposals\n";
}

}  // namespace

int main(int count, char **words) {
    if (count < 6) {
        std::cerr << "usage: attention_labels OUT.npy HxW ANCHORS THRESHOLD,... HxW=MAPS.npy ...\n";
        return 2;
    }
    try {
        run(count, words);
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
    return 0;
}
