// Rows of matrices: lookup and its gradient, gathering, scattering, copies, against plain loops.
#include "../harness.h"

#include "../../kernels/rows.cu"

#include <algorithm>
#include <map>

using namespace harness;

template <typename T> struct Rows;
template <> struct Rows<float> {
    static constexpr auto lookup = rows_lookup_f32;
    static constexpr auto back = rows_lookup_backward_f32;
    static constexpr auto gather = rows_gather_f32;
    static constexpr auto scatter = rows_scatter_f32;
    static constexpr auto column_parts = rows_column_parts_f32;
};
template <> struct Rows<bf16> {
    static constexpr auto lookup = rows_lookup_bf16;
    static constexpr auto back = rows_lookup_backward_bf16;
    static constexpr auto gather = rows_gather_bf16;
    static constexpr auto scatter = rows_scatter_bf16;
    static constexpr auto column_parts = rows_column_parts_bf16;
};

template <typename T> dim3 grid_of(int rows, int cols) {
    const int wide = 16 / int(sizeof(T));
    return dim3((cols + wide * 256 - 1) / (wide * 256), rows);
}

template <typename T> void run(int rows, int table_rows, int cols, int pad, Random &random) {
    const int stride = cols + pad;
    const std::string type = type_name<T>();
    char what[200];
    snprintf(what, sizeof what, "%d of %d rows, %d columns, stride %d", rows, table_rows, cols, stride);
    Buffer<T> table(size_t(table_rows) * stride), x(size_t(rows) * stride);
    Buffer<unsigned> ids(rows);
    fill(table, random), fill(x, random);
    for (int i = 0; i < rows; i++) ids[i] = random.below(table_rows);
    in_every_order([&] {
        Buffer<T> y(x.size());
        LAUNCH(Rows<T>::lookup, grid_of<T>(rows, cols), dim3(256), 0, y.data(), table.data(), ids.data(), rows, cols, stride,
               stride, 1.5f);
        Error error;
        bool kept = true;
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < stride; i++) {
                const size_t at = size_t(row) * stride + i;
                if (i >= cols) kept = kept && is_poison(y[at]);
                else error.add(widened(y[at]), 1.5 * widened(table[size_t(ids[row]) * stride + i]));
            }
        note("rows_lookup_" + type, what, kept ? error.relative() : NAN, tolerance<T>());

        Buffer<T> z(x.size());
        LAUNCH(Rows<T>::gather, grid_of<T>(rows, cols), dim3(256), 0, z.data(), table.data(), ids.data(), rows, cols, stride,
               stride);
        Error exact;
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < cols; i++)
                exact.add(widened(z[size_t(row) * stride + i]), widened(table[size_t(ids[row]) * stride + i]));
        note("rows_gather_" + type, what, exact.relative(), 0);
    });
    // The gradient of the lookup: rows by ids.
    std::map<unsigned, std::vector<unsigned>> by_id;
    for (int i = 0; i < rows; i++) by_id[ids[i]].push_back(i);
    Buffer<unsigned> distinct(by_id.size()), starts(by_id.size() + 1), positions(rows);
    size_t n = 0, at = 0;
    for (auto &[id, of] : by_id) {
        distinct[n] = id, starts[n++] = unsigned(at);
        for (unsigned i : of) positions[at++] = i;
    }
    starts[n] = unsigned(at);
    Buffer<float> gradient(table.size());
    fill(gradient, random);
    in_every_order([&] {
        Buffer<float> g(gradient);
        LAUNCH(Rows<T>::back, grid_of<T>(int(n), cols), dim3(256), 0, g.data(), x.data(), distinct.data(), starts.data(),
               positions.data(), cols, stride, stride, 1.5f);
        std::vector<double> right = doubles(gradient);
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < cols; i++) right[size_t(ids[row]) * stride + i] += 1.5 * widened(x[size_t(row) * stride + i]);
        Error error;
        for (size_t i = 0; i < right.size(); i++) error.add(g[i], right[i]);
        note("rows_lookup_backward_" + type, what, error.relative(), 1e-6);
    });
    // Scattering: to distinct rows.
    std::vector<unsigned> order(table_rows);
    for (int i = 0; i < table_rows; i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), random.engine);
    const int some = std::min(rows, table_rows);
    Buffer<unsigned> to(some);
    for (int i = 0; i < some; i++) to[i] = order[i];
    for (int accumulate = 0; accumulate < 2; accumulate++)
        in_every_order([&] {
            Buffer<T> y(table);
            LAUNCH(Rows<T>::scatter, grid_of<T>(some, cols), dim3(256), 0, y.data(), x.data(), to.data(), some, cols, stride,
                   stride, accumulate);
            std::vector<double> right = doubles(table);
            for (int row = 0; row < some; row++)
                for (int i = 0; i < cols; i++) {
                    double &r = right[size_t(to[row]) * stride + i];
                    r = (accumulate ? r : 0) + widened(x[size_t(row) * stride + i]);
                }
            Error error;
            for (size_t i = 0; i < right.size(); i++) error.add(widened(y[i]), right[i]);
            note("rows_scatter_" + type, what, error.relative(), tolerance<T>());
        });
}

