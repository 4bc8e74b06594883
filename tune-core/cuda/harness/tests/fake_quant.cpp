// Numbers that are rounded to few levels, and gradients that pass: the processor's to the last bit, and near what was rounded.
#include "../rounded.h"

#include "../../kernels/fake_quant.cu"

using namespace harness;

constexpr unsigned long long SEED = 7;

template <typename T> Buffer<T> numbers(int count, unsigned long long seed) {
    std::vector<float> wide(count);
    fill_rounding(wide, seed);
    Buffer<T> x(count);
    for (int i = 0; i < count; i++) x[i] = host_from<T>(wide[i]);
    return x;
}

// Half of the distance between two levels of some numbers, and what rounding to the type adds.
template <typename T> double half_a_level(const T *x, int count, int levels) {
    double least = 0, most = 0;
    for (int i = 0; i < count; i++) least = std::min(least, double(widened(x[i]))), most = std::max(most, double(widened(x[i])));
    const double size = std::max(-least, most);
    // About zero the levels are as far apart as for numbers from minus the largest to it.
    return (levels == 16 ? 2 * size : most - least) / (levels - 1) * 0.5 + size * (sizeof(T) == 4 ? 1e-6 : 6e-3) + 1e-7;
}

template <typename T, typename K, typename B> void weights(const std::string &type, K kernel, B backward) {
    const int which = sizeof(T) == 4 ? 0 : 1;
    for (const Rounding &of : roundings([](const Rounding &r) { return r.kind.rfind("int4", 0) == 0; })) {
        const bool affine = of.kind == "int4_affine";
        const long long groups = of.count / of.group;
        const Buffer<T> x = numbers<T>(of.count, SEED);
        const Buffer<float> gradient = numbers<float>(of.count, SEED + 1);
        in_every_order([&] {
            Buffer<T> y(of.count);
            LAUNCH(kernel, dim3(unsigned((groups + 7) / 8 + 1) / 2), dim3(128), 0, y.data(), x.data(), groups, of.group, int(affine));
            note_hash("fake_quant_weight_" + type, of, "numbers", hash_of(y.data(), y.size()), of.forward[which]);
            double worst = 0;
            for (int i = 0; i < of.count; i++) {
                // What is beyond the outermost level is at it: half a level more about zero. Scales of bf16 move all levels.
                const double most = half_a_level(x.data() + i / of.group * of.group, of.group, 16) * (affine ? 1.3 : 2.01);
                worst = std::max(worst, std::fabs(double(widened(y[i])) - widened(x[i])) / most);
            }
            note("distance from what is rounded", of.kind, worst, 1);
            Buffer<float> g(gradient);
            LAUNCH(backward, dim3(unsigned((groups + 3) / 4)), dim3(64), 0, g.data(), x.data(), groups, of.group, int(affine));
            note_hash("fake_quant_weight_backward_" + type, of, "gradients", hash_of(g.data(), g.size()), of.backward[which]);
        });
    }
}

