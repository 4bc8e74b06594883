// Products of experts with few rows each, against loops in f64 and against the same rows alone.
#include "../harness.h"

#include "../../kernels/grouped.cu"

#include <numeric>

using namespace harness;

template <typename T> struct Kernels;
template <> struct Kernels<float> {
    static constexpr auto grouped = grouped_f32;
};
template <> struct Kernels<bf16> {
    static constexpr auto grouped = grouped_bf16;
};

// Weights of experts, each in memory of its own, for one product or two; those of experts without rows may not be read.
template <typename T> struct Weights {
    std::vector<Buffer<T>> each;
    Buffer<const T *> at;

    Weights(int products, const std::vector<int> &counts, int n, int k, bool aligned, Random &random)
        : at(size_t(products) * counts.size()) {
        each.reserve(at.size());
        for (size_t i = 0; i < at.size(); i++) {
            each.emplace_back(counts[i % counts.size()] > 0 ? size_t(n) * k : 0, aligned);
            fill(each.back(), random);
            at[i] = each.back().data();
        }
    }
};

// How many rows each expert has; `gathered`: they stand for other rows. rank 0: there are no adapters.
template <typename T>
void run(std::vector<int> counts, int n, int k, int rank, int products, bool gathered, bool aligned, Random &random) {
    const int experts = int(counts.size()), rows = std::accumulate(counts.begin(), counts.end(), 0), of_x = gathered ? 7 : rows;
    char what[200];
    snprintf(what, sizeof what, "%d rows of %d experts, %d x %d, rank %d, %d products, %s, %s", rows, experts, n, k, rank, products,
             gathered ? "gathered" : "in order", aligned ? "aligned" : "not aligned");
    Buffer<unsigned> starts(experts + 1), which(rows);
    starts[0] = 0;
    for (int e = 0; e < experts; e++) starts[e + 1] = starts[e] + unsigned(counts[e]);
    for (int i = 0; i < rows; i++) which[i] = gathered ? unsigned(random.below(of_x)) : unsigned(i);
    Buffer<T> x(size_t(of_x) * k, aligned), x1(size_t(of_x) * k), h(size_t(rows) * rank), h1(size_t(rows) * rank);
    fill(x, random), fill(x1, random), fill(h, random), fill(h1, random);
    const Weights<T> w(products, counts, n, k, aligned, random), b(products, counts, n, std::max(rank, 1), true, random);
    const float factor = rank ? 1.0f : 0.75f;
    const auto compute = [&](Buffer<T> &y, Buffer<T> &y1, const Buffer<unsigned> &which, const Buffer<unsigned> &starts, int rows,
                             const T *h, const T *h1) {
        LAUNCH(Kernels<T>::grouped, dim3((n + 31) / 32, std::max(1, std::min(experts, rows) + rows / 32), products), dim3(128), 4 * 32 * 36 * 4,
               y.data(), y1.data(), x.data(), x1.data(), h, h1, w.at.data(), rank ? b.at.data() : nullptr,
               gathered || rows != of_x ? which.data() : nullptr, starts.data(), n, k, rank, experts, factor);
    };
    in_every_order([&] {
        Buffer<T> y(size_t(rows) * n), y1(size_t(rows) * n);
        compute(y, y1, which, starts, rows, h.data(), h1.data());
        for (int product = 0; product < products; product++) {
            const Buffer<T> &from = product ? x1 : x, &beside = product ? h1 : h, &found = product ? y1 : y;
            Error error;
            for (int e = 0, row = 0; e < experts; e++)
                for (int i = 0; i < counts[e]; i++, row++)
                    for (int out = 0; out < n; out++) {
                        double sum = 0;
                        const Buffer<T> &weight = w.each[size_t(product) * experts + e], &up = b.each[size_t(product) * experts + e];
                        for (int j = 0; j < k; j++)
                            sum += double(widened(from[size_t(which[row]) * k + j])) * widened(weight[size_t(out) * k + j]);
                        for (int j = 0; j < rank; j++)
                            sum += double(widened(beside[size_t(row) * rank + j])) * widened(up[size_t(out) * rank + j]);
                        error.add(widened(found[size_t(row) * n + out]), sum * factor);
                    }
            note(std::string("grouped_") + type_name<T>(), what, error.relative(), tolerance<T>());
        }
        if (products == 1)
            for (size_t i = 0; i < y1.size(); i++)
                if (!is_poison(y1[i])) note(std::string("grouped_") + type_name<T>(), what, NAN, 0);
        // A row alone has the same bits.
        if (rows < 2) return;
        const int row = random.below(rows);
        Buffer<unsigned> alone(experts + 1), of_row(1);
        for (int e = 0; e <= experts; e++) alone[e] = starts[e] > unsigned(row);
        of_row[0] = which[row];
        Buffer<T> z(n), z1(n);
        compute(z, z1, of_row, alone, 1, h.data() + size_t(row) * rank, h1.data() + size_t(row) * rank);
        bool same = memcmp(z.data(), y.data() + size_t(row) * n, n * sizeof(T)) == 0;
        if (products == 2) same = same && memcmp(z1.data(), y1.data() + size_t(row) * n, n * sizeof(T)) == 0;
        note("a row alone", what, same ? 0 : NAN, 0);
    });
}

template <typename T> void all(Random &random) {
    // No expert has a row; one has one; the first and the last have some.
    run<T>({0, 0, 0}, 5, 40, 0, 1, false, true, random);
    run<T>({0, 1, 0}, 64, 256, 0, 1, false, true, random);
    run<T>({8, 0, 0, 9}, 33, 264, 8, 2, true, true, random);
    // A tile of rows, one more and one less; more experts than a warp has lanes; pieces that are not whole.
    run<T>({7, 16, 17, 1, 0, 31, 32, 33}, 40, 72, 0, 1, false, true, random);
    std::vector<int> many(70, 0);
    many[0] = 2, many[31] = 1, many[32] = 40, many[63] = 3, many[64] = 1, many[69] = 65;
    run<T>(many, 31, 100, 3, 2, true, true, random);
    // One expert has all rows, of which nothing is aligned.
    run<T>({0, 100, 0}, 70, 515, 16, 2, false, true, random);
    run<T>({3, 0, 5}, 17, 129, 5, 1, true, false, random);
    run<T>({1}, 1, 1, 1, 1, false, false, random);
    // Each warp of a block has several pieces, and the last ones have one less.
    run<T>({2, 3}, 32, 64 * 9 + 8, 64, 1, false, true, random);
}

int main() {
    Random random(29);
    all<float>(random);
    all<bf16>(random);
    return report();
}
