// A rectangle of a bilinearly rescaled image, in the fixed-point arithmetic of datasets/transforms.py.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace resize {

// Where the pixels of one axis of the result come from: source pixels first and second, weights of 1/2048.
struct Tap {
    int32_t first, second, weight_first, weight_second;
};

// image: rows of `pitch` bytes, 3 channels; out [height, width, 3].
inline void rectangle(const uint8_t* image, int64_t pitch, int height, int width, const Tap* rows, const Tap* columns,
                      uint8_t* out) {
    const int length = 3 * width;
    std::vector<int16_t> above(length), below(length);  // rescaled along x, in 1/128
    int in_above = -1, in_below = -1;
    auto along_x = [&](int row, int16_t* result) {
        const uint8_t* source = image + row * pitch;
        for (int j = 0; j < width; j++) {
            const Tap& tap = columns[j];
            const uint8_t *one = source + 3 * tap.first, *other = source + 3 * tap.second;
            for (int channel = 0; channel < 3; channel++)
                result[3 * j + channel] = (one[channel] * tap.weight_first + other[channel] * tap.weight_second) >> 4;
        }
    };
    for (int i = 0; i < height; i++, out += length) {
        const Tap& tap = rows[i];
        if (in_above != tap.first) {
            if (in_below == tap.first) {
                std::swap(above, below);
                std::swap(in_above, in_below);
            } else {
                along_x(in_above = tap.first, above.data());
            }
        }
        if (in_below != tap.second) along_x(in_below = tap.second, below.data());
        const int16_t *a = above.data(), *b = below.data();
        const int32_t up = tap.weight_first, down = tap.weight_second;
        for (int j = 0; j < length; j++) out[j] = (((up * a[j]) >> 16) + ((down * b[j]) >> 16) + 2) >> 2;
    }
}

}  // namespace resize
