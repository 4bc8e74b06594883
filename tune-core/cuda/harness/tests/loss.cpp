// Cross-entropy and its gradient against loops in f64.
#include "../harness.h"

#include "../../kernels/loss.cu"

using namespace harness;

struct Case {
    int rows, cols, pad;
    unsigned threads;
    bool weighted;
    float softcap, size;
};

// With `BESIDE` of a kernel that smooths labels and keeps logits near 0.
template <typename In, typename Out, bool BESIDE = false, typename K>
void run(const char *name, K kernel, const Case &c, Random &random) {
    const float smoothing = BESIDE ? 0.1f : 0, z = BESIDE ? 0.02f : 0;
    const int stride = c.cols + c.pad;
    Buffer<In> logits(size_t(c.rows) * stride);
    Buffer<unsigned> targets(c.rows);
    Buffer<float> weights(c.rows), factor(1);
    fill(logits, random, c.size);
    for (int i = 0; i < c.rows; i++) {
        targets[i] = i % 5 == 3 ? 0xffffffffu : unsigned(i == 0 ? c.cols - 1 : random.below(c.cols));
        weights[i] = i % 7 == 2 ? 0.0f : std::fabs(random.next());
    }
    factor[0] = 0.25f;
    char what[200];
    snprintf(what, sizeof what, "%d x %d, stride %d, %u threads, weights %d, softcap %g, up to %g", c.rows, c.cols, stride,
             c.threads, c.weighted, c.softcap, c.size);
    for (int gradient = 0; gradient < 2; gradient++)
        in_every_order([&] {
            Buffer<In> x(logits);
            Buffer<float> losses(c.rows);
            Buffer<double> sum(1);
            const float *of_rows = c.weighted ? weights.data() : nullptr;
            if constexpr (BESIDE) {
                LAUNCH(kernel, dim3((c.rows + 1) / 2), dim3(c.threads), c.threads / 8, losses.data(), x.data(), targets.data(),
                       of_rows, factor.data(), c.rows, c.cols, stride, gradient, 2.0f, c.softcap, smoothing, z);
            } else {
                LAUNCH(kernel, dim3((c.rows + 1) / 2), dim3(c.threads), c.threads / 8, losses.data(), x.data(), targets.data(),
                       of_rows, factor.data(), c.rows, c.cols, stride, gradient, 2.0f, c.softcap);
            }
            LAUNCH(sum_f32, dim3(1), dim3(1024), 8 * 1024, sum.data(), losses.data(), c.rows, 0);
            Error of_loss, of_gradient, of_sum;
            double total = 0;
            bool kept = true;
            for (int row = 0; row < c.rows; row++) {
                const In *l = logits.data() + size_t(row) * stride;
                const double weight = targets[row] == 0xffffffffu ? 0 : c.weighted ? weights[row] : 1;
                std::vector<double> y(c.cols);
                double most = -INFINITY, all = 0, mean = 0;
                for (int i = 0; i < c.cols; i++) {
                    y[i] = widened(l[i]);
                    if (c.softcap > 0) y[i] = c.softcap * std::tanh(y[i] / c.softcap);
                    most = std::max(most, y[i]);
                    mean += y[i] / c.cols;
                }
                for (int i = 0; i < c.cols; i++) all += std::exp(y[i] - most);
                const double whole = std::log(all) + most;
                const double right = weight == 0 ? 0
                                                 : weight * ((1 - smoothing) * (whole - y[targets[row]]) +
                                                             smoothing * (whole - mean) + z * whole * whole);
                of_loss.add(losses[row], right);
                total += losses[row];
                const Out *g = reinterpret_cast<const Out *>(x.data() + size_t(row) * stride);
                for (int i = 0; i < c.cols; i++) {
                    if (!gradient) {
                        kept = kept && widened(x[size_t(row) * stride + i]) == widened(l[i]);
                        continue;
                    }
                    double p = weight == 0 ? 0
                                           : (1 + 2 * z * whole) * std::exp(y[i] - most) / all -
                                                 (1 - smoothing) * (unsigned(i) == targets[row]) - smoothing / c.cols;
                    if (c.softcap > 0) p *= 1 - y[i] / c.softcap * y[i] / c.softcap;
                    of_gradient.add(widened(g[i]), 0.5 * weight * p);
                }
                for (int i = c.cols; i < stride; i++)
                    kept = kept && widened(x[size_t(row) * stride + i]) == widened(l[i]);
            }
            of_sum.add(sum[0], total);
            note(name, what, kept ? of_loss.relative() : NAN, 3e-6);
            if (gradient) note(std::string(name) + " gradient", what, of_gradient.relative(), tolerance<Out>());
            note("sum_f32", what, of_sum.relative(), 1e-12);
        });
}

int main() {
    Random random(6);
    const Case cases[] = {{1, 1, 0, 32, false, 0, 1},     {9, 77, 3, 64, true, 0, 4},   {4, 1024, 0, 128, true, 30, 40},
                          {3, 5000, 8, 1024, false, 0, 20}, {2, 2049, 1, 256, true, 0, 300}, {3, 40, 0, 1024, true, 5, 3}};
    for (const Case &c : cases) {
        run<float, float>("loss_f32_f32", loss_f32_f32, c, random);
        run<float, bf16>("loss_f32_bf16", loss_f32_bf16, c, random);
        run<bf16, bf16>("loss_bf16_bf16", loss_bf16_bf16, c, random);
        run<float, float, true>("token_loss_f32_f32", token_loss_f32_f32, c, random);
        run<float, bf16, true>("token_loss_f32_bf16", token_loss_f32_bf16, c, random);
        run<bf16, bf16, true>("token_loss_bf16_bf16", token_loss_bf16_bf16, c, random);
    }
    // Every logit counts in the maximum: e^300 is more than f32 holds.
    for (int large : {0, 131, 250, 999})
        in_every_order([&] {
            Buffer<float> x(1000), losses(1);
            Buffer<unsigned> target(1);
            fill(x, random);
            x[large] = 300, target[0] = 3;
            const float right = 300 - x[3];
            LAUNCH(loss_f32_f32, dim3(1), dim3(64), 8, losses.data(), x.data(), target.data(), nullptr, nullptr, 1, 1000, 1000, 0,
                   1.0f, 0.0f);
            note("loss with one large logit", std::to_string(large), std::fabs(losses[0] - right) / right, 1e-6);
        });
    // A logit that is no number is not hidden.
    for (float bad : {NAN, INFINITY})
        in_every_order([&] {
            Buffer<float> x(100), losses(1);
            Buffer<unsigned> target(1);
            fill(x, random);
            x[57] = bad, target[0] = 3;
            LAUNCH(loss_f32_f32, dim3(1), dim3(64), 8, losses.data(), x.data(), target.data(), nullptr, nullptr, 1, 100, 100, 0,
                   1.0f, 0.0f);
            note("loss of what is no number", "one in a row", std::isfinite(losses[0]) ? 1 : 0, 0);
        });
    return report();
}
