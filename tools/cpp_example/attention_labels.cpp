// Labels of a picture from its attention maps, with the C library.
//
// The maps are .npy files, float32 or float16, [n, n] each, finest first. The CUDA build uploads them; in an application
// the network has left them on the GPU already.
#include <memory>

#include "diffseg.h"
#include "example.h"
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

void run(const example::Words &words) {
    const std::string &picture_path = words[2], &labels_path = words[3], &overlay_path = words[4];
    const std::vector<float> thresholds = example::thresholds(words[1]);
    example::check_outputs(picture_path, labels_path, overlay_path);
    const cv::Mat picture = example::read_picture(picture_path);

    diffseg_config config{};
    config.struct_size = sizeof config;
    config.abi_version = DIFFSEG_ABI_VERSION;
    config.max_batch = 1;
    config.anchors = std::atoi(words[0].c_str());  // the library refuses 0
    config.iterations = static_cast<int32_t>(thresholds.size());

    // Labels of the picture's own size: the kernels upsample to any size.
    diffseg_frames frames{};
    frames.struct_size = sizeof frames;
    frames.abi_version = DIFFSEG_ABI_VERSION;
    frames.batch = 1;
    frames.height = picture.rows;
    frames.width = picture.cols;
    frames.label_type = DIFFSEG_UINT16;
    for (size_t t = 0; t < thresholds.size() && t < DIFFSEG_MAX_ITERATIONS; ++t) frames.thresholds[t] = thresholds[t];

    std::vector<Memory> maps;
    config.levels = static_cast<int32_t>(words.size() - 5);
    for (int r = 0; r < config.levels && r < DIFFSEG_MAX_LEVELS; ++r) {
        const std::string &word = words[5 + static_cast<size_t>(r)];
        unsigned h = 0, w = 0;
        int read = 0;
        if (std::sscanf(word.c_str(), "%5ux%5u=%n", &h, &w, &read) != 2 || read == 0)
            throw example::Usage("expected HEIGHTxWIDTH=MAPS.npy, found " + word);
        const npy::Maps level = npy::read(word.substr(static_cast<size_t>(read)));
        const size_t n = static_cast<size_t>(h) * w;
        if (level.rows != n || level.columns != n)
            throw std::runtime_error(word + ": expected maps [h*w, h*w], found [" + std::to_string(level.rows) + ", " +
                                     std::to_string(level.columns) + "]");
        const int32_t type = level.item_size == 4 ? DIFFSEG_FLOAT32 : DIFFSEG_FLOAT16;
        if (r > 0 && type != config.input_type)
            throw std::runtime_error(word + ": expected the type of the first level's maps; save all as one type");
        config.input_type = type;
        config.grids[r][0] = static_cast<int32_t>(h);
        config.grids[r][1] = static_cast<int32_t>(w);
        maps.push_back(allocate(level.bytes.size()));
        must(diffseg_upload(0, maps.back().get(), level.bytes.data(), level.bytes.size(), nullptr));
        frames.maps[r] = maps.back().get();
    }

    cv::Mat labels(picture.size(), CV_16U);
    const size_t bytes = labels.total() * labels.elemSize();
    const Memory found = allocate(bytes);
    frames.labels = found.get();

    diffseg_handle *made = nullptr;
    must(diffseg_create(&config, nullptr, 0, &made));
    const std::unique_ptr<diffseg_handle, Destroy> handle(made);
    must(diffseg_run(handle.get(), &frames, nullptr));
    must(diffseg_check(handle.get(), nullptr, nullptr));  // waits, and reports maps that are not probabilities
    must(diffseg_download(0, labels.data, found.get(), bytes, nullptr));
    std::cout << example::write_labels(picture, labels, labels_path, overlay_path) << " segments\n";
}

}  // namespace

int main(int count, char **words) {
    return example::run(count, words, "attention_labels ANCHORS T,... PICTURE LABELS.png OVERLAY.png HxW=MAPS.npy ...",
                        6, 5 + DIFFSEG_MAX_LEVELS, run);
}
