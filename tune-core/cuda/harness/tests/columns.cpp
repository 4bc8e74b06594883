// Results scaled column by column, and what they are scaled by, against plain loops.
#include "../harness.h"

#include "../../kernels/columns.cu"
#include "../../kernels/norm.cu"

using namespace harness;

template <typename T> struct Kernels;
template <> struct Kernels<float> {
    static constexpr auto factors = columns_factors_f32;
    static constexpr auto scale = columns_scale_f32;
    static constexpr auto dots = columns_dots_f32;
};
template <> struct Kernels<bf16> {
    static constexpr auto factors = columns_factors_bf16;
    static constexpr auto scale = columns_scale_bf16;
    static constexpr auto dots = columns_dots_bf16;
};

// The norms of a whole weight with its update are what is right. Row 1 of the weight is zero, and its row of B, too.
template <typename T> void factors(int out, int inner, int rank, float by, Random &random) {
    const std::string type = type_name<T>();
    char what[200];
    snprintf(what, sizeof what, "%d x %d, rank %d, scale %g", out, inner, rank, by);
    Buffer<float> w(size_t(out) * inner), a(size_t(rank) * inner), magnitudes(out), squares(out);
    Buffer<float> with_weight(size_t(rank) * out), with_itself(size_t(rank) * rank);
    Buffer<T> b(size_t(out) * rank);
    fill(w, random), fill(a, random), fill(b, random, 0.3f), fill(magnitudes, random, 2);
    if (out > 1) {
        for (int i = 0; i < inner; i++) w[inner + i] = 0;
        for (int k = 0; k < rank; k++) b[rank + k] = host_from<T>(0.0f);
    }
    const auto dot = [&](const float *x, const float *y) {
        double sum = 0;
        for (int i = 0; i < inner; i++) sum += double(x[i]) * double(y[i]);
        return float(sum);
    };
    for (int row = 0; row < out; row++) squares[row] = dot(w.data() + row * inner, w.data() + row * inner);
    for (int k = 0; k < rank; k++) {
        for (int row = 0; row < out; row++) with_weight[k * out + row] = dot(a.data() + k * inner, w.data() + row * inner);
        for (int i = 0; i < rank; i++) with_itself[k * rank + i] = dot(a.data() + k * inner, a.data() + i * inner);
    }
    in_every_order([&] {
        Buffer<float> found(2 * out);
        LAUNCH(Kernels<T>::factors, dim3((out + 7) / 8), dim3(256), 0, found.data(), magnitudes.data(), squares.data(),
               b.data(), with_weight.data(), with_itself.data(), out, rank, by);
        Error error;
        for (int row = 0; row < out; row++) {
            double square = 0;
            for (int i = 0; i < inner; i++) {
                double x = w[row * inner + i];
                for (int k = 0; k < rank; k++) x += double(by) * double(widened(b[row * rank + k])) * double(a[k * inner + i]);
                square += x * x;
            }
            const double norm = std::sqrt(square);
            error.add(found[row], norm > 0 ? magnitudes[row] / norm : 1);
            error.add(found[out + row], norm > 0 ? 1 / norm : 0);
        }
        note("columns_factors_" + type, what, error.relative(), 2e-6);
    });
}

template <typename T> void run(int rows, int cols, int pad, int first, int parts, Random &random) {
    const int stride = cols + pad, wide = 16 / int(sizeof(T));
    const std::string type = type_name<T>();
    char what[200];
    snprintf(what, sizeof what, "%d x %d, stride %d, factors from %d on, %d parts", rows, cols, stride, first, parts);
    Buffer<T> x(size_t(rows) * stride), other(size_t(rows) * stride);
    Buffer<float> by(first + cols);
    fill(x, random), fill(other, random), fill(by, random);
    const float *from = by.data() + first;
    const auto grid = [&](int threads, int y) { return dim3((cols + wide * threads - 1) / (wide * threads), y); };
    // Into memory of its own, in place, and onto itself.
    for (int how = 0; how < 3; how++)
        in_every_order([&] {
            Buffer<T> y(how == 0 ? Buffer<T>(x.size()) : how == 1 ? x : other);
            LAUNCH(Kernels<T>::scale, grid(256, std::min(rows, 4)), dim3(256), 0, y.data(), how == 1 ? y.data() : x.data(),
                   how == 2 ? y.data() : nullptr, from, rows, cols, stride, stride, stride);
            Error error;
            bool kept = true;
            for (int row = 0; row < rows; row++)
                for (int i = 0; i < stride; i++) {
                    const size_t at = size_t(row) * stride + i;
                    if (i < cols) {
                        const double onto = how == 2 ? double(widened(other[at])) : 0;
                        error.add(widened(y[at]), double(widened(x[at])) * double(from[i]) + onto);
                    } else if (how == 0) kept = kept && is_poison(y[at]);
                    else kept = kept && widened(y[at]) == widened((how == 1 ? x : other)[at]);
                }
            note("columns_scale_" + type, what, kept ? error.relative() : NAN, tolerance<T>());
        });
    in_every_order([&] {
        Buffer<float> partial(size_t(parts) * cols), sums(cols);
        LAUNCH(Kernels<T>::dots, grid(128, parts), dim3(128), 0, partial.data(), x.data(), other.data(), from, rows, cols,
               stride, stride);
        LAUNCH(column_sums, dim3((cols + 31) / 32), dim3(32, 32), 4096, sums.data(), partial.data(), parts, cols, 0);
        Error error;
        for (int i = 0; i < cols; i++) {
            double sum = 0;
            for (int row = 0; row < rows; row++) {
                const size_t at = size_t(row) * stride + i;
                sum += double(widened(x[at])) * double(widened(other[at]));
            }
            error.add(sums[i], double(from[i]) * sum);
        }
        note("columns_dots_" + type, what, error.relative(), 2e-6);
    });
}

int main() {
    Random random(29);
    for (int rank : {1, 3, 32, 40}) {
        factors<float>(7, 33, rank, 1.5f, random), factors<bf16>(17, 20, rank, 0.25f, random);
        factors<float>(1, 5, rank, 2, random);
    }
    for (int cols : {1, 7, 8, 64, 1030}) {
        run<float>(5, cols, 0, 0, 1, random), run<bf16>(5, cols, 0, 0, 2, random);
        run<float>(9, cols, 3, 4, 4, random), run<bf16>(70, cols, 8, 3, 3, random);
    }
    return report();
}
