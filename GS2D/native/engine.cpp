// The fit of GS2D/fitting.py as one loop on one core (losses, gradients by the parameters, Adam), and the functions
// that Python calls. The drawing is in scene.hpp, the transport kernel in kernel.hpp, rescaling in resize.hpp.

#include <exception>

#include "scene.hpp"
#include "kernel.hpp"
#include "resize.hpp"

namespace {

// The image where it is foreground, 0 elsewhere, cut into tiles. All-zero tiles share one.
struct Target {
    int width, height, columns;
    int64_t foreground = 0, total = 0;  // pixels; sum of all values
    std::vector<uint32_t> index;
    std::vector<int32_t> row_sums;  // [tiles, ROWS]
    std::vector<int32_t> tiles;     // [tiles, ROWS, LANES], red + 256 green + 65536 blue

    Target(const uint8_t* image, const uint8_t* mask, int width, int height)
        : width(width), height(height), columns((width + LANES - 1) / LANES), row_sums(ROWS), tiles(ROWS * LANES) {
        index.assign((size_t)columns * ((height + ROWS - 1) / ROWS), 0);
        for (size_t t = 0; t < index.size(); t++) {
            const int top = t / columns * ROWS, left = t % columns * LANES;
            for (int i = top; i < std::min(top + ROWS, height); i++)
                for (int j = left; j < std::min(left + LANES, width); j++) {
                    const size_t pixel = (size_t)i * width + j;
                    if (!mask[pixel]) continue;
                    if (!index[t]) {
                        index[t] = row_sums.size() / ROWS;
                        row_sums.resize(row_sums.size() + ROWS);
                        tiles.resize(tiles.size() + ROWS * LANES);
                    }
                    const size_t row = (size_t)index[t] * ROWS + i - top;
                    const uint8_t* rgb = image + 3 * pixel;
                    tiles[row * LANES + j - left] = rgb[0] | rgb[1] << 8 | rgb[2] << 16;
                    row_sums[row] += rgb[0] + rgb[1] + rgb[2];
                    total += rgb[0] + rgb[1] + rgb[2];
                    foreground++;
                }
        }
    }

    size_t first_row(int column, int k) const { return (size_t)index[(size_t)k * columns + column] * ROWS; }
};

inline float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

struct Activated {
    float s1, s2, i1, i2, turn, cosine, sine, rgb[3];  // theta = pi turn; i = 1 / s^2
    float a, b, c;                                     // the conic

