// Rotary embeddings against loops in f64, forward and back.
#include "../harness.h"

#include "../../kernels/rotary.cu"

using namespace harness;

struct Case {
    int rows, heads, head_dim, rotated, pad;
};

template <typename T> void run(const Case &c, Random &random, void (*kernel)(T *, const float *, const float *, long long, long long, int, int, int, float)) {
    const int cols = c.heads * c.head_dim, stride = cols + c.pad, half = c.rotated / 2;
    Buffer<T> x(size_t(c.rows) * stride);
    Buffer<float> cosines(size_t(c.rows) * half), sines(size_t(c.rows) * half);
    fill(x, random);
    for (size_t i = 0; i < cosines.size(); i++) {
        const double angle = 7 * random.next();
        cosines[i] = float(std::cos(angle)), sines[i] = float(std::sin(angle));
    }
    char what[200];
    snprintf(what, sizeof what, "%d rows of %d x %d, %d turned, stride %d", c.rows, c.heads, c.head_dim, c.rotated, stride);
    const int wide = 16 / int(sizeof(T));
    const dim3 grid((c.heads * half + wide * 128 - 1) / (wide * 128), c.rows);
    for (float sign : {1.0f, -1.0f})
        in_every_order([&] {
            Buffer<T> y(x);
            LAUNCH(kernel, grid, dim3(128), 0, y.data(), cosines.data(), sines.data(), c.rows, stride, c.heads, c.head_dim,
                   c.rotated, sign);
            Error error;
            bool kept = true;
            for (int row = 0; row < c.rows; row++) {
                const size_t start = size_t(row) * stride;
                for (int i = cols; i < stride; i++) kept = kept && widened(y[start + i]) == widened(x[start + i]);
                for (int h = 0; h < c.heads; h++)
                    for (int i = 0; i < c.head_dim; i++) {
                        const size_t at = start + h * c.head_dim + i;
                        if (i >= c.rotated) {
                            kept = kept && widened(y[at]) == widened(x[at]);
                            continue;
                        }
                        const int pair = i % half;
                        const double cosine = cosines[size_t(row) * half + pair], sine = sign * sines[size_t(row) * half + pair];
                        const double other = i < half ? -double(widened(x[at + half])) : double(widened(x[at - half]));
                        error.add(widened(y[at]), double(widened(x[at])) * cosine + other * sine);
                    }
            }
            note(std::string("rotary_") + type_name<T>(), what, kept ? error.relative() : NAN, tolerance<T>());
        });
}

int main() {
    Random random(2);
    for (const Case &c : {Case{1, 1, 2, 2, 0}, Case{3, 2, 64, 64, 8}, Case{5, 3, 128, 128, 0}, Case{2, 5, 80, 32, 3},
                          Case{4, 17, 128, 64, 16}, Case{3, 3, 6, 4, 1}}) {
        run<float>(c, random, rotary_f32);
        run<bf16>(c, random, rotary_bf16);
    }
    return report();
}
