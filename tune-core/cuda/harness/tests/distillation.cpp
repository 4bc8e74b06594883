// A student's loss, its divergence from its teacher and their gradient, and capped logits, against loops in f64.
#include "../harness.h"

#include "../../kernels/distillation.cu"

using namespace harness;

struct Case {
    int rows, cols, pad;
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
    const int stride = c.cols + c.pad, teachers = c.cols + (c.pad ? c.pad + 4 : 0);
    Buffer<float> student(size_t(c.rows) * stride), teacher(size_t(c.rows) * teachers), scales(c.rows);
    Buffer<unsigned> targets(c.rows);
    // The teacher's logits are about the student's, and all of them larger: that changes no probability.
    fill(student, random, c.size), fill(teacher, random, c.size / 2), fill(scales, random);
    for (int row = 0; row < c.rows; row++) {
        targets[row] = unsigned(row == 0 ? c.cols - 1 : random.below(c.cols));
        for (int i = 0; i < c.cols; i++) teacher[size_t(row) * teachers + i] += 0.5f * student[size_t(row) * stride + i] + 3;
    }
    char what[200];
    snprintf(what, sizeof what, "%d x %d, strides %d and %d, %u threads, ratio %g, forward %g, softcap %g, up to %g", c.rows,
             c.cols, stride, teachers, c.threads, c.ratio, c.forward, c.softcap, c.size);
    for (int gradient = 0; gradient < 2; gradient++)
        in_every_order([&] {
            Buffer<float> x(student), losses(c.rows), divergences(c.rows);
            LAUNCH(kernel, dim3((c.rows + 1) / 2), dim3(c.threads), c.threads / 8, losses.data(), divergences.data(), x.data(),
                   teacher.data(), targets.data(), gradient ? scales.data() : nullptr, c.rows, c.cols, stride, teachers,
                   gradient, c.ratio, c.forward, c.softcap);
            Error of_loss, of_divergence, of_gradient;
            bool kept = true;
            for (int row = 0; row < c.rows; row++) {
                std::vector<double> z(c.cols), y(c.cols);
                for (int i = 0; i < c.cols; i++) {
                    z[i] = student[size_t(row) * stride + i], y[i] = teacher[size_t(row) * teachers + i];
                    if (c.softcap > 0) z[i] = c.softcap * std::tanh(z[i] / c.softcap);
                }
                const std::vector<double> p = log_softmax(z), q = log_softmax(y);
                double forward = 0, reverse = 0;
                for (int i = 0; i < c.cols; i++)
                    forward += std::exp(q[i]) * (q[i] - p[i]), reverse += std::exp(p[i]) * (p[i] - q[i]);
                of_loss.add(losses[row], -p[targets[row]]);
                of_divergence.add(divergences[row], c.forward * forward + (1 - c.forward) * reverse);
                const Out *g = reinterpret_cast<const Out *>(x.data() + size_t(row) * stride);
                for (int i = 0; i < c.cols; i++) {
                    const double e = std::exp(p[i]);
                    double right = (1 - c.ratio) * (e - (unsigned(i) == targets[row]));
                    right += c.ratio * c.forward * (e - std::exp(q[i]));
                    right += c.ratio * (1 - c.forward) * e * (p[i] - q[i] - reverse);
                    if (c.softcap > 0) right *= 1 - z[i] / c.softcap * z[i] / c.softcap;
                    if (gradient) of_gradient.add(widened(g[i]), double(scales[row]) * right);
                    else kept = kept && x[size_t(row) * stride + i] == student[size_t(row) * stride + i];
                }
                for (int i = c.cols; i < stride; i++)
                    kept = kept && x[size_t(row) * stride + i] == student[size_t(row) * stride + i];
            }
            // Of one logit, both are zero.
            const bool one = c.cols == 1;
            note(std::string(name) + " loss", what, !kept ? NAN : one ? of_loss.difference : of_loss.relative(), 3e-6);
            note(std::string(name) + " divergence", what, one ? of_divergence.difference : of_divergence.relative(), 5e-6);
            if (gradient) note(std::string(name) + " gradient", what, of_gradient.relative(), std::max(tolerance<Out>(), 4e-6));
        });
}

// Of a teacher's `k` likeliest tokens, and all others as one.
template <typename Out, typename K> void run_top(const char *name, K kernel, const Case &c, int k, Random &random) {
    const int stride = c.cols + c.pad;
    Buffer<float> student(size_t(c.rows) * stride), scales(c.rows), log_probs(size_t(c.rows) * k), rest(c.rows);
    Buffer<unsigned> targets(c.rows), ids(size_t(c.rows) * k);
    fill(student, random, c.size), fill(scales, random);
    std::vector<std::vector<double>> known;
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
    snprintf(what, sizeof what, "%d of %d x %d, stride %d, %u threads, ratio %g, forward %g, softcap %g, up to %g", k, c.rows,
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
                double others = 0, forward = 0, reverse = 0;
                for (int i = 0; i < c.cols; i++)
                    if (outcome[i] == k) others += std::exp(p[i]);
                std::vector<double> log_p(k + 1, std::log(others)), log_q(k + 1, rest[row]);
                for (int i = 0; i < k; i++)
                    log_p[i] = p[ids[size_t(row) * k + i]], log_q[i] = log_probs[size_t(row) * k + i];
                for (int i = 0; i < (k < c.cols ? k + 1 : k); i++) {
                    forward += std::exp(log_q[i]) * (log_q[i] - log_p[i]);
                    reverse += std::exp(log_p[i]) * (log_p[i] - log_q[i]);
                }
                of_loss.add(losses[row], -p[targets[row]]);
                of_divergence.add(divergences[row], c.forward * forward + (1 - c.forward) * reverse);
                const Out *g = reinterpret_cast<const Out *>(x.data() + size_t(row) * stride);
                for (int i = 0; i < c.cols && gradient; i++) {
                    const double lp = log_p[outcome[i]], lq = log_q[outcome[i]], e = std::exp(lp);
                    double right = c.ratio * c.forward * (e - std::exp(lq));
                    right += c.ratio * (1 - c.forward) * e * (lp - lq - reverse);
                    right *= std::exp(p[i] - lp);
                    right += (1 - c.ratio) * (std::exp(p[i]) - (unsigned(i) == targets[row]));
                    if (c.softcap > 0) right *= 1 - z[i] / c.softcap * z[i] / c.softcap;
                    of_gradient.add(widened(g[i]), double(scales[row]) * right);
                }
                for (int i = c.cols; i < stride; i++)
                    kept = kept && x[size_t(row) * stride + i] == student[size_t(row) * stride + i];
            }
            note(std::string(name) + " loss", what, kept ? of_loss.relative() : NAN, 3e-6);
            // Of two outcomes it is a small difference of large numbers.
            note(std::string(name) + " divergence", what, of_divergence.relative(), k == 1 ? 5e-5 : 1e-5);
            if (gradient) note(std::string(name) + " gradient", what, of_gradient.relative(), std::max(tolerance<Out>(), 8e-6));
        });
}