    explicit Activated(const float* p)
        : s1(std::max(p[2], 0.0f) + 1.0f),
          s2(std::max(p[3], 0.0f) + 1.0f),
          i1(1.0f / (s1 * s1)),
          i2(1.0f / (s2 * s2)),
          turn(sigmoid(p[4])),
          cosine(std::cos((float)PI * turn)),
          sine(std::sin((float)PI * turn)),
          rgb{sigmoid(p[5]), sigmoid(p[6]), sigmoid(p[7])},
          a(cosine * cosine * i1 + sine * sine * i2),
          b(cosine * sine * (i1 - i2)),
          c(sine * sine * i1 + cosine * cosine * i2) {}
};

// Sum of absolute differences / (3 foreground pixels). params and gradients [N, 8]: x, y, u1, u2, v, c1, c2, c3.
// Colors and image are counted in steps of 1/255 while drawing.
double render_loss(Scene& scene, const Target& target, int n, int fixed, const float* params, float* gradients) {
    std::vector<Activated> gaussians;
    gaussians.reserve(n);
    scene.spans.clear();
    for (int i = 0; i < n; i++) {
        const float* p = params + 8 * (size_t)i;
        gaussians.emplace_back(p);
        const Activated& g = gaussians.back();
        scene.place(i, p[0], p[1], g.a, g.b, g.c, 255.0f * g.rgb[0], 255.0f * g.rgb[1], 255.0f * g.rgb[2]);
    }
    double distances[LANES] = {};
    int64_t untouched = target.total;  // values of pixels that no Gaussian is near
    const auto fetch = [&](int column, int k, int first, int last) {
        const int32_t* values = &target.tiles[target.first_row(column, k) * LANES];
        for (int i = first; i < last; i++) __builtin_prefetch(values + i * LANES);
    };
    scene.sweep<true>(fetch, [&](int column, int k, int first, int last, Row* rows) {
        const size_t tile = target.first_row(column, k);
        vf distance{};
        const auto compare = [&](vf& color, vi value) {
            const vf difference = color - __builtin_convertvector(value, vf);
            color = keep(difference != 0.0f, (vf)(((vi)difference & INT32_MIN) | ONE_BITS));  // sign, 0 at 0
            distance += color * difference;
        };
        for (int i = first; i < last; i++) {
            vi wanted;
            std::memcpy(&wanted, &target.tiles[(tile + i) * LANES], sizeof wanted);
            compare(rows[i].red, wanted & 255);
            compare(rows[i].green, wanted >> 8 & 255);
            compare(rows[i].blue, wanted >> 16);
            rows[i].t = vf{};
            untouched -= target.row_sums[tile + i];
        }
        for (int i = 0; i < LANES; i++) distances[i] += distance[i];
    });
    const float color_scale = target.foreground ? 1.0f / (3.0f * target.foreground) : 0.0f;
    const float scale = color_scale / 255.0f;
    for (int i = 0; i < n; i++) {
        const Activated& g = gaussians[i];
        const float *p = params + 8 * (size_t)i, *s = &scene.sums[(size_t)i * SUMS];
        const float cc = g.cosine * g.cosine, ss = g.sine * g.sine, cs = g.cosine * g.sine;
        const float a = -0.5f * scale * s[XX], b = -scale * s[XY], c = -0.5f * scale * s[YY];  // gradient by the conic
        float* out = gradients + 8 * (size_t)i;
        out[0] = i < fixed ? 0.0f : scale * (g.a * s[X] + g.b * s[Y]);
        out[1] = i < fixed ? 0.0f : scale * (g.b * s[X] + g.c * s[Y]);
        out[2] = p[2] > 0 ? -2.0f * g.i1 / g.s1 * (a * cc + b * cs + c * ss) : 0.0f;
        out[3] = p[3] > 0 ? -2.0f * g.i2 / g.s2 * (a * ss - b * cs + c * cc) : 0.0f;
        out[4] = (float)PI * g.turn * (1.0f - g.turn) * (g.i1 - g.i2) * (2.0f * cs * (c - a) + (cc - ss) * b);
        for (int k = 0; k < 3; k++) out[5 + k] = color_scale * s[RED + k] * g.rgb[k] * (1.0f - g.rgb[k]);
    }
    double loss = untouched;
    for (double distance : distances) loss += distance;
    return target.foreground ? loss / (765.0 * target.foreground) : 0.0;
}

// weight * max over Gaussians of relu(max(u1 / u2, u2 / u1) - max_ratio), whose gradient the first of the worst gets.
double shape_loss(int n, const float* params, float weight, float max_ratio, float* gradients) {
    float worst = 0;
    size_t longer = 0, shorter = 0;  // which parameters u they are
    for (size_t i = 0; i < (size_t)n; i++)
        for (int axis = 0; axis < 2; axis++) {
            const size_t one = 8 * i + 2 + axis, other = 8 * i + 3 - axis;
            const float excess = params[one] / (params[other] + 1e-10f) - max_ratio;
            if (excess <= worst) continue;
            worst = excess;
            longer = one;
            shorter = other;
        }
    if (worst > 0) {
        const float below = params[shorter] + 1e-10f;
        gradients[longer] += weight / below;
        gradients[shorter] -= weight * params[longer] / (below * below);
    }
    return (double)weight * worst;
}

// has_stalled of GS2D/fitting.py; losses [2]: render loss and shape loss.
bool stalled(const double* before, const double* now, double tolerance) {
    const double sum_before = before[0] + before[1], sum = now[0] + now[1];
    return before[0] - now[0] < tolerance * now[0] && sum_before - sum < tolerance * sum;
}

// Kingma and Ba, ICLR 2015, in the order of torch.optim.Adam's operations; moments [2, count].
void adam_step(size_t count, float* params, const float* gradients, float* moments, int64_t step,
               double learning_rate) {
    const float rate = learning_rate / (1 - std::pow(0.9, step)), root = std::sqrt(1 - std::pow(0.999, step));
    float *first = moments, *second = moments + count;
    for (size_t i = 0; i < count; i++) {
        const float g = gradients[i];
        first[i] += 0.1f * (g - first[i]);
        second[i] = second[i] * 0.999f + 0.001f * g * g;
        params[i] -= rate * first[i] / (std::sqrt(second[i]) / root + 1e-8f);
    }
}

template <class Function>
int guarded(Function function) {
    try {
        function();
        return 0;
    } catch (const std::exception&) {  // of memory: bad_alloc or length_error
        return 1;
    }
}

void place_all(Scene& scene, int n, const float* means, const float* conics, const float* colors) {
    for (int i = 0; i < n; i++) {
        const float *m = means + 2 * (size_t)i, *q = conics + 3 * (size_t)i, *rgb = colors + 3 * (size_t)i;
        scene.place(i, m[0], m[1], q[0], q[1], q[2], rgb[0], rgb[1], rgb[2]);
    }
}

void no_fetch(int, int, int, int) {}

}  // namespace

