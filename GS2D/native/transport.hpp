// The transport kernel of losses/transport.py on one core: which tiles of 4 x 4 cells each Gaussian reaches, and the
// softmax over the Gaussians of every cell; and the product of that kernel with a density.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace transport {

constexpr int SIDE = 4, CELLS = SIDE * SIDE;
constexpr float SMALLEST_EXPONENT = -40.0f, LARGEST_EXPONENT = 80.0f;
constexpr float FAR = 1e30f;  // stands for infinity, of which the difference to itself is 0

// One row of the table that Python hands over. x, y: pixels; w: W with z = -|W d|^2; the ellipse inside which the
// Gaussian is visited: half its width and height, the correlation r of x and y, sqrt(1 - r^2).
struct Gaussian {
    float x, y, w[4], half_log_det, width, height, r, rest;
};

// Before it becomes an int: points may lie anywhere.
inline float inside(float value, int largest) { return std::min(std::max(value, 0.0f), (float)largest); }

struct Grid {
    int rows, columns;  // of tiles
    float stride;

    // Calls visit(tile) for each tile whose cell centres' rectangle meets the ellipse, row by row.
    template <class Visit>
    void visit(const Gaussian& g, Visit visit) const {
        const float step = SIDE * stride, half = 0.5f * (SIDE - 1) * stride;
        const int top = (int)std::floor(inside((g.y - g.height - half) / step - 0.5f, rows));
        const int bottom = (int)std::ceil(inside((g.y + g.height + half) / step - 0.5f, rows - 1));
        for (int row = top; row <= bottom; row++) {
            const float middle = ((row + 0.5f) * step - g.y) / g.height, margin = half / g.height;
            const float low = middle - margin, high = middle + margin;
            if (!(low <= 1 && high >= -1)) continue;
            // Rightmost within the band at the v nearest to r, leftmost at the one nearest to -r.
            const float v = std::min(std::max(g.r, low), high), u = std::min(std::max(-g.r, low), high);
            const float right = g.x + half + g.width * (g.r * v + g.rest * std::sqrt(std::max(1 - v * v, 0.0f)));
            const float left = g.x - half + g.width * (g.r * u - g.rest * std::sqrt(std::max(1 - u * u, 0.0f)));
            const int first = (int)std::ceil(inside(left / step - 0.5f, columns));
            const int last = (int)std::floor(inside(right / step - 0.5f, columns - 1));
            if (right < 0.5f * step) continue;
            for (int column = first; column <= last; column++) visit(row * columns + column);
        }
    }
};

