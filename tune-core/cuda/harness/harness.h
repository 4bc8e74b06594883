// What a test of kernels is written in, on a card (nvcc) and without one (any C++ compiler): buffers, launches, errors.
#pragma once

#include <primitives.cuh>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#ifdef __CUDACC__
#include "card.h"
#else
#include "fibers.h"
#endif

namespace harness {

inline float widened(float x) { return x; }
inline float widened(bf16 x) { return host_f32(x); }

// Numbers in [-1, 1) that need all bits of their type.
struct Random {
    std::mt19937 engine;
    explicit Random(unsigned seed) : engine(seed) {}
    float next() { return float(double(engine()) / 2147483648.0 - 1.0); }
    int below(int n) { return int(engine() % unsigned(n)); }
};

template <typename T> void fill(Buffer<T> &b, Random &random, float size = 1.0f) {
    for (size_t i = 0; i < b.size(); i++) b[i] = host_from<T>(size * random.next());
}

// All bits set: not-a-number for every type of float.
template <typename T> void poison(Buffer<T> &b) { memset(b.data(), 0xff, b.size() * sizeof(T)); }

template <typename T> std::vector<double> doubles(const Buffer<T> &b) {
    std::vector<double> d(b.size());
    for (size_t i = 0; i < b.size(); i++) d[i] = double(widened(b[i]));
    return d;
}

// |out - right| / |right|; what is not a number never passes.
struct Error {
    double difference = 0, size = 0;
    void add(double out, double right) {
        difference += (out - right) * (out - right);
        size += right * right;
    }
    double relative() const { return std::sqrt(difference / (size > 0 ? size : 1)); }
};

struct Row {
    std::string name;
    double error = 0, bound = 0;
    int cases = 0;
};

inline std::vector<Row> &table() {
    static std::vector<Row> rows;
    return rows;
}
inline bool &failed() {
    static bool f = false;
    return f;
}

// Notes an error under a name; the worst of each name is printed. Above its bound the program fails.
inline void note(const std::string &name, const std::string &what, double error, double bound) {
    if (!(error <= bound)) {
        failed() = true;
        printf("FAILED %s: %s: error %.3e, at most %.1e is right\n", name.c_str(), what.c_str(), error, bound);
    }
    for (Row &row : table())
        if (row.name == name) {
            if (!(error <= row.error)) row.error = error;
            row.cases++;
            return;
        }
    table().push_back({name, error, bound, 1});
}

template <typename T> constexpr double tolerance() { return sizeof(T) == 4 ? 2e-6 : 4e-3; }
template <typename T> constexpr const char *type_name() { return sizeof(T) == 4 ? "f32" : "bf16"; }

inline int report() {
    for (const Row &row : table())
        printf("%-34s %4d cases  worst error %.2e  bound %.0e\n", row.name.c_str(), row.cases, row.error, row.bound);
    return failed() ? 1 : 0;
}

// What must be written by nobody: the elements between a row's end and the next row.
template <typename T> bool is_poison(T x) {
    unsigned char bytes[sizeof(T)];
    memcpy(bytes, &x, sizeof(T));
    for (unsigned char b : bytes)
        if (b != 0xff) return false;
    return true;
}

} // namespace harness

#define LAUNCH(kernel, grid, block, shared, ...) harness::launch(#kernel, kernel, grid, block, shared, __VA_ARGS__)
