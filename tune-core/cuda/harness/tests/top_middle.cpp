// A student's loss, its divergence from what lies between it and a teacher of which the likeliest tokens are known, and their gradient,
// against loops in f64.
#include "../harness.h"

#include "../../kernels/top_middle.cu"

using namespace harness;

struct Case {
    int rows, cols, pad, k;
    unsigned threads;
    float ratio, forward, softcap, size;
};

std::vector<double> log_softmax(std::vector<double> x) {
    const double most = *std::max_element(x.begin(), x.end());
    double sum = 0;
    for (double a : x) sum += std::exp(a - most);
    for (double &a : x) a -= most + std::log(sum);
    return x;
}

template <typename Out, typename K> void run(const char *name, K kernel, const Case &c, Random &random) {
    const int stride = c.cols + c.pad, k = c.k, outcomes = k < c.cols ? k + 1 : k;
    Buffer<float> student(size_t(c.rows) * stride), scales(c.rows), log_probs(size_t(c.rows) * k), rest(c.rows);
    Buffer<unsigned> targets(c.rows), ids(size_t(c.rows) * k);
    fill(student, random, c.size), fill(scales, random);
    for (int row = 0; row < c.rows; row++) {
        std::vector<double> y(c.cols);
        for (int i = 0; i < c.cols; i++) y[i] = c.size / 2 * random.next() + 0.5 * student[size_t(row) * stride + i];
        const std::vector<double> q = log_softmax(y);
        std::vector<unsigned> order(c.cols);
        for (int i = 0; i < c.cols; i++) order[i] = unsigned(i);
        std::sort(order.begin(), order.end(), [&](unsigned a, unsigned b) { return q[a] > q[b]; });
        double others = 0;
        for (int i = k; i < c.cols; i++) others += std::exp(q[order[i]]);
        for (int i = 0; i < k; i++) ids[size_t(row) * k + i] = order[i], log_probs[size_t(row) * k + i] = float(q[order[i]]);
        // Not read where there are no others.
        rest[row] = k < c.cols ? float(std::log(others)) : NAN;
        // One of the known, or one of the others.
        targets[row] = row % 2 ? order[random.below(k)] : order[c.cols - 1];
    }
    char what[200];
    snprintf(what, sizeof what, "%d of %d x %d, stride %d, %u threads, ratio %g, %g of the teacher, softcap %g, up to %g", k, c.rows,
             c.cols, stride, c.threads, c.ratio, c.forward, c.softcap, c.size);
    for (int gradient = 0; gradient < 2; gradient++)
        in_every_order([&] {
            Buffer<float> x(student), losses(c.rows), divergences(c.rows), own(size_t(c.rows) * k);
            LAUNCH(kernel, dim3((c.rows + 1) / 2), dim3(c.threads), c.threads / 8, losses.data(), divergences.data(), x.data(),
                   ids.data(), log_probs.data(), rest.data(), own.data(), targets.data(), gradient ? scales.data() : nullptr,
                   c.rows, c.cols, stride, k, gradient, c.ratio, c.forward, c.softcap);
            Error of_loss, of_divergence, of_gradient;
            bool kept = true;
            for (int row = 0; row < c.rows; row++) {
                std::vector<double> z(c.cols);
                for (int i = 0; i < c.cols; i++) {
                    z[i] = student[size_t(row) * stride + i];
                    if (c.softcap > 0) z[i] = c.softcap * std::tanh(z[i] / c.softcap);
                }
                const std::vector<double> p = log_softmax(z);
                std::vector<int> outcome(c.cols, k);
                for (int i = 0; i < k; i++) outcome[ids[size_t(row) * k + i]] = i;
                double others = 0, from_teacher = 0, from_student = 0;
                for (int i = 0; i < c.cols; i++)
                    if (outcome[i] == k) others += std::exp(p[i]);
                std::vector<double> log_p(k + 1, std::log(others)), log_q(k + 1, rest[row]), log_m(k + 1);
                for (int i = 0; i < k; i++)
                    log_p[i] = p[ids[size_t(row) * k + i]], log_q[i] = log_probs[size_t(row) * k + i];
                const double f = c.forward;
                for (int i = 0; i < outcomes; i++) {
                    log_m[i] = std::log(f * std::exp(log_q[i]) + (1 - f) * std::exp(log_p[i]));
                    from_teacher += std::exp(log_q[i]) * (log_q[i] - log_m[i]);
                    from_student += std::exp(log_p[i]) * (log_p[i] - log_m[i]);
                }
                of_loss.add(losses[row], -p[targets[row]]);
                of_divergence.add(divergences[row], f * from_teacher + (1 - f) * from_student);
                const Out *g = reinterpret_cast<const Out *>(x.data() + size_t(row) * stride);
                for (int i = 0; i < c.cols && gradient; i++) {
                    const int of = outcome[i];
                    double right = c.ratio * (1 - f) * std::exp(log_p[of]) * (log_p[of] - log_m[of] - from_student);
                    right *= std::exp(p[i] - log_p[of]);
                    right += (1 - c.ratio) * (std::exp(p[i]) - (unsigned(i) == targets[row]));
                    if (c.softcap > 0) right *= 1 - z[i] / c.softcap * z[i] / c.softcap;
                    of_gradient.add(widened(g[i]), double(scales[row]) * right);
                }
                for (int i = c.cols; i < stride; i++)
                    kept = kept && x[size_t(row) * stride + i] == student[size_t(row) * stride + i];
            }
            note(std::string(name) + " loss", what, !kept ? NAN : c.cols == 1 ? of_loss.difference : of_loss.relative(), 3e-6);
            note(std::string(name) + " divergence", what, c.cols == 1 ? of_divergence.difference : of_divergence.relative(), 1e-5);
            if (gradient) note(std::string(name) + " gradient", what, of_gradient.relative(), std::max(tolerance<Out>(), 8e-6));
        });
}

int main() {
    Random random(53);
    const Case cases[] = {{1, 1, 0, 1, 32, 0.5f, 0.5f, 0, 1},        {9, 77, 3, 5, 64, 0.75f, 0.5f, 0, 4},
                          {9, 77, 3, 77, 64, 0.5f, 0.9f, 0, 4},      {4, 1024, 0, 64, 128, 0.25f, 0.1f, 30, 20},
                          {3, 5000, 8, 33, 1024, 1, 0.25f, 0, 12},   {2, 2049, 1, 100, 256, 0.5f, 0.5f, 0, 12},
                          {3, 40, 0, 1, 1024, 0.9f, 0.3f, 5, 3}};
    for (const Case &c : cases) {
        run<float>("distill_top_middle_f32", distill_top_middle_f32, c, random);
        run<bf16>("distill_top_middle_bf16", distill_top_middle_bf16, c, random);
    }
    // A logit that is no number is not hidden.
    in_every_order([&] {
        Buffer<float> x(100), losses(1), divergences(1), log_probs(2), rest(1), own(2);
        Buffer<unsigned> target(1), ids(2);
        fill(x, random), target[0] = 3, ids[0] = 3, ids[1] = 9, x[57] = NAN;
        log_probs[0] = std::log(0.5f), log_probs[1] = std::log(0.25f), rest[0] = std::log(0.25f);
        LAUNCH(distill_top_middle_f32, dim3(1), dim3(64), 8, losses.data(), divergences.data(), x.data(), ids.data(), log_probs.data(),
               rest.data(), own.data(), target.data(), nullptr, 1, 100, 100, 2, 0, 0.5f, 0.5f, 0.0f);
        note("divergence of what is no number", "the student's", std::isfinite(divergences[0]), 0);
    });
    return report();
}
