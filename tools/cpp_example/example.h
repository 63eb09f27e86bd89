// Shared by the examples: reading a picture, writing labels and an overlay, and errors in one line.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <opencv2/core.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

namespace example {

using Words = std::vector<std::string>;

// An invalid command line: exit code 2. Every other exception: 1.
struct Usage : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// One threshold per iteration, with commas between them.
inline std::vector<float> thresholds(const std::string &text) {
    std::vector<float> values;
    std::stringstream words(text + ",");
    for (std::string word; std::getline(words, word, ',');) {
        char *end = nullptr;
        values.push_back(std::strtof(word.c_str(), &end));
        if (end == word.c_str() || *end || !std::isfinite(values.back()) || values.back() <= 0)
            throw Usage("thresholds: expected numbers above 0 such as 1.1,1.1,1.1, found " + text);
    }
    return values;
}

inline std::runtime_error failure(const std::string &path, const std::string &what) {
    return std::runtime_error(path + ": " + what + (errno ? std::string(" (") + std::strerror(errno) + ")" : ""));
}

// A picture as a frame: uint8 [H, W, 3] BGR.
inline cv::Mat read_picture(const std::string &path) {
    errno = 0;
    if (!std::ifstream(path)) throw failure(path, "cannot be read");
    const cv::Mat picture = cv::imread(path, cv::IMREAD_COLOR);
    if (picture.type() != CV_8UC3 || picture.empty())
        throw std::runtime_error(path + ": expected a whole PNG, JPEG or other picture that OpenCV reads");
    return picture;
}

// The frame at the engine's size: averaged along an axis that shrinks, interpolated along one that grows. INTER_AREA
// does not average if one of the axes grows, so this takes two steps.
inline cv::Mat resize_frame(const cv::Mat &picture, const cv::Size &size) {
    const cv::Size smaller(std::min(size.width, picture.cols), std::min(size.height, picture.rows));
    cv::Mat shrunk = picture, grown;
    if (smaller != picture.size()) cv::resize(picture, shrunk, smaller, 0, 0, cv::INTER_AREA);
    if (smaller == size) return shrunk;
    cv::resize(shrunk, grown, size, 0, 0, cv::INTER_LINEAR);
    return grown;
}

// A frame in planes of float32: red, green, blue, as engines of `--input float-nchw-rgb` take them. Their description, the
// entry "diffseg" of the file's metadata, says whether the brightest is 255 or 1.
inline std::vector<float> planes(const cv::Mat &frame, const std::string &description) {
    const double scale = description.find("\"float-nchw-rgb-unit\"") == std::string::npos ? 1 : 1 / 255.0;
    std::vector<float> values(frame.total() * 3);
    std::vector<cv::Mat> colours;
    cv::split(frame, colours);
    for (int i = 0; i < 3; ++i) {
        cv::Mat plane(frame.size(), CV_32F, values.data() + frame.total() * i);
        colours[2 - i].convertTo(plane, CV_32F, scale);
    }
    return values;
}

// Called before the work begins, so that a wrong name costs no time.
inline void check_outputs(const std::string &picture, const std::string &labels, const std::string &overlay) {
    const auto suffix = [](const std::string &path) { return std::filesystem::path(path).extension(); };
    if (suffix(labels) != ".png") throw Usage(labels + ": expected a name that ends in .png, which loses nothing");
    if (!cv::haveImageWriter(overlay)) throw Usage(overlay + ": expected a name that ends in .png or .jpg");
    std::error_code none;
    const auto place = [&](const std::string &path) { return std::filesystem::weakly_canonical(path, none); };
    if (place(labels) == place(overlay)) throw Usage(overlay + ": expected another file than the labels'");
    for (const std::string &path : {labels, overlay}) {
        if (place(path) == place(picture)) throw Usage(path + ": is the picture; name another file");
        const std::filesystem::path folder = std::filesystem::path(path).parent_path();
        if (!folder.empty() && !std::filesystem::is_directory(folder, none))
            throw std::runtime_error(path + ": its folder does not exist; make it first");
    }
}

// Writes to a temporary name first, so that a file under the final name is always whole.
inline void write_picture(const std::string &path, const cv::Mat &picture) {
    std::vector<uchar> bytes;
    cv::imencode(std::filesystem::path(path).extension().string(), picture, bytes);
    const std::string part = path + ".part";
    errno = 0;
    std::ofstream file(part, std::ios::binary);
    const bool opened = file.is_open();
    file.write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (file && std::rename(part.c_str(), path.c_str()) == 0) return;
    const std::runtime_error error = failure(path, "cannot be written; name a folder with the right and the space");
    if (opened) std::remove(part.c_str());
    throw error;
}

// Resizes labels (uint8, uint16 or int32, of any size) to the picture's size and numbers them without gaps. Writes them
// as a picture of 8 or 16 bits, and as colours over the picture. Returns the number of segments.
inline int write_labels(const cv::Mat &picture, cv::Mat labels, const std::string &path, const std::string &overlay) {
    labels.convertTo(labels, CV_16U);  // at most 128 x 128 proposals
    cv::resize(labels, labels, picture.size(), 0, 0, cv::INTER_NEAREST_EXACT);
    std::vector<ushort> number(65536);
    for (const ushort label : cv::Mat_<ushort>(labels)) number[label] = 1;
    ushort count = 0;
    for (ushort &present : number) present = present ? count++ : 0;
    // Hues advance by the golden angle, so that consecutive numbers have different colours.
    cv::Mat hues(1, count, CV_8UC3), colours;
    for (int i = 0; i < count; ++i) hues.at<cv::Vec3b>(i) = cv::Vec3b(cvRound(i * 68.75) % 180, 230, 255);
    cv::cvtColor(hues, colours, cv::COLOR_HSV2BGR);
    cv::Mat drawn = picture.clone();
    for (int y = 0; y < labels.rows; ++y) {
        for (int x = 0; x < labels.cols; ++x) {
            ushort &label = labels.at<ushort>(y, x);
            label = number[label];
            drawn.at<cv::Vec3b>(y, x) = drawn.at<cv::Vec3b>(y, x) / 2 + colours.at<cv::Vec3b>(label) / 2;
        }
    }
    if (count <= 256) labels.convertTo(labels, CV_8U);
    write_picture(path, labels);
    write_picture(overlay, drawn);
    return count;
}

// Runs a program: its exceptions become one line and an exit code.
template <class Run>
int run(int count, char **words, const char *usage, size_t least, size_t most, Run body) {
    int code = 1;
    std::string text;
    try {
        const Words given(words + 1, words + count);
        if (given.size() < least || given.size() > most) throw Usage(std::string("usage: ") + usage);
        body(given);
        return 0;
    } catch (const Usage &error) {
        code = 2;
        text = error.what();
    } catch (const std::exception &error) {
        text = error.what();
    }
    while (!text.empty() && text.back() == '\n') text.pop_back();
    std::replace(text.begin(), text.end(), '\n', ' ');
    std::cerr << text << '\n';
    return code;
}

}  // namespace example
