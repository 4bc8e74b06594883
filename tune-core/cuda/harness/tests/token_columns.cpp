// Columns that are put into a matrix and taken out of it, against loops.
#include "../harness.h"

#include "../../kernels/token_columns.cu"

using namespace harness;

struct Case {
    int rows, cols, pad, count;
    unsigned blocks;
};

template <typename T, typename K> void take(const std::string &name, K kernel, const Case &c, Random &random) {
    const int stride = c.cols + c.pad;
    Buffer<T> before(size_t(c.rows) * stride);
    fill(before, random);
    Buffer<unsigned> columns(c.count);
    // Each once, from the last on.
    for (int i = 0; i < c.count; i++) columns[i] = unsigned(c.cols - 1 - i * (c.cols / c.count));
    const std::string what = std::to_string(c.count) + " of " + std::to_string(c.rows) + " x " + std::to_string(c.cols);
    const dim3 grid((c.count + 255) / 256, c.blocks);
    in_every_order([&] {
        Buffer<T> x(before), y(size_t(c.rows) * c.count);
        LAUNCH(kernel, grid, dim3(256), 0, y.data(), x.data(), columns.data(), c.rows, c.count, stride);
        double wrong = 0;
        std::vector<bool> is_taken(c.cols);
        for (int i = 0; i < c.count; i++) is_taken[columns[i]] = true;
        for (int row = 0; row < c.rows; row++) {
            const size_t start = size_t(row) * stride;
            for (int i = 0; i < c.count; i++) wrong += widened(y[size_t(row) * c.count + i]) != widened(before[start + columns[i]]);
            for (int i = 0; i < stride; i++)
                wrong += widened(x[start + i]) != (i < c.cols && is_taken[i] ? 0.0f : widened(before[start + i]));
        }
        note(name, what, wrong, 0);
        if constexpr (sizeof(T) == 4) {
            LAUNCH(put_columns_f32, grid, dim3(256), 0, x.data(), y.data(), columns.data(), c.rows, c.count, stride);
            double other = 0;
            for (size_t i = 0; i < x.size(); i++) other += x[i] != before[i];
            note("put_columns_f32", what, other, 0);
        }
    });
}

int main() {
    Random random(47);
    const Case cases[] = {{1, 1, 0, 1, 1}, {5, 97, 3, 4, 2}, {3, 1000, 0, 300, 3}, {7, 513, 513, 257, 4}};
    for (const Case &c : cases) {
        take<float>("take_columns_f32", take_columns_f32, c, random);
        take<bf16>("take_columns_bf16", take_columns_bf16, c, random);
    }
    return report();
}
