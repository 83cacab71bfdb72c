// Draws 2D Gaussians on one core, and takes the gradients: the fast form of rasterize_reference in GS2D/rasterize.py,
// which says what is drawn.
//
// The image is cut into tiles of one vector x 32 rows. Every tile has a list of the Gaussians that reach it, in drawing
// order, with the rows they reach. A tile is drawn front to back, its loss is taken, and it is walked back to front for
// the gradients while all of it is in the nearest cache. Tiles that no Gaussian reaches are not looked at.
//
// Let g be the gradient by a pixel's color, and behind_n what the Gaussians after n alone would give on black. The
// gradient by alpha_n is T_n d_n with d_n = sum_k g_k (c_nk - behind_nk). So the walk back carries one number a pixel,
// sum_k g_k behind_nk, to which each step adds alpha_n d_n, and nothing is divided by 1 - alpha.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int ROWS = 32;
constexpr float MAX_ALPHA = 0.999f, MIN_TRANSMITTANCE = 1e-4f;
constexpr float MIN_LEVEL = -7.9943534368588579f;  // log2(1 / 255), the smallest alpha that is drawn
constexpr int32_t MAX_ALPHA_BITS = 0x3f7fbe77, ONE_BITS = 0x3f800000;
constexpr double LOG2_E = 1.4426950408889634, PI = 3.1415926535897932;

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef std::make_integer_sequence<int, LANES> Lanes;

// x in all lanes (0 + x would not be x for x = -0, and costs an addition).
inline vf broadcast(float x) { return x - vf{}; }

inline vf keep(vi mask, vf v) { return mask ? v : vf{}; }

template <int... I>
inline vf lane_numbers(std::integer_sequence<int, I...>) {
    return vf{(float)I...};
}

// Sums of neighboring lanes: those of a, then those of b.
template <int... I>
inline vf add_pairs(vf a, vf b, std::integer_sequence<int, I...>) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, 2 * I...) + __builtin_shufflevector(a, b, 2 * I + 1 ...);
#else
    return __builtin_shuffle(a, b, vi{2 * I...}) + __builtin_shuffle(a, b, vi{2 * I + 1 ...});
#endif
}

// sums[k] += the sum of v[k]'s lanes.
inline void add_lanes(vf (&v)[8], float* sums) {
    int count = 8;
    for (int width = LANES; width > 1; width /= 2) {
        if (count == 1) v[0] = add_pairs(v[0], v[0], Lanes());
        for (int i = 0; i < count / 2; i++) v[i] = add_pairs(v[2 * i], v[2 * i + 1], Lanes());
        count = std::max(count / 2, 1);
    }
    float totals[8];
    std::memcpy(totals, v, sizeof totals);
    for (int k = 0; k < 8; k++) sums[k] += totals[k];
}

// 2^p within 2e-7 of the value for -126 <= p <= 0; no number in particular elsewhere.
inline vf exp2_negative(vf p) {
    const vf shifted = p + 12582912.0f;  // 1.5 * 2^23: the last bits of the sum are the integer nearest to p
    const vf r = p - (shifted - 12582912.0f);
    vf e = 0.00132647272f * r + 0.00967151269f;  // minimax for 2^r on [-1/2, 1/2], 9e-8
    e = e * r + 0.0555073374f;
    e = e * r + 0.240222421f;
    e = e * r + 0.693146978f;
    e = e * r + 1.0f;
    return (vf)((vu)e + ((vu)shifted << 23));
}

const struct Steps {  // row[i]: i in all lanes
    vf row[ROWS];
    Steps() {
        for (int i = 0; i < ROWS; i++) row[i] = broadcast(i);
    }
} steps;

struct Splat {  // alpha = 2^(a dx^2 + b dx dy + c dy^2)
    float x, y, a, b, c, red, green, blue;
};

struct Span {  // rows [row0, row1) of a column of tiles that a Gaussian reaches
    int32_t splat, column, row0, row1;
};

struct Entry {  // one Gaussian in a tile's list; rows counted from the tile's first
    int32_t splat;
    uint8_t row0, row1;
    int rows() const { return row1 - row0; }
};

