// The transport kernel of GS2D/kernel.py on one core, row by row: the nearest Gaussian of every cell, then the softmax over
// the Gaussians of every cell, written as compressed sparse rows.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace kernel {

constexpr int VECTOR = 8;  // cells: the remainder of a loop costs as much as the rest of it
constexpr float SMALLEST_EXPONENT = -80.0f, LARGEST_EXPONENT = 80.0f;

// One row of the table that Python hands over. x, y: pixels; w: W with z = -|W d|^2; half the log of the determinant.
struct Gaussian {
    float x, y, w[4], half_log_det;
};

struct Grid {
    int rows, columns;
    float stride;

    int clamped(float cell, int count) const { return (int)std::min(std::max(cell, 0.0f), (float)count); }

    // The cells [first, last) of a row whose centres have |W d|^2 <= reach, and perhaps one more on either side.
    std::pair<int, int> cells(const Gaussian& g, int row, float reach) const {
        if (!(reach >= 0)) return {0, 0};
        if (reach == INFINITY) return {0, columns};
        // |W d|^2 = a dx^2 + 2 b dx dy + c dy^2, an ellipse of which the row cuts out an interval.
        const float a = g.w[0] * g.w[0] + g.w[2] * g.w[2], b = g.w[0] * g.w[1] + g.w[2] * g.w[3];
        const float det = g.w[0] * g.w[3] - g.w[1] * g.w[2], dy = (row + 0.5f) * stride - g.y;
        const float inside = (reach - det * det / a * dy * dy) / a;
        if (!(inside >= 0)) return {0, 0};
        const float middle = g.x - b / a * dy, half = std::sqrt(inside);
        const int first = clamped(std::floor((middle - half) / stride - 0.5f), columns);
        const int last = clamped(std::ceil((middle + half) / stride + 0.5f), columns);
        return first < last ? whole_vectors(first, last) : std::pair{first, first};
    }

    // At least the cells [first, last), a multiple of VECTOR where the row has so many.
    std::pair<int, int> whole_vectors(int first, int last) const {
        const int size = std::min((last - first + VECTOR - 1) / VECTOR * VECTOR, columns);
        first = std::min(first, columns - size);
        return {first, first + size};
    }

    // The rows [first, last) that such an ellipse can meet.
    std::pair<int, int> lines(const Gaussian& g, float reach) const {
        if (!(reach >= 0)) return {0, 0};
        if (reach == INFINITY) return {0, rows};
        const float a = g.w[0] * g.w[0] + g.w[2] * g.w[2], det = g.w[0] * g.w[3] - g.w[1] * g.w[2];
        const float half = std::sqrt(reach * a) / std::abs(det);
        const int first = clamped(std::floor((g.y - half) / stride - 0.5f), rows);
        return {first, std::max(first, clamped(std::ceil((g.y + half) / stride + 0.5f), rows))};
    }
};

// Relative error 2e-7 in [-80, 80]: 2^k times a polynomial on [-ln 2 / 2, ln 2 / 2].
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

// |W d|^2 of one Gaussian along rows of cells. Every product and sum is rounded by itself, as PyTorch rounds it: where two
// Gaussians are equally near, both must find the same nearest one. The products go through memory between two loops, since
// compilers would contract a product and a sum within one to a fused multiply-add.
struct Distances {
    const Grid& grid;
    const Gaussian* g = nullptr;
    std::vector<float> along, across, first, second;

    explicit Distances(const Grid& grid)
        : grid(grid), along(grid.columns), across(grid.columns), first(grid.columns), second(grid.columns) {}

    void take(const Gaussian& gaussian) {
        if (g == &gaussian) return;
        g = &gaussian;
        for (int j = 0; j < grid.columns; j++) {
            const float dx = (j + 0.5f) * grid.stride - g->x;
            along[j] = g->w[0] * dx;
            across[j] = g->w[2] * dx;
        }
    }

    // Writes the two terms of the sum for `size` cells of a row from `begin` on: |W d|^2 = first[j] + second[j].
    void row(int row, int begin, int size) {
        const float dy = (row + 0.5f) * grid.stride - g->y, by = g->w[1] * dy, ay = g->w[3] * dy;
        const float *x = &along[begin], *y = &across[begin];
        float *__restrict one = first.data(), *__restrict other = second.data();
        for (int j = 0; j < size; j++) {
            const float a = x[j] + by, b = y[j] + ay;
            one[j] = a * a;
            other[j] = b * b;
        }
    }
};

// nearest [cells]: the smallest |W d|^2 of all Gaussians within `reach`, infinity without any; index: the first that has it.
inline void nearest(const Grid& grid, int n, const Gaussian* gaussians, float reach, float* nearest, int32_t* index) {
    std::fill(nearest, nearest + (int64_t)grid.rows * grid.columns, INFINITY);
    std::fill(index, index + (int64_t)grid.rows * grid.columns, -1);
    Distances distances(grid);
    for (int i = 0; i < n; i++) {
        distances.take(gaussians[i]);
        const auto lines = grid.lines(gaussians[i], reach);
        for (int row = lines.first; row < lines.second; row++) {
            const auto [first, last] = grid.cells(gaussians[i], row, reach);
            if (first == last) continue;
            distances.row(row, first, last - first);
            const float *one = distances.first.data(), *other = distances.second.data();
            float* __restrict best = nearest + (int64_t)row * grid.columns + first;
            int32_t* __restrict owner = index + (int64_t)row * grid.columns + first;
            for (int j = 0; j < last - first; j++) {
                const float distance = one[j] + other[j];
                owner[j] = distance < best[j] ? i : owner[j];
                best[j] = distance < best[j] ? distance : best[j];
            }
        }
    }
}