template <typename T, typename K, typename B> void tokens_of(const std::string &type, K kernel, B backward) {
    const int which = sizeof(T) == 4 ? 0 : 1;
    for (const Rounding &of : roundings([](const Rounding &r) { return r.kind == "int8"; }))
        for (const int pad : {0, 3, 8}) {
            const int cols = of.group, rows = of.count / cols, stride = cols + pad, other = cols + 2 * pad;
            const Buffer<T> all = numbers<T>(of.count, SEED), gradients = numbers<T>(of.count, SEED + 1);
            Buffer<T> x(size_t(rows) * stride), onto(size_t(rows) * other);
            for (int row = 0; row < rows; row++)
                for (int i = 0; i < cols; i++)
                    x[size_t(row) * stride + i] = all[size_t(row) * cols + i], onto[size_t(row) * other + i] = gradients[size_t(row) * cols + cols - 1 - i];
            const unsigned threads = cols < 100 ? 32 : 256;
            in_every_order([&] {
                Buffer<T> y(size_t(rows) * other), dense(of.count);
                LAUNCH(kernel, dim3((rows + 1) / 2), dim3(threads), threads / 8, y.data(), x.data(), rows, cols, other, stride);
                double beside = 0, worst = 0;
                for (int row = 0; row < rows; row++)
                    for (int i = 0; i < other; i++) {
                        const T found = y[size_t(row) * other + i];
                        if (i >= cols) {
                            beside += !is_poison(found);
                            continue;
                        }
                        dense[size_t(row) * cols + i] = found;
                        const T *own = all.data() + size_t(row) * cols;
                        // Zero is a level: all are up to half a level beside what the ends ask for.
                        worst = std::max(worst, std::fabs(double(widened(found)) - widened(own[i])) / (2 * half_a_level(own, cols, 256)));
                    }
                note_hash("fake_quant_tokens_" + type, of, "numbers", hash_of(dense.data(), dense.size()), of.forward[which]);
                note("distance from tokens", std::to_string(pad) + " between rows", worst, 1);
                for (const bool with : {false, true}) {
                    Buffer<T> g(size_t(rows) * stride), sums(of.count);
                    for (int row = 0; row < rows; row++)
                        for (int i = 0; i < cols; i++) g[size_t(row) * stride + i] = gradients[size_t(row) * cols + i];
                    LAUNCH(backward, dim3(rows), dim3(threads), threads / 8, g.data(), x.data(), with ? onto.data() : nullptr, rows, cols,
                           stride, stride, other);
                    for (int row = 0; row < rows; row++)
                        for (int i = 0; i < stride; i++) {
                            if (i >= cols) beside += !is_poison(g[size_t(row) * stride + i]);
                            else sums[size_t(row) * cols + i] = g[size_t(row) * stride + i];
                        }
                    if (!with) {
                        note_hash("fake_quant_tokens_backward_" + type, of, "gradients", hash_of(sums.data(), sums.size()), of.backward[which]);
                        for (int i = 0; i < of.count; i++) dense[i] = sums[i];
                        continue;
                    }
                    double wrong = 0;
                    for (int row = 0; row < rows; row++)
                        for (int i = 0; i < cols; i++) {
                            const float sum = widened(dense[size_t(row) * cols + i]) + widened(onto[size_t(row) * other + i]);
                            wrong += widened(sums[size_t(row) * cols + i]) != widened(host_from<T>(sum));
                        }
                    note("gradients added to others", std::to_string(cols), wrong, 0);
                }
                note("what is between rows", std::to_string(pad), beside, 0);
            });
        }
}

// What is no number changes no other of its group, stays none, and has no gradient.
void no_number() {
    for (int affine = 0; affine < 2; affine++)
        in_every_order([&] {
            Buffer<float> x = numbers<float>(64, SEED), y(64), without(64), g(64);
            for (int i = 0; i < 64; i++) g[i] = 1;
            x[5] = x[6];
            LAUNCH(fake_quant_weight_f32, dim3(1), dim3(32), 0, without.data(), x.data(), 2, 32, affine);
            x[5] = NAN;
            LAUNCH(fake_quant_weight_f32, dim3(1), dim3(32), 0, y.data(), x.data(), 2, 32, affine);
            LAUNCH(fake_quant_weight_backward_f32, dim3(1), dim3(32), 0, g.data(), x.data(), 2, 32, affine);
            double wrong = std::isnan(y[5]) && g[5] == 0 ? 0 : 1;
            for (int i = 0; i < 64; i++) wrong += i != 5 && y[i] != without[i];
            note("what is no number", affine ? "affine" : "about zero", wrong, 0);
        });
}

int main() {
    weights<float>("f32", fake_quant_weight_f32, fake_quant_weight_backward_f32);
    weights<bf16>("bf16", fake_quant_weight_bf16, fake_quant_weight_backward_bf16);
    tokens_of<float>("f32", fake_quant_tokens_f32, fake_quant_tokens_backward_f32);
    tokens_of<bf16>("bf16", fake_quant_tokens_bf16, fake_quant_tokens_backward_bf16);
    no_number();
    return report();
}