template <typename To, typename From>
void copy(void (*kernel)(To *, const From *, long long, long long, long long, long long, float, int), int rows, int cols,
          int pad, Random &random) {
    const int stride = cols + pad;
    Buffer<From> x(size_t(rows) * stride);
    Buffer<To> before(x.size());
    fill(x, random), fill(before, random);
    char what[200];
    snprintf(what, sizeof what, "%d x %d, stride %d", rows, cols, stride);
    for (int accumulate = 0; accumulate < 2; accumulate++)
        in_every_order([&] {
            Buffer<To> y(before);
            LAUNCH(kernel, grid_of<To>(rows, cols), dim3(256), 0, y.data(), x.data(), rows, cols, stride, stride, -0.5f,
                   accumulate);
            Error error;
            bool kept = true;
            for (size_t i = 0; i < y.size(); i++) {
                const double old = widened(before[i]);
                if (int(i % stride) >= cols) kept = kept && widened(y[i]) == float(old);
                else error.add(widened(y[i]), (accumulate ? old : 0) - 0.5 * widened(x[i]));
            }
            note(std::string("rows_copy_") + type_name<To>() + "_" + type_name<From>(), what, kept ? error.relative() : NAN,
                 tolerance<To>());
        });
}

template <typename T> void column_parts(int rows, int cols, int pad, int rows_of_part, Random &random) {
    const int stride = cols + pad, parts = (rows + rows_of_part - 1) / rows_of_part, wide = 32 * 16 / int(sizeof(T));
    char what[200];
    snprintf(what, sizeof what, "%d rows, %d columns, stride %d, %d rows a part", rows, cols, stride, rows_of_part);
    Buffer<T> x(size_t(rows) * stride);
    fill(x, random);
    in_every_order([&] {
        Buffer<float> partial(size_t(parts) * cols);
        LAUNCH(Rows<T>::column_parts, dim3((cols + wide - 1) / wide, parts), dim3(32, 8), size_t(4 * 8 * wide), partial.data(),
               x.data(), rows, cols, stride, rows_of_part);
        Error error;
        for (int part = 0; part < parts; part++)
            for (int i = 0; i < cols; i++) {
                double sum = 0;
                for (int row = part * rows_of_part; row < std::min(rows, (part + 1) * rows_of_part); row++)
                    sum += widened(x[size_t(row) * stride + i]);
                error.add(partial[size_t(part) * cols + i], sum);
            }
        note(std::string("rows_column_parts_") + type_name<T>(), what, error.relative(), 2e-6);
    });
}

int main() {
    Random random(4);
    struct Parts {
        int rows, cols, pad, rows_of_part;
    };
    for (const Parts &p : {Parts{1, 1, 0, 1}, Parts{37, 72, 0, 16}, Parts{70, 264, 8, 64}, Parts{64, 300, 3, 11}}) {
        column_parts<float>(p.rows, p.cols, p.pad, p.rows_of_part, random);
        column_parts<bf16>(p.rows, p.cols, p.pad, p.rows_of_part, random);
    }
    struct Shape {
        int rows, table_rows, cols, pad;
    };
    for (const Shape &s : {Shape{1, 1, 1, 0}, Shape{5, 9, 64, 8}, Shape{9, 3, 33, 1}, Shape{17, 40, 2056, 0}}) {
        run<float>(s.rows, s.table_rows, s.cols, s.pad, random);
        run<bf16>(s.rows, s.table_rows, s.cols, s.pad, random);
        copy<float, float>(rows_copy_f32_f32, s.rows, s.cols, s.pad, random);
        copy<bf16, bf16>(rows_copy_bf16_bf16, s.rows, s.cols, s.pad, random);
        copy<float, bf16>(rows_copy_f32_bf16, s.rows, s.cols, s.pad, random);
        copy<bf16, float>(rows_copy_bf16_f32, s.rows, s.cols, s.pad, random);
    }
    return report();
}