struct Row {  // drawing: transmittance and color; walking back: sum_k g_k behind_k and g
    vf t, red, green, blue;
};

struct Sample {  // what a Gaussian did to a row: alpha (0 where it was not drawn) and T alpha
    vf alpha, weight;
};

enum { X, Y, XX, XY, YY, RED, GREEN, BLUE, SUMS };  // moments over the pixels of -dL/dq, then the gradient by the color

struct Scene {
    int width, height, columns, tile_rows;
    std::vector<Splat> splats;
    std::vector<Span> spans;
    std::vector<Entry> entries;
    std::vector<size_t> starts;  // of each tile's entries
    std::vector<Sample> samples;
    std::vector<float> sums;  // [N, SUMS]

    Scene(int n, int width, int height)
        : width(width),
          height(height),
          columns((width + LANES - 1) / LANES),
          tile_rows((height + ROWS - 1) / ROWS),
          splats(n) {}

    // Find the pixels where Gaussian i, with conic (a, b, c), gives alpha >= 1/255: an ellipse. NaN draws nothing.
    void place(int i, float x, float y, float a, float b, float c, float red, float green, float blue) {
        if (!std::isfinite(x + y + a + b + c)) return;
        const float half = -0.5 * LOG2_E;
        splats[i] = {x, y, half * a, 2 * half * b, half * c, red, green, blue};
        // Of 2 q, a little too large, so that rounding cuts nothing off.
        const double limit = -MIN_LEVEL * (2.002 / LOG2_E) + 1e-3;
        const double det = (double)a * c - (double)b * b;
        const double reach = std::sqrt(limit * c / det), top = std::sqrt(limit * a / det), top_x = -b * top / a;
        // A conic that is singular to double precision is searched for in the whole image.
        const bool ellipse = a > 0 && c > 0 && det > 0 && std::isfinite(reach + top);
        const double right = width - 1.0, bottom = height;
        const double j0 = ellipse ? std::ceil(x - reach - 0.5) : 0, j1 = ellipse ? std::floor(x + reach - 0.5) : right;
        if (j0 > right || j1 < 0) return;
        const int last = (int)std::min(j1, right) / LANES;
        for (int column = (int)std::max(j0, 0.0) / LANES; column <= last; column++) {
            double i0 = 0, i1 = bottom;
            if (ellipse) {
                // The ellipse is convex: its highest point in the column is the one nearest to its own highest point.
                const double left = column * LANES + 0.5 - x;
                const double high = std::min(std::max(top_x, left), left + LANES - 1);
                const double low = std::min(std::max(-top_x, left), left + LANES - 1);
                const double up = (-b * high + std::sqrt(std::max(limit * c - det * high * high, 0.0))) / c;
                const double down = (-b * low - std::sqrt(std::max(limit * c - det * low * low, 0.0))) / c;
                i0 = std::max(std::ceil(y + down - 0.5), 0.0);
                i1 = std::min(std::floor(y + up + 0.5), bottom);
            }
            if (i0 < i1) spans.push_back({i, column, (int)i0, (int)i1});
        }
    }

    // Counting sort of the spans by tile; within a tile the order of the index remains.
    void list_tiles() {
        starts.assign((size_t)columns * tile_rows + 1, 0);
        for (const Span& s : spans)
            for (int k = s.row0 / ROWS; k <= (s.row1 - 1) / ROWS; k++) starts[(size_t)k * columns + s.column]++;
        size_t total = 0;
        for (size_t& start : starts) start = total += start;
        entries.resize(total);
        for (size_t i = spans.size(); i-- > 0;) {
            const Span& s = spans[i];
            for (int k = s.row0 / ROWS; k <= (s.row1 - 1) / ROWS; k++)
                entries[--starts[(size_t)k * columns + s.column]] = {s.splat, (uint8_t)std::max(s.row0 - k * ROWS, 0),
                                                                     (uint8_t)std::min(s.row1 - k * ROWS, ROWS)};
        }
    }

