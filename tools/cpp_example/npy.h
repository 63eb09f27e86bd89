// NumPy's .npy files, as far as the examples need them: C order, little endian. And pictures as binary PPM.
#pragma once

#include <cstdint>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace npy {

struct Array {
    std::string type;            // as NumPy writes it: "<f4", "|u1"
    std::vector<size_t> shape;
    std::vector<char> bytes;
};

inline size_t item_size(const std::string &type) { return static_cast<size_t>(std::stoul(type.substr(2))); }

inline size_t count(const std::vector<size_t> &shape) {
    size_t product = 1;
    for (const size_t side : shape) product *= side;
    return product;
}

inline std::string value_of(const std::string &header, const std::string &key, char first, char last) {
    const size_t start = header.find(first, header.find("'" + key + "':") + key.size() + 3);
    const size_t end = header.find(last, start + 1);
    if (start == std::string::npos || end == std::string::npos) throw std::runtime_error("not a .npy header");
    return header.substr(start + 1, end - start - 1);
}

inline Array read(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    char magic[8] = {};
    file.read(magic, sizeof magic);
    if (!file || std::string(magic, 6) != "\x93NUMPY" || magic[6] != 1)
        throw std::runtime_error(path + ": expected a .npy file of version 1");
    unsigned char length[2] = {};
    file.read(reinterpret_cast<char *>(length), 2);
    std::string header(length[0] + 256u * length[1], ' ');
    file.read(header.data(), static_cast<std::streamsize>(header.size()));
    if (header.find("'fortran_order': False") == std::string::npos)
        throw std::runtime_error(path + ": expected C order");
    Array array;
    array.type = value_of(header, "descr", '\'', '\'');
    std::stringstream sides(value_of(header, "shape", '(', ')'));
    for (std::string side; std::getline(sides, side, ',');) {
        if (side.find_first_of("0123456789") != std::string::npos) array.shape.push_back(std::stoul(side));
    }
    array.bytes.resize(count(array.shape) * item_size(array.type));
    file.read(array.bytes.data(), static_cast<std::streamsize>(array.bytes.size()));
    if (!file) throw std::runtime_error(path + ": the file ends too early");
    return array;
}

inline void write(const std::string &path, const Array &array) {
    std::string header = "{'descr': '" + array.type + "', 'fortran_order': False, 'shape': (";
    for (const size_t side : array.shape) header += std::to_string(side) + ",";
    header += "), }";
    header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10 - 1, ' ');
    header += '\n';
    std::ofstream file(path, std::ios::binary);
    file.write("\x93NUMPY\x01\x00", 8);
    const char length[2] = {static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
    file.write(length, 2);
    file.write(header.data(), static_cast<std::streamsize>(header.size()));
    file.write(array.bytes.data(), static_cast<std::streamsize>(array.bytes.size()));
    if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}

// A picture as a frame, uint8 [H, W, 3] BGR: a .npy that holds one, or a binary PPM (`convert in.png out.ppm`).
inline Array read_frame(const std::string &path) {
    Array frame;
    if (path.size() > 4 && path.substr(path.size() - 4) == ".npy") {
        frame = read(path);
    } else {
        std::ifstream file(path, std::ios::binary);
        std::string magic;
        size_t width = 0, height = 0, most = 0;
        file >> magic >> width >> height >> most;
        if (!file || magic != "P6" || most != 255) throw std::runtime_error(path + ": expected a binary PPM or a .npy");
        file.get();
        frame.type = "|u1";
        frame.shape = {height, width, 3};
        frame.bytes.resize(height * width * 3);
        file.read(frame.bytes.data(), static_cast<std::streamsize>(frame.bytes.size()));
        if (!file) throw std::runtime_error(path + ": the file ends too early");
        for (size_t pixel = 0; pixel < frame.bytes.size(); pixel += 3) std::swap(frame.bytes[pixel], frame.bytes[pixel + 2]);
    }
    if (frame.type != "|u1" || frame.shape.size() != 3 || frame.shape[2] != 3)
        throw std::runtime_error(path + ": expected a frame uint8 [H, W, 3]");
    return frame;
}

// Numbers between commas.
inline std::vector<float> numbers(const std::string &text) {
    std::vector<float> values;
    std::stringstream words(text);
    for (std::string word; std::getline(words, word, ',');) values.push_back(std::stof(word));
    return values;
}

}  // namespace npy
