// A student's loss, its divergence from its teacher at a temperature or from what lies between them, and their gradient, against
// loops in f64.
#include "../harness.h"

#include "../../kernels/general_distillation.cu"

using namespace harness;

struct Case {
    int rows, cols, pad;
    unsigned threads;
    float ratio, of_teacher, temperature;
    bool from_middle;
    float softcap, size;
};

// The logarithm of softmax of logits over a temperature.
std::vector<double> log_softmax(std::vector<double> x, double temperature) {
    for (double &a : x) a /= temperature;
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
    const float factor = 1 / c.temperature;
    char what[200];
    snprintf(what, sizeof what, "%d x %d, strides %d and %d, %u threads, ratio %g, %g of the teacher%s, at %g, softcap %g, up to %g",
             c.rows, c.cols, stride, teachers, c.threads, c.ratio, c.of_teacher, c.from_middle ? " from the middle" : "",
             c.temperature, c.softcap, c.size);
    for (int gradient = 0; gradient < 2; gradient++)
        in_every_order([&] {
            Buffer<float> x(student), losses(c.rows), divergences(c.rows);
            LAUNCH(kernel, dim3((c.rows + 1) / 2), dim3(c.threads), c.threads / 8, losses.data(), divergences.data(), x.data(),
                   teacher.data(), targets.data(), gradient ? scales.data() : nullptr, c.rows, c.cols, stride, teachers,
                   gradient, int(c.from_middle), c.ratio, c.of_teacher, factor, c.softcap);
            Error of_loss, of_divergence, of_gradient;
            bool kept = true;
            for (int row = 0; row < c.rows; row++) {
                std::vector<double> z(c.cols), y(c.cols);
                for (int i = 0; i < c.cols; i++) {
                    z[i] = student[size_t(row) * stride + i], y[i] = teacher[size_t(row) * teachers + i];
                    if (c.softcap > 0) z[i] = c.softcap * std::tanh(z[i] / c.softcap);
                }
                const std::vector<double> plain = log_softmax(z, 1);
                const std::vector<double> p = log_softmax(z, 1.0 / factor), q = log_softmax(y, 1.0 / factor);
                const double f = c.of_teacher;
                double from_teacher = 0, from_student = 0;
                std::vector<double> for_p(q), for_q(p);
                for (int i = 0; i < c.cols; i++) {
                    if (c.from_middle) {
                        const double more = std::max(std::log(f) + q[i], std::log(1 - f) + p[i]);
                        const double less = std::min(std::log(f) + q[i], std::log(1 - f) + p[i]);
                        for_p[i] = for_q[i] = more + std::log1p(std::exp(less - more));
                    }
                    from_teacher += std::exp(q[i]) * (q[i] - for_q[i]), from_student += std::exp(p[i]) * (p[i] - for_p[i]);
                }
                of_loss.add(losses[row], -plain[targets[row]]);
                of_divergence.add(divergences[row], f * from_teacher + (1 - f) * from_student);
                const Out *g = reinterpret_cast<const Out *>(x.data() + size_t(row) * stride);
                for (int i = 0; i < c.cols; i++) {
                    double right = (1 - c.ratio) * (std::exp(plain[i]) - (unsigned(i) == targets[row]));
                    if (!c.from_middle) right += factor * c.ratio * f * (std::exp(p[i]) - std::exp(q[i]));
                    right += factor * c.ratio * (1 - f) * std::exp(p[i]) * (p[i] - for_p[i] - from_student);
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
            note(std::string(name) + " divergence", what, one ? of_divergence.difference : of_divergence.relative(), 1e-5);
            if (gradient) note(std::string(name) + " gradient", what, of_gradient.relative(), std::max(tolerance<Out>(), 8e-6));
        });
}

int main() {
    Random random(37);
    const Case cases[] = {{1, 1, 0, 32, 0.5f, 0.5f, 2, true, 0, 1},         {9, 77, 3, 64, 0.5f, 1, 2, false, 0, 4},
                          {9, 77, 3, 64, 0.75f, 0.5f, 1, true, 0, 4},       {4, 1024, 0, 128, 0.25f, 0, 0.5f, false, 30, 20},
                          {4, 1024, 0, 128, 0.25f, 0.1f, 1.5f, true, 30, 20}, {3, 5000, 8, 1024, 1, 0.9f, 1, true, 0, 20},
                          {2, 2049, 1, 256, 0.5f, 0.5f, 4, false, 0, 12},   {3, 40, 0, 1024, 0.9f, 0.25f, 0.7f, true, 5, 3}};
    for (const Case &c : cases) {
        run<float>("distill_general_f32", distill_general_f32, c, random);
        run<bf16>("distill_general_bf16", distill_general_bf16, c, random);
    }
    // What a probability is compared with is never zero, however far apart the two are.
    in_every_order([&] {
        Buffer<float> x(64), y(64), losses(1), divergences(1), scales(1);
        Buffer<unsigned> target(1);
        for (int i = 0; i < 64; i++) x[i] = i == 3 ? 500.0f : -500.0f, y[i] = i == 7 ? 500.0f : -500.0f;
        target[0] = 3, scales[0] = 1;
        LAUNCH(distill_general_f32, dim3(1), dim3(32), 4, losses.data(), divergences.data(), x.data(), y.data(), target.data(),
               scales.data(), 1, 64, 64, 64, 1, 1, 1.0f, 0.5f, 1.0f, 0.0f);
        double most = 0;
        for (int i = 0; i < 64; i++) most = std::max(most, double(std::fabs(x[i])));
        note("divergence of what has nothing in common", "the logarithm of 2", std::fabs(divergences[0] - std::log(2.0)), 1e-6);
        note("gradient of what has nothing in common", "flat", most, 1e-6);
    });
    // A student that is its teacher is not apart from it.
    for (int from_middle = 0; from_middle < 2; from_middle++)
        in_every_order([&] {
            Buffer<float> x(1000), losses(1), divergences(1);
            Buffer<unsigned> target(1);
            fill(x, random, 9), target[0] = 7;
            LAUNCH(distill_general_f32, dim3(1), dim3(64), 8, losses.data(), divergences.data(), x.data(), x.data(), target.data(),
                   nullptr, 1, 1000, 1000, 1000, 0, from_middle, 1.0f, 0.5f, 0.5f, 0.0f);
            note("general divergence from itself", "1000 logits", std::fabs(divergences[0]), 0);
        });
    // A logit that is no number is not hidden, whoever has it.
    for (int whose = 0; whose < 2; whose++)
        for (int from_middle = 0; from_middle < 2; from_middle++)
            in_every_order([&] {
                Buffer<float> both[2] = {Buffer<float>(100), Buffer<float>(100)}, losses(1), divergences(1);
                Buffer<unsigned> target(1);
                fill(both[0], random), fill(both[1], random), target[0] = 3;
                both[whose][57] = NAN;
                LAUNCH(distill_general_f32, dim3(1), dim3(64), 8, losses.data(), divergences.data(), both[0].data(), both[1].data(),
                       target.data(), nullptr, 1, 100, 100, 100, 0, from_middle, 0.5f, 0.5f, 2.0f, 0.0f);
                note("divergence of what is no number", whose ? "the teacher's" : "the student's", std::isfinite(divergences[0]), 0);
            });
    return report();
}
