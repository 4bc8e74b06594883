// Gated activations against loops in f64, forward and backward.
#include "../harness.h"

#include "../../kernels/gate.cu"

using namespace harness;

static void reference(int which, double x, double &value, double &slope) {
    if (which == 0) {
        const double s = 1 / (1 + std::exp(-x));
        value = x * s, slope = s + x * s * (1 - s);
        return;
    }
    const double root = std::sqrt(2 / 3.14159265358979323846), t = std::tanh(root * (x + 0.044715 * x * x * x));
    value = 0.5 * x * (1 + t), slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * root * (1 + 3 * 0.044715 * x * x);
}

template <typename T> struct Gate;
template <> struct Gate<float> {
    static constexpr auto forward = gate_forward_f32;
    static constexpr auto backward = gate_backward_f32;
};
template <> struct Gate<bf16> {
    static constexpr auto forward = gate_forward_bf16;
    static constexpr auto backward = gate_backward_bf16;
};

template <typename T> void run(int rows, int cols, int pad, float size, Random &random) {
    const int stride = cols + pad, wide = 16 / int(sizeof(T));
    Buffer<T> gate(size_t(rows) * stride), up(gate.size()), grad(gate.size());
    fill(gate, random, size), fill(up, random), fill(grad, random);
    const dim3 grid((cols + wide * 256 - 1) / (wide * 256), rows);
    char what[200];
    for (int which = 0; which < 2; which++) {
        snprintf(what, sizeof what, "%d x %d, stride %d, up to %g, activation %d", rows, cols, stride, size, which);
        in_every_order([&] {
            Buffer<T> y(gate.size()), g(gate), u(up), d(grad);
            LAUNCH(Gate<T>::forward, grid, dim3(256), 0, y.data(), gate.data(), up.data(), rows, cols, stride, stride, stride,
                   which);
            LAUNCH(Gate<T>::backward, grid, dim3(256), 0, g.data(), u.data(), d.data(), rows, cols, stride, stride, stride,
                   which);
            Error of_y, of_g, of_u;
            bool kept = true;
            for (int row = 0; row < rows; row++)
                for (int i = 0; i < stride; i++) {
                    const size_t at = size_t(row) * stride + i;
                    if (i >= cols) {
                        kept = kept && is_poison(y[at]) && widened(g[at]) == widened(gate[at]);
                        continue;
                    }
                    double value, slope;
                    const double up_at = widened(up[at]), grad_at = widened(grad[at]);
                    reference(which, widened(gate[at]), value, slope);
                    of_y.add(widened(y[at]), value * up_at);
                    of_y.add(widened(d[at]), value * up_at);
                    of_u.add(widened(u[at]), grad_at * value);
                    of_g.add(widened(g[at]), grad_at * up_at * slope);
                }
            const std::string type = type_name<T>();
            note("gate_forward_" + type, what, kept ? of_y.relative() : NAN, tolerance<T>());
            note("gate_backward_" + type, what, of_g.relative(), tolerance<T>());
            note("gate_backward_" + type + " up", what, of_u.relative(), tolerance<T>());
        });
    }
}

int main() {
    Random random(3);
    for (float size : {1.0f, 30.0f, 200.0f}) {
        run<float>(1, 1, 0, size, random), run<bf16>(1, 1, 0, size, random);
        run<float>(3, 64, 8, size, random), run<bf16>(3, 64, 8, size, random);
        run<float>(2, 2056, 0, size, random), run<bf16>(2, 2056, 0, size, random);
        run<float>(5, 33, 2, size, random), run<bf16>(5, 33, 2, size, random);
    }
    return report();
}
