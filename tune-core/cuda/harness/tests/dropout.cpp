// Dropout against the processor's rule, element by element.
#include "../harness.h"

#include "../../kernels/dropout.cu"

using namespace harness;

static uint64_t splitmix(uint64_t key, uint64_t part) {
    uint64_t z = key ^ (part * 0x9e3779b97f4a7c15ull + 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

template <typename T, typename K> void run(K kernel, int rows, int cols, int pad, double p, bool selected, bool added, Random &random) {
    const int stride = cols + pad, wide = 16 / int(sizeof(T));
    const uint64_t key = 0x123456789abcdefull;
    Buffer<T> x(size_t(rows) * stride), onto(x.size());
    Buffer<unsigned> indices(rows);
    fill(x, random), fill(onto, random);
    for (int i = 0; i < rows; i++) indices[i] = 3 * i + 1;
    char what[200];
    snprintf(what, sizeof what, "%d x %d, stride %d, p %g, selected %d, added %d", rows, cols, stride, p, selected, added);
    in_every_order([&] {
        Buffer<T> y(x.size());
        LAUNCH(kernel, dim3((cols + wide * 256 - 1) / (wide * 256), rows), dim3(256), 0, y.data(), x.data(),
               added ? onto.data() : nullptr, selected ? indices.data() : nullptr, rows, cols, stride, stride, stride,
               float(1 / (1 - p)), (unsigned long long)(std::ceil(p * 9007199254740992.0)), key);
        Error error;
        bool kept = true;
        int dropped = 0;
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < stride; i++) {
                const size_t at = size_t(row) * stride + i;
                if (i >= cols) {
                    kept = kept && is_poison(y[at]);
                    continue;
                }
                const uint64_t index = uint64_t(selected ? indices[row] : row) * cols + i;
                const double uniform = double(splitmix(key, index) >> 11) / 9007199254740992.0;
                dropped += uniform < p;
                error.add(widened(y[at]), (uniform < p ? 0 : widened(x[at]) / (1 - p)) + (added ? widened(onto[at]) : 0));
            }
        const double share = double(dropped) / rows / cols;
        if (rows * cols > 4000) note("dropout: share of what is dropped", what, std::fabs(share - p), 0.03);
        note(std::string("dropout_") + type_name<T>(), what, kept ? error.relative() : NAN, tolerance<T>());
    });
}

int main() {
    Random random(5);
    for (double p : {0.0, 0.1, 0.5})
        for (int kind = 0; kind < 4; kind++) {
            run<float>(dropout_f32, 3, 1000, 0, p, kind & 1, kind & 2, random);
            run<bf16>(dropout_bf16, 5, 1000, 8, p, kind & 1, kind & 2, random);
            run<float>(dropout_f32, 7, 13, 2, p, kind & 1, kind & 2, random);
            run<bf16>(dropout_bf16, 1, 1, 0, p, kind & 1, kind & 2, random);
        }
    return report();
}
