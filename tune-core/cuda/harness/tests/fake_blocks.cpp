// Weights that are rounded to what a file would store: the processor's numbers to the last bit.
#include "../rounded.h"

#include "../../kernels/fake_blocks.cu"

using namespace harness;

// How far a number may be from what is stored of it, for the largest of its block.
double allowed(const std::string &kind) {
    if (kind == "f16") return 6e-4;
    if (kind == "bf16") return 4.1e-3;
    if (kind == "q8_0") return 5e-3;
    return kind == "q6_k" ? 5e-2 : kind[1] == '5' ? 7e-2 : 0.14;
}

template <typename T, typename S, typename E, typename H> void run(const std::string &type, S blocks, E by_eight, H by_sixteen) {
    const int which = sizeof(T) == 4 ? 0 : 1;
    const std::vector<std::pair<std::string, int>> numbers{{"f16", F16},   {"bf16", BF16}, {"q8_0", Q8_0}, {"q4_0", Q4_0},
                                                           {"q4_1", Q4_1}, {"q5_0", Q5_0}, {"q5_1", Q5_1}};
    for (const Rounding &of : roundings([](const Rounding &r) { return r.kind.rfind("int", 0) != 0; })) {
        std::vector<float> wide(of.count);
        fill_rounding(wide, 7);
        Buffer<T> x(of.count);
        for (int i = 0; i < of.count; i++) x[i] = host_from<T>(wide[i]);
        in_every_order([&] {
            Buffer<T> y(of.count);
            if (of.kind == "q4_k" || of.kind == "q5_k") {
                LAUNCH(by_eight, dim3(2), dim3(32), 0, y.data(), x.data(), of.count, int(of.kind == "q5_k"));
            } else if (of.kind == "q6_k") {
                LAUNCH(by_sixteen, dim3(2), dim3(32), 0, y.data(), x.data(), of.count);
            } else {
                for (const auto &[name, number] : numbers)
                    if (name == of.kind) LAUNCH(blocks, dim3((of.count + 127) / 128 / 2 + 1), dim3(64), 0, y.data(), x.data(), of.count, number);
            }
            note_hash("fake_blocks_" + type, of, "numbers", hash_of(y.data(), y.size()), of.forward[which]);
            double worst = 0;
            for (int block = 0; block < of.count; block += of.group) {
                double most = 1e-9;
                const int end = std::min(of.count, block + of.group);
                for (int i = block; i < end; i++) most = std::max(most, std::fabs(double(widened(x[i]))));
                for (int i = block; i < end; i++)
                    worst = std::max(worst, std::fabs(double(widened(y[i])) - widened(x[i])) / most / (allowed(of.kind) + (which ? 4e-3 : 0)));
            }
            note("distance from what is stored", of.kind, worst, 1);
        });
    }
}

int main() {
    run<float>("f32", fake_short_blocks_f32, fake_eighths_f32, fake_sixteenths_f32);
    run<bf16>("bf16", fake_short_blocks_bf16, fake_eighths_bf16, fake_sixteenths_bf16);
    // Half precision has subnormal numbers, and an end.
    in_every_order([&] {
        const float edges[] = {65504, 65519, 65520, -70000, 6.1e-5f, 6.0e-5f, 5.97e-8f, 2.98e-8f, 2.99e-8f, -8.9e-8f, 0.0f, 1e-30f,
                               1.00048828125f, 1.00146484375f};
        const float right[] = {65504, 65504, INFINITY, -INFINITY, 6.097555e-5f, 6.0021877e-5f, 5.9604645e-8f, 0.0f, 5.9604645e-8f, -5.9604645e-8f, 0.0f, 0.0f,
                               1.0f, 1.001953125f};
        constexpr int N = sizeof edges / sizeof *edges;
        Buffer<float> x(N), y(N);
        for (int i = 0; i < N; i++) x[i] = edges[i];
        LAUNCH(fake_short_blocks_f32, dim3(1), dim3(32), 0, y.data(), x.data(), N, int(F16));
        double wrong = 0;
        for (int i = 0; i < N; i++) wrong += !(y[i] == right[i]);
        note("edges of half precision", "numbers that are others", wrong, 0);
    });
    return report();
}