// Functions return 0, or 1 where memory did not suffice. Arrays are contiguous; shapes as in GS2D/native/__init__.py.
extern "C" {

int gst_render(int n, const float* means, const float* conics, const float* colors, int width, int height,
               float* image) {
    return guarded([&] {
        Scene scene(n, width, height);
        place_all(scene, n, means, conics, colors);
        std::fill(image, image + (size_t)3 * width * height, 0.0f);
        scene.sweep<false>(no_fetch, [&](int column, int k, int first, int last, const Row* rows) {
            const int left = column * LANES, right = std::min(left + LANES, width);
            for (int i = first; i < last; i++)
                for (int j = left; j < right; j++) {
                    float* pixel = image + 3 * ((size_t)(k * ROWS + i) * width + j);
                    pixel[0] = rows[i].red[j - left];
                    pixel[1] = rows[i].green[j - left];
                    pixel[2] = rows[i].blue[j - left];
                }
        });
    });
}

int gst_render_backward(int n, const float* means, const float* conics, const float* colors, int width, int height,
                        const float* grad_image, float* g_means, float* g_conics, float* g_colors) {
    return guarded([&] {
        Scene scene(n, width, height);
        place_all(scene, n, means, conics, colors);
        scene.sweep<true>(no_fetch, [&](int column, int k, int first, int last, Row* rows) {
            const int left = column * LANES, right = std::min(left + LANES, width);
            for (int i = first; i < last; i++) {
                rows[i] = Row{};
                for (int j = left; j < right; j++) {
                    const float* pixel = grad_image + 3 * ((size_t)(k * ROWS + i) * width + j);
                    rows[i].red[j - left] = pixel[0];
                    rows[i].green[j - left] = pixel[1];
                    rows[i].blue[j - left] = pixel[2];
                }
            }
        });
        for (size_t i = 0; i < (size_t)n; i++) {
            const float *s = &scene.sums[i * SUMS], *q = conics + 3 * i;
            g_means[2 * i] = q[0] * s[X] + q[1] * s[Y];
            g_means[2 * i + 1] = q[1] * s[X] + q[2] * s[Y];
            g_conics[3 * i] = -0.5f * s[XX];
            g_conics[3 * i + 1] = -s[XY];
            g_conics[3 * i + 2] = -0.5f * s[YY];
            std::copy(s + RED, s + SUMS, g_colors + 3 * i);
        }
    });
}

// losses [2]: at the parameters that the last step started from, as the released code reports them; done: steps. With a
// tolerance the fit ends where the losses stall between two looks at them, one each check_every steps.
int gst_fit(const uint8_t* image, const uint8_t* mask, int width, int height, int n, float* params, int iterations,
            double learning_rate, int fixed, float shape_weight, float max_ratio, double tolerance, int check_every,
            double* losses, int32_t* done) {
    return guarded([&] {
        const Target target(image, mask, width, height);
        Scene scene(n, width, height);
        std::vector<float> gradients(8 * (size_t)n), moments(2 * gradients.size());
        double seen[2] = {INFINITY, INFINITY};
        for (*done = 0; *done < iterations;) {
            losses[0] = render_loss(scene, target, n, fixed, params, gradients.data());
            losses[1] = shape_loss(n, params, shape_weight, max_ratio, gradients.data());
            adam_step(gradients.size(), params, gradients.data(), moments.data(), ++*done, learning_rate);
            if (tolerance > 0 && *done % check_every == 0) {
                if (stalled(seen, losses, tolerance)) break;
                std::copy(losses, losses + 2, seen);
            }
        }
    });
}

// table [n, 7], see kernel::Gaussian; nearest and index [rows * columns].
int gst_kernel_nearest(int n, const kernel::Gaussian* table, int rows, int columns, float stride, float reach,
                       float* nearest, int32_t* index) {
    return guarded([&] { kernel::nearest({rows, columns, stride}, n, table, reach, nearest, index); });
}

// See kernel::rows, whose indices and data gst_kernel_shares gives afterwards.
int gst_kernel_rows(int n, const kernel::Gaussian* table, int rows, int columns, float stride, const float* nearest,
                    const int32_t* index, const float* log_odds, float smallest, int32_t* indptr) {
    return guarded([&] {
        kernel::rows({rows, columns, stride}, n, table, nearest, index, log_odds, smallest, indptr);
    });
}

int gst_kernel_shares(int count, int32_t* indices, float* data) {
    std::copy_n(kernel::indices.data(), count, indices);
    std::copy_n(kernel::data.data(), count, data);
    return 0;
}

// rows [height, 4] and columns [width, 4]: see resize::Tap; out [height, width, 3].
int gst_resize(const uint8_t* image, int64_t pitch, int height, int width, const resize::Tap* rows,
               const resize::Tap* columns, uint8_t* out) {
    return guarded([&] { resize::rectangle(image, pitch, height, width, rows, columns, out); });
}

}  // extern "C"
