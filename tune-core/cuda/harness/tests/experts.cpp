// What goes by the routes of a mixture of experts, against plain loops.
#include "../harness.h"

#include "../../kernels/experts.cu"

using namespace harness;

template <typename T> struct Kernels;
template <> struct Kernels<float> {
    static constexpr auto combine = experts_combine_f32;
    static constexpr auto scale = experts_scale_f32;
    static constexpr auto dots = experts_dots_f32;
};
template <> struct Kernels<bf16> {
    static constexpr auto combine = experts_combine_bf16;
    static constexpr auto scale = experts_scale_bf16;
    static constexpr auto dots = experts_dots_bf16;
};

template <typename T> void run(int tokens, int chosen, int cols, int pad, Random &random) {
    const int stride = cols + pad, rows = tokens * chosen, wide = 16 / int(sizeof(T));
    const std::string type = type_name<T>();
    char what[200];
    snprintf(what, sizeof what, "%d tokens at %d experts, %d columns, stride %d", tokens, chosen, cols, stride);
    Buffer<T> x(size_t(rows) * stride), other(size_t(rows) * stride), onto(size_t(tokens) * stride);
    Buffer<unsigned> places(rows);
    Buffer<float> weights(rows);
    fill(x, random), fill(other, random), fill(onto, random), fill(weights, random);
    for (int i = 0; i < rows; i++) places[i] = unsigned(i);
    for (int i = rows - 1; i > 0; i--) std::swap(places[i], places[random.below(i + 1)]);
    const dim3 block(256);
    const auto grid = [&](int count) { return dim3((cols + wide * 256 - 1) / (wide * 256), count); };
    for (bool weighted : {true, false})
        for (bool with : {true, false})
            in_every_order([&] {
                Buffer<T> y(onto.size());
                LAUNCH(Kernels<T>::combine, grid(tokens), block, 0, y.data(), x.data(), with ? onto.data() : nullptr,
                       places.data(), weighted ? weights.data() : nullptr, tokens, cols, stride, stride, stride, chosen);
                Error error;
                bool kept = true;
                for (int t = 0; t < tokens; t++)
                    for (int i = 0; i < stride; i++) {
                        const size_t at = size_t(t) * stride + i;
                        double sum = with ? double(widened(onto[at])) : 0;
                        for (int k = t * chosen; k < (t + 1) * chosen; k++)
                            sum += (weighted ? double(weights[k]) : 1) * double(widened(x[size_t(places[k]) * stride + i]));
                        if (i >= cols) kept = kept && is_poison(y[at]);
                        else error.add(widened(y[at]), sum);
                    }
                note("experts_combine_" + type, what, kept ? error.relative() : NAN, tolerance<T>());
            });
    in_every_order([&] {
        Buffer<T> y(x);
        LAUNCH(Kernels<T>::scale, grid(rows), block, 0, y.data(), weights.data(), rows, cols, stride);
        Buffer<float> products(rows);
        LAUNCH(Kernels<T>::dots, dim3(rows), dim3(128), 16, products.data(), x.data(), other.data(), rows, cols, stride,
               stride);
        Error scaled, dot;
        bool kept = true;
        for (int row = 0; row < rows; row++) {
            double sum = 0;
            for (int i = 0; i < stride; i++) {
                const size_t at = size_t(row) * stride + i;
                if (i >= cols) kept = kept && widened(y[at]) == widened(x[at]);
                else scaled.add(widened(y[at]), double(weights[row]) * double(widened(x[at])));
                if (i < cols) sum += double(widened(x[at])) * double(widened(other[at]));
            }
            dot.add(products[row], sum);
        }
        note("experts_scale_" + type, what, kept ? scaled.relative() : NAN, tolerance<T>());
        note("experts_dots_" + type, what, dot.relative(), 2e-6);
    });
}

int main() {
    Random random(23);
    for (int cols : {1, 7, 8, 64, 515}) {
        run<float>(5, 2, cols, 0, random), run<bf16>(5, 2, cols, 0, random);
        run<float>(3, 3, cols, 3, random), run<bf16>(3, 1, cols, 8, random);
    }
    return report();
}