    // Draw every tile that is reached. fetch(column, tile_row, first, last) may prefetch what shade(..., rows) needs.
    // shade sees rows [first, last); on a way back it leaves the gradient by the colors in their place, and 0 in t.
    template <bool BACKWARD, class Fetch, class Shade>
    void sweep(Fetch fetch, Shade shade) {
        list_tiles();
        if (BACKWARD) sums.assign(splats.size() * SUMS, 0.0f);
        Row rows[ROWS];
        for (int k = 0; k < tile_rows; k++)
            for (int column = 0; column < columns; column++) {
                const Entry* begin = entries.data() + starts[(size_t)k * columns + column];
                const Entry* end = entries.data() + starts[(size_t)k * columns + column + 1];
                if (begin == end) continue;
                int first = ROWS, last = 0;
                size_t count = 0;
                for (const Entry* e = begin; e < end; e++) {
                    first = std::min<int>(first, e->row0);
                    last = std::max<int>(last, e->row1);
                    count += e->rows();
                }
                fetch(column, k, first, last);
                if (samples.size() < count) samples.resize(count);
                const vf x = lane_numbers(Lanes()) + (column * LANES + 0.5f);
                // Beyond the right border nothing is visible, so nothing is drawn and no gradient arises there.
                const vf inside = keep(x < (float)width, broadcast(1.0f));
                for (int i = first; i < last; i++) rows[i] = {inside, vf{}, vf{}, vf{}};
                Sample* sample = samples.data();
                for (const Entry* e = begin; e < end; sample += e->rows(), e++)
                    draw(splats[e->splat], x, k * ROWS + e->row0 + 0.5f, rows + e->row0, e->rows(), sample);
                shade(column, k, first, last, rows);
                while (BACKWARD && end-- > begin) {
                    sample -= end->rows();
                    walk_back(end->splat, x, k * ROWS + end->row0 + 0.5f, rows + end->row0, end->rows(), sample);
                }
            }
    }

    // (x, y): centers of the first row's pixels; below it dy grows by 1 a row.
    static void draw(const Splat& s, vf x, float y, Row* rows, int count, Sample* samples) {
        const vf dx = x - s.x;
        const float dy = y - s.y;
        const vf p0 = dy * (s.b * dx + s.c * dy) + s.a * dx * dx, p1 = s.b * dx + 2.0f * s.c * dy;
        const vi most = vi{} + MAX_ALPHA_BITS;
        for (int i = 0; i < count; i++) {
            Row& row = rows[i];
            const vf step = steps.row[i], p = p0 + step * (p1 + s.c * step);
            const vi bits = (vi)exp2_negative(p);  // positive numbers are ordered like their bits
            const vf alpha = keep(p >= MIN_LEVEL, (vf)(bits > most ? most : bits));
            const vf after = row.t - row.t * alpha;
            const vi drawn = after > MIN_TRANSMITTANCE;  // never again true once it was false: t only falls
            const vf weight = keep(drawn, row.t * alpha);
            row.t = after;
            row.red += weight * s.red;
            row.green += weight * s.green;
            row.blue += weight * s.blue;
            samples[i] = {keep(drawn, alpha), weight};
        }
    }

    void walk_back(int splat, vf x, float y, Row* rows, int count, const Sample* samples) {
        const Splat& s = splats[splat];
        const vf dx = x - s.x;
        const float dy = y - s.y;
        vf w{}, w1{}, w2{}, red{}, green{}, blue{};
        for (int i = 0; i < count; i++) {
            Row& row = rows[i];
            const vf alpha = samples[i].alpha, weight = samples[i].weight, step = steps.row[i];
            const vf d = s.red * row.red + (s.green * row.green + (s.blue * row.blue - row.t));
            row.t += alpha * d;
            red += weight * row.red;
            green += weight * row.green;
            blue += weight * row.blue;
            const vf slope = keep(alpha < MAX_ALPHA, weight * d);  // the clamp passes no gradient
            const vf moment = slope * step;
            w += slope;
            w1 += moment;
            w2 += moment * step;
        }
        const vf wx = w * dx, wy = w1 + w * dy;
        vf v[SUMS] = {wx, wy, wx * dx, wy * dx, w2 + dy * (w1 + wy), red, green, blue};
        add_lanes(v, &sums[(size_t)splat * SUMS]);
    }
};

}  // namespace
