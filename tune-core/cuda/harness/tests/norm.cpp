// RMSNorm against loops in f64.
#include "../harness.h"

#include "../../kernels/norm.cu"

using namespace harness;

template <typename T> struct Norm;
template <> struct Norm<float> {
    static constexpr auto forward = norm_forward_f32;
    static constexpr auto backward = norm_backward_f32;
};
template <> struct Norm<bf16> {
    static constexpr auto forward = norm_forward_bf16;
    static constexpr auto backward = norm_backward_bf16;
};

struct Case {
    int rows, heads, width, pad;
    dim3 block;
    bool residual, onto;
    float weight_from;
};

template <typename T> void run(const Case &c, Random &random) {
    const int cols = c.heads * c.width, stride = cols + c.pad;
    const size_t size = size_t(c.rows) * stride;
    Buffer<T> x(size), residual(size), onto(size), g(size), dx(size), w(c.width);
    fill(x, random), fill(residual, random), fill(onto, random), fill(g, random), fill(dx, random), fill(w, random);
    const float eps = 1e-5f;
    char what[200];
    snprintf(what, sizeof what, "%d rows of %d x %d, stride %d, block %u x %u, residual %d, onto %d, weight from %g", c.rows,
             c.heads, c.width, stride, c.block.x, c.block.y, c.residual, c.onto, c.weight_from);
    const std::string type = type_name<T>();
    in_every_order([&] {
        Buffer<T> y(size), sum(size);
        const size_t warps = size_t(c.block.x / 32) * c.block.y;
        const unsigned blocks = (unsigned(c.rows * c.heads) + c.block.y - 1) / c.block.y;
        LAUNCH(Norm<T>::forward, dim3(blocks), c.block, 4 * warps, y.data(), c.residual ? sum.data() : nullptr, x.data(),
               c.residual ? residual.data() : nullptr, c.onto ? onto.data() : nullptr, w.data(), c.rows, stride, stride, stride,
               stride, stride, c.heads, c.width, eps, c.weight_from);
        Error of_y, of_sum;
        const std::vector<double> X = doubles(x), R = doubles(residual), O = doubles(onto), W = doubles(w);
        bool kept = true;
        for (int row = 0; row < c.rows; row++) {
            for (int i = cols; i < stride; i++) kept = kept && is_poison(y[size_t(row) * stride + i]);
            for (int h = 0; h < c.heads; h++) {
                const size_t at = size_t(row) * stride + h * c.width;
                std::vector<double> a(c.width);
                double squares = 0;
                for (int i = 0; i < c.width; i++) {
                    a[i] = X[at + i] + (c.residual ? R[at + i] : 0);
                    if (c.residual) {
                        of_sum.add(widened(sum[at + i]), a[i]);
                        a[i] = widened(host_from<T>(float(a[i])));
                    }
                    squares += a[i] * a[i];
                }
                const double r = 1 / std::sqrt(squares / c.width + double(eps));
                for (int i = 0; i < c.width; i++)
                    of_y.add(widened(y[at + i]), a[i] * r * (W[i] + c.weight_from) + (c.onto ? O[at + i] : 0));
            }
        }
        note("norm_forward_" + type, what, kept ? of_y.relative() : NAN, tolerance<T>());
        if (c.residual) note("norm_forward_" + type + " sum", what, of_sum.relative(), tolerance<T>());
    });
    for (int accumulate = 0; accumulate < 2; accumulate++)
        in_every_order([&] {
            Buffer<T> d(dx);
            const unsigned blocks = 3;
            Buffer<float> partial(size_t(blocks) * c.width), dw(c.width);
            if (accumulate) fill(dw, random);
            const std::vector<double> before = doubles(dw);
            const size_t shared = 8 * size_t(c.block.x / 32) * c.block.y + 4 * size_t(c.block.y) * c.width;
            LAUNCH(Norm<T>::backward, dim3(blocks), c.block, shared, d.data(), partial.data(), x.data(), g.data(), w.data(),
                   c.rows, stride, stride, stride, c.heads, c.width, eps, c.weight_from, accumulate);
            LAUNCH(column_sums, dim3((c.width + 31) / 32), dim3(32, 32), 4096, dw.data(), partial.data(), blocks, c.width, accumulate);
            Error of_x, of_w;
            const std::vector<double> X = doubles(x), W = doubles(w), G = doubles(g), D = doubles(dx);
            std::vector<double> right_w(c.width, 0.0);
            for (int row = 0; row < c.rows; row++)
                for (int h = 0; h < c.heads; h++) {
                    const size_t at = size_t(row) * stride + h * c.width;
                    double squares = 0, dot = 0;
                    for (int i = 0; i < c.width; i++) {
                        squares += X[at + i] * X[at + i];
                        dot += X[at + i] * G[at + i] * (W[i] + c.weight_from);
                    }
                    const double r = 1 / std::sqrt(squares / c.width + double(eps));
                    for (int i = 0; i < c.width; i++) {
                        const double right = r * (G[at + i] * (W[i] + c.weight_from) - X[at + i] * dot * r * r / c.width);
                        of_x.add(widened(d[at + i]), right + (accumulate ? D[at + i] : 0));
                        right_w[i] += G[at + i] * X[at + i] * r;
                    }
                }
            for (int i = 0; i < c.width; i++) of_w.add(dw[i], right_w[i] + (accumulate ? before[i] : 0));
            note("norm_backward_" + type, what, of_x.relative(), tolerance<T>());
            note("norm_backward_" + type + " weight", what, of_w.relative(), 2e-6);
        });
}

int main() {
    Random random(1);
    const Case cases[] = {
        {1, 1, 8, 0, {32}, false, false, 0},      {3, 1, 7, 2, {32, 2}, true, false, 0},
        {5, 3, 64, 8, {8, 8}, false, false, 1},   {2, 2, 128, 16, {16, 8}, true, true, 1},
        {4, 1, 1000, 0, {64, 2}, true, true, 0},  {3, 1, 2048, 8, {64, 2}, false, true, 0},
        {2, 1, 2049, 1, {96}, true, false, 1},    {7, 5, 33, 3, {16, 4}, false, true, 0},
        {3, 1, 4096, 0, {128}, true, false, 0},   {2, 3, 256, 0, {32, 3}, false, false, 1},
    };
    for (const Case &c : cases) {
        run<float>(c, random);
        run<bf16>(c, random);
    }
    return report();
}