int main() {
    Random random(31);
    const Case cases[] = {{1, 1, 0, 32, 0.5f, 1, 0, 1},      {9, 77, 3, 64, 0.5f, 1, 0, 4},
                          {4, 1024, 0, 128, 0.25f, 0, 30, 40}, {3, 5000, 8, 1024, 1, 0.25f, 0, 20},
                          {2, 2049, 1, 256, 0.5f, 0.5f, 0, 12}, {3, 40, 0, 1024, 0, 1, 5, 3}};
    for (const Case &c : cases) {
        run<float>("distill_f32", distill_f32, c, random);
        run<bf16>("distill_bf16", distill_bf16, c, random);
    }
    const std::pair<Case, int> of_known[] = {{{9, 77, 3, 64, 0.5f, 1, 0, 4}, 5},       {{4, 1024, 0, 128, 0.25f, 0, 30, 40}, 130},
                                             {{3, 5000, 8, 1024, 1, 0.25f, 0, 12}, 1}, {{2, 2049, 1, 256, 0.5f, 0.5f, 0, 12}, 300},
                                             {{3, 40, 0, 1024, 0.5f, 0.75f, 5, 3}, 40}};
    for (const auto &[c, k] : of_known) {
        run_top<float>("distill_top_f32", distill_top_f32, c, k, random);
        run_top<bf16>("distill_top_bf16", distill_top_bf16, c, k, random);
    }
    // A logit that is no number is not hidden, be it known or one of the others.
    for (int where : {5, 57})
        in_every_order([&] {
            Buffer<float> x(100), losses(1), divergences(1), own(1), log_probs(1), rest(1);
            Buffer<unsigned> target(1), ids(1);
            fill(x, random), target[0] = 3, ids[0] = 5, log_probs[0] = rest[0] = std::log(0.5f);
            x[where] = NAN;
            LAUNCH(distill_top_f32, dim3(1), dim3(64), 8, losses.data(), divergences.data(), x.data(), ids.data(),
                   log_probs.data(), rest.data(), own.data(), target.data(), nullptr, 1, 100, 100, 1, 0, 0.5f, 0.5f, 0.0f);
            note("divergence of what is no number", where == 5 ? "one of the known" : "one of the others",
                 std::isfinite(divergences[0]), 0);
        });
    // A student that is its teacher is not apart from it.
    in_every_order([&] {
        Buffer<float> x(1000), losses(1), divergences(1);
        Buffer<unsigned> target(1);
        fill(x, random, 9), target[0] = 7;
        LAUNCH(distill_f32, dim3(1), dim3(64), 8, losses.data(), divergences.data(), x.data(), x.data(), target.data(), nullptr, 1,
               1000, 1000, 1000, 0, 1.0f, 0.5f, 0.0f);
        note("divergence from itself", "1000 logits", std::fabs(divergences[0]), 0);
    });
    // A logit that is no number is not hidden, whoever has it.
    for (int whose = 0; whose < 2; whose++)
        in_every_order([&] {
            Buffer<float> both[2] = {Buffer<float>(100), Buffer<float>(100)}, losses(1), divergences(1);
            Buffer<unsigned> target(1);
            fill(both[0], random), fill(both[1], random), target[0] = 3;
            both[whose][57] = NAN;
            LAUNCH(distill_f32, dim3(1), dim3(64), 8, losses.data(), divergences.data(), both[0].data(), both[1].data(),
                   target.data(), nullptr, 1, 100, 100, 100, 0, 0.5f, 0.5f, 0.0f);
            note("divergence of what is no number", whose ? "the teacher's" : "the student's", std::isfinite(divergences[0]), 0);
        });
    for (int n : {1, 7, 1024, 5003})
        for (int first : {0, 1})
            in_every_order([&] {
                Buffer<float> before(first + n);
                fill(before, random, 9);
                Buffer<float> x(before);
                LAUNCH(softcap_f32, dim3(2), dim3(256), 0, x.data() + first, n, 3.0f);
                Error error;
                for (int i = first; i < first + n; i++) error.add(x[i], 3 * std::tanh(double(before[i]) / 3));
                note("softcap_f32", std::to_string(n), first && x[0] != before[0] ? NAN : error.relative(), 1e-6);
            });
    return report();
}
