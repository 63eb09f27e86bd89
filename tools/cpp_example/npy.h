// Attention maps from NumPy's .npy files: float32 or float16 [rows, columns], C order, little endian.
#pragma once

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace npy {

struct Maps {
    size_t item_size = 0, rows = 0, columns = 0;
    std::vector<char> bytes;
};

inline Maps read(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(path + ": cannot be read");
    unsigned char start[10] = {};
    file.read(reinterpret_cast<char *>(start), sizeof start);
    std::string header(start[8] + 256u * start[9], ' ');
    file.read(header.data(), static_cast<std::streamsize>(header.size()));
    Maps maps;
    if (!file || std::string(start, start + 7) != "\x93NUMPY\x01" ||
        std::sscanf(header.c_str(), "{'descr': '<f%1zu', 'fortran_order': False, 'shape': (%6zu, %6zu), }",
                    &maps.item_size, &maps.rows, &maps.columns) != 3 ||
        (maps.item_size != 4 && maps.item_size != 2))
        throw std::runtime_error(path + ": expected a .npy of float32 or float16 maps [n, n] in C order");
    const size_t bytes = maps.rows * maps.columns * maps.item_size;
    if (std::filesystem::file_size(path) < sizeof start + header.size() + bytes)
        throw std::runtime_error(path + ": the file ends too early; save it again");
    maps.bytes.resize(bytes);
    file.read(maps.bytes.data(), static_cast<std::streamsize>(bytes));
    if (!file) throw std::runtime_error(path + ": cannot be read");
    return maps;
}

}  // namespace npy