// Relative error 2e-7 in [-40, 80]: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2].
inline float exponential(float x) {
    const float k = std::floor(x * 1.44269504f + 0.5f);
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const int32_t bits = ((int32_t)k + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return (p * r * r + r + 1.0f) * scale;
}

// 1/2 d^T Sigma^-1 d for the cells of a tile, rounded as PyTorch rounds it, one operation at a time: where two Gaussians
// are equally near, both must find the same nearest one.
#if defined(__clang__)
__attribute__((noinline)) inline void distances(const Gaussian& g, const float* x, const float* y, float* out) {
#pragma clang fp contract(off)
#else
__attribute__((noinline, optimize("fp-contract=off"))) inline void distances(const Gaussian& g, const float* x,
                                                                             const float* y, float* out) {
#endif
    for (int i = 0; i < CELLS; i++) {
        const float dx = x[i] - g.x, dy = y[i] - g.y;
        const float first = g.w[0] * dx + g.w[1] * dy, second = dx * g.w[2] + dy * g.w[3];
        const float distance = first * first + second * second;
        out[i] = distance < FAR ? distance : FAR;
    }
}

// Where the entries of each tile begin: starts [tiles + 1].
inline void count(const Grid& grid, int n, const Gaussian* gaussians, int64_t* starts) {
    const int tiles = grid.rows * grid.columns;
    std::fill(starts, starts + tiles + 1, 0);
    for (int i = 0; i < n; i++) grid.visit(gaussians[i], [&](int tile) { starts[tile + 1]++; });
    for (int t = 0; t < tiles; t++) starts[t + 1] += starts[t];
}

// annotation [T], mass [CELLS, T] and background [tiles, CELLS] for the T entries that `count` found; log_odds: of the
// background against n*, before the terms that depend on n*.
inline void fill(const Grid& grid, int n, const Gaussian* gaussians, float log_odds, const int64_t* starts,
                 int64_t* annotation, float* mass, float* background) {
    const int tiles = grid.rows * grid.columns;
    const int64_t entries = starts[tiles];
    std::vector<int64_t> next(starts, starts + tiles);
    for (int i = 0; i < n; i++) grid.visit(gaussians[i], [&](int tile) { annotation[next[tile]++] = i; });
    std::vector<float> block;  // [entries of the tile, CELLS]
    for (int t = 0; t < tiles; t++) {
        const int64_t begin = starts[t], size = starts[t + 1] - begin;
        float x[CELLS], y[CELLS], nearest[CELLS], log_det[CELLS], sum[CELLS], share[CELLS];
        for (int i = 0; i < CELLS; i++) {
            x[i] = (t % grid.columns * SIDE + i % SIDE + 0.5f) * grid.stride;
            y[i] = (t / grid.columns * SIDE + i / SIDE + 0.5f) * grid.stride;
            nearest[i] = INFINITY;
            log_det[i] = sum[i] = 0;
        }
        block.resize(size * CELLS);
        for (int64_t e = 0; e < size; e++) {
            const Gaussian& g = gaussians[annotation[begin + e]];
            float* d = &block[e * CELLS];
            distances(g, x, y, d);
            for (int i = 0; i < CELLS; i++) {
                const bool nearer = d[i] < nearest[i];
                nearest[i] = nearer ? d[i] : nearest[i];
                log_det[i] = nearer ? g.half_log_det : log_det[i];
            }
        }
        for (int64_t e = 0; e < size; e++) {
            const float half_log_det = gaussians[annotation[begin + e]].half_log_det;
            float* d = &block[e * CELLS];
            for (int i = 0; i < CELLS; i++) {
                const float exponent = (nearest[i] - d[i]) + (log_det[i] - half_log_det);
                d[i] = exponential(std::min(std::max(exponent, SMALLEST_EXPONENT), LARGEST_EXPONENT));
                sum[i] += d[i];
            }
        }
        for (int i = 0; i < CELLS; i++) {
            const float unbounded = log_odds + 2 * nearest[i] - log_det[i] - std::log(sum[i]);
            const float odds = size ? std::min(unbounded, -SMALLEST_EXPONENT) : -SMALLEST_EXPONENT;
            background[(int64_t)t * CELLS + i] = 1 / (1 + std::exp(-odds));
            share[i] = 1 / ((1 + std::exp(odds)) * sum[i]);
        }
        for (int64_t e = 0; e < size; e++)
            for (int i = 0; i < CELLS; i++) mass[i * entries + begin + e] = block[e * CELLS + i] * share[i];
    }
}

// A kernel as Python keeps it: tile t has the groups starts[t] to starts[t + 1] of `width` annotations each, whose shares of
// the tile's lanes are mass [lanes, width, groups].
struct Blocks {
    int64_t tiles, lanes, width, groups;
    const int64_t *annotation, *starts;  // [width, groups], [tiles + 1]
    const float* mass;

    const float* shares(int64_t lane, int64_t place) const { return mass + (lane * width + place) * groups; }
};

// received [annotations] += K's rows of the annotations times cells [tiles, lanes].
inline void send(const Blocks& k, const float* cells, double* received) {
    std::vector<float> sent;
    for (int64_t t = 0; t < k.tiles; t++) {
        const int64_t begin = k.starts[t], size = k.starts[t + 1] - begin;
        for (int64_t place = 0; place < k.width; place++) {
            sent.assign(size, 0.0f);
            for (int64_t lane = 0; lane < k.lanes; lane++) {
                const float cell = cells[t * k.lanes + lane], *share = k.shares(lane, place) + begin;
                for (int64_t e = 0; e < size; e++) sent[e] += cell * share[e];
            }
            const int64_t* annotation = k.annotation + place * k.groups + begin;
            for (int64_t e = 0; e < size; e++) received[annotation[e]] += sent[e];
        }
    }
}

// cells [tiles, lanes] = the transposed of these rows times gradient [annotations].
inline void send_back(const Blocks& k, const float* gradient, float* cells) {
    constexpr int64_t SUMS = 8;  // side by side, so that they fill a vector
    std::vector<float> weights;
    std::fill(cells, cells + k.tiles * k.lanes, 0.0f);
    for (int64_t t = 0; t < k.tiles; t++) {
        const int64_t begin = k.starts[t], size = k.starts[t + 1] - begin;
        weights.resize(size);
        for (int64_t place = 0; place < k.width; place++) {
            const int64_t* annotation = k.annotation + place * k.groups + begin;
            for (int64_t e = 0; e < size; e++) weights[e] = gradient[annotation[e]];
            for (int64_t lane = 0; lane < k.lanes; lane++) {
                const float* share = k.shares(lane, place) + begin;
                float sums[SUMS] = {}, total = 0;
                int64_t e = 0;
                for (; e + SUMS <= size; e += SUMS)
                    for (int64_t i = 0; i < SUMS; i++) sums[i] += share[e + i] * weights[e + i];
                for (; e < size; e++) total += share[e] * weights[e];
                for (float sum : sums) total += sum;
                cells[t * k.lanes + lane] += total;
            }
        }
    }
}

}  // namespace transport