// Of cells in a row: the likelihood of a Gaussian relative to that of the nearest, also added to the sum of all.
inline void weigh(int size, const float* __restrict first, const float* __restrict second,
                  const float* __restrict nearest, const float* __restrict log_det, float half_log_det,
                  float* __restrict weight, float* __restrict sum) {
    for (int j = 0; j < size; j++) {
        const float exponent = (nearest[j] - (first[j] + second[j])) + (log_det[j] - half_log_det);
        weight[j] = exponential(std::min(std::max(exponent, SMALLEST_EXPONENT), LARGEST_EXPONENT));
        sum[j] += weight[j];
    }
}

// The cells of a row that one Gaussian visits.
struct Span {
    int gaussian, row, first, last;
};

// What a thread has computed last; its next kernel takes the same memory, which the system would be slow to give anew.
thread_local std::vector<Span> spans;
thread_local std::vector<int32_t> indices;
thread_local std::vector<float> data;

// K in compressed sparse rows, the background's last: indptr [n + 2] here, `indices` and `data` above. nearest and index
// [cells]: of `nearest`; log_odds [cells]: of the background against that Gaussian, infinite where it has all or nothing.
inline void rows(const Grid& grid, int n, const Gaussian* gaussians, const float* nearest, const int32_t* index,
                 const float* log_odds, float smallest, int32_t* indptr) {
    const int64_t cells = (int64_t)grid.rows * grid.columns;
    std::vector<float> log_det(cells, 0.0f), limit(grid.rows, -INFINITY), sum(cells, 0.0f), share(cells);
    // Skipped is what has less than smallest / n of a cell, so that all that is skipped together has less than `smallest`.
    const float margin = std::log(n / smallest);
    for (int64_t m = 0; m < cells; m++) {
        if (index[m] < 0) continue;
        log_det[m] = gaussians[index[m]].half_log_det;
        float& most = limit[m / grid.columns];
        most = std::max(most, nearest[m] + log_det[m] + margin - std::max(log_odds[m], 0.0f));
    }
    const float largest = *std::max_element(limit.begin(), limit.end());
    int64_t visited = 0;
    spans.clear();
    for (int i = 0; i < n; i++) {
        const Gaussian& g = gaussians[i];
        const auto lines = grid.lines(g, largest - g.half_log_det);
        for (int row = lines.first; row < lines.second; row++) {
            const auto [first, last] = grid.cells(g, row, limit[row] - g.half_log_det);
            if (first < last) spans.push_back({i, row, first, last});
            visited += last - first;
        }
    }
    const int64_t size = visited + cells + 1;  // one more: a share is written before it is known to be too small
    if (size > INT32_MAX) throw std::bad_alloc();
    if ((int64_t)data.size() < size) {
        data.resize(size + size / 4);
        indices.resize(data.size());
    }
    Distances distances(grid);
    float* weight = data.data();
    for (const Span& span : spans) {
        const int64_t cell = (int64_t)span.row * grid.columns + span.first;
        const int count = span.last - span.first;
        distances.take(gaussians[span.gaussian]);
        distances.row(span.row, span.first, count);
        weigh(count, distances.first.data(), distances.second.data(), nearest + cell, &log_det[cell],
              gaussians[span.gaussian].half_log_det, weight, &sum[cell]);
        weight += count;
    }
    for (int64_t m = 0; m < cells; m++) share[m] = 1 / (sum[m] + std::exp(log_odds[m]));
    weight = data.data();
    const Span *span = spans.data(), *end = span + spans.size();
    float* masses = data.data();
    int32_t *owned = indices.data(), stored = 0;  // never ahead of the weights that are still to be read
    const auto store = [&](float mass, int32_t cell) {
        masses[stored] = mass;
        owned[stored] = cell;
        stored += mass > smallest;
    };
    indptr[0] = 0;
    for (int i = 0; i < n; i++) {
        for (; span < end && span->gaussian == i; span++) {
            const int32_t cell = span->row * grid.columns + span->first, count = span->last - span->first;
            const float* part = &share[cell];
            for (int32_t j = 0; j < count; j++) store(weight[j] * part[j], cell + j);
            weight += count;
        }
        indptr[i + 1] = stored;
    }
    for (int64_t m = 0; m < cells; m++) {
        // A sum says nothing, and may be infinite, where there is no nearest Gaussian to relate it to.
        const float odds = std::exp(-log_odds[m]);
        store(odds > 0 ? 1 / (1 + sum[m] * odds) : 1, (int32_t)m);
    }
    indptr[n + 1] = stored;
}

}  // namespace kernel
