// Optimizers, norms and rounding at random against the processor's rules.
#include "../harness.h"

#include "../../kernels/optim.cu"

using namespace harness;

template <typename W, typename G> struct Model {
    std::vector<size_t> sizes{1, 7, 4096, 333, 2053};
    std::vector<Buffer<W>> weights;
    std::vector<Buffer<float>> first, second;
    std::vector<Buffer<G>> gradients;
    std::vector<Buffer<bf16>> copies;
    std::vector<Piece> list;

    explicit Model(Random &random) {
        for (size_t n : sizes) {
            weights.emplace_back(n), first.emplace_back(n), second.emplace_back(n), gradients.emplace_back(n);
            fill(weights.back(), random), fill(first.back(), random, 0.1f), fill(gradients.back(), random);
            fill(second.back(), random, 0.1f), copies.emplace_back(n);
            for (size_t i = 0; i < n; i++) second.back()[i] = std::fabs(second.back()[i]);
            for (size_t at = 0; at < n; at += 1024)
                list.push_back({unsigned(weights.size() - 1), unsigned(std::min<size_t>(1024, n - at)), at});
        }
    }
    Buffer<Parameter> parameters(bool velocity) {
        Buffer<Parameter> p(sizes.size());
        for (size_t i = 0; i < sizes.size(); i++)
            p[i] = {weights[i].data(), velocity ? first[i].data() : nullptr, second[i].data(), gradients[i].data(),
                    0x9e3779b97f4a7c15ull * (i + 1), sizeof(W) == 4 && i % 2 ? copies[i].data() : nullptr};
        return p;
    }
    // The copies that were asked for are the weights to the nearest; the others were not touched.
    bool copied() const {
        for (size_t t = 0; t < sizes.size(); t++)
            for (size_t i = 0; i < sizes[t]; i++) {
                const bool asked = sizeof(W) == 4 && t % 2;
                if (asked ? widened(copies[t][i]) != widened(host_from<bf16>(widened(weights[t][i]))) : !is_poison(copies[t][i]))
                    return false;
            }
        return true;
    }
    Buffer<Piece> pieces() {
        Buffer<Piece> p(list.size());
        for (size_t i = 0; i < list.size(); i++) p[i] = list[i];
        return p;
    }
};

// A step is right if the weight is one of the two neighbours of the exact one (bf16), or as near as f32 allows.
static double off(float weight, double exact, const float *) { return std::fabs(weight - exact) / (1e-6 + 1e-6 * std::fabs(exact)); }
static double off(bf16 weight, double exact, const bf16 *) {
    const float w = widened(weight);
    return std::fabs(w - exact) / (std::ldexp(std::fabs(exact), -7) + 1e-6);
}

template <typename W, typename G, typename A, typename S>
void run(const char *adamw_name, A adamw, const char *sgd_name, S sgd, Random &random) {
    in_every_order([&] {
        Model<W, G> model(random), old(model);
        Buffer<Parameter> parameters = model.parameters(true);
        Buffer<Piece> pieces = model.pieces();
        Buffer<float> clip(1);
        clip[0] = 0.5f;
        const float lr = 0.01f, b1 = 0.9f, b2 = 0.999f, eps = 1e-8f;
        const double size = lr / (1 - std::pow(b1, 3.0)), root = std::sqrt(1 - std::pow(b2, 3.0));
        LAUNCH(adamw, dim3(unsigned(pieces.size())), dim3(256), 0, parameters.data(), pieces.data(), clip.data(), 3.0f, 1 - b1,
               b2, 1 - b2, float(size), float(root), 1 - lr * 0.1f, eps);
        double worst = 0, bias = 0, count = 0;
        Error state;
        for (size_t t = 0; t < model.sizes.size(); t++)
            for (size_t i = 0; i < model.sizes[t]; i++) {
                const double g = 1.5 * widened(old.gradients[t][i]);
                const double m = old.first[t][i] + (g - old.first[t][i]) * double(1 - b1);
                const double v = old.second[t][i] * double(b2) + double(1 - b2) * g * g;
                const double w = widened(old.weights[t][i]) * double(1 - lr * 0.1f) - size * m / (std::sqrt(v) / root + double(eps));
                state.add(model.first[t][i], m), state.add(model.second[t][i], v);
                worst = std::max(worst, off(model.weights[t][i], w, model.weights[t].data()));
                bias += (widened(model.weights[t][i]) - w) / std::ldexp(std::fabs(w) + 1e-3, -8), count++;
            }
        note(adamw_name, "weights, in roundings", worst, sizeof(W) == 4 ? 2 : 1.001);
        note(std::string(adamw_name) + " state", "both moments", state.relative(), 1e-6);
        note(std::string(adamw_name) + " copy", "weights in bf16", model.copied() ? 0 : 1, 0);
        note(std::string(adamw_name) + " bias", "mean of the rounding", std::fabs(bias / count), 0.05);
    });
    for (bool velocity : {true, false})
        in_every_order([&] {
            Model<W, G> model(random), old(model);
            Buffer<Parameter> parameters = model.parameters(velocity);
            Buffer<Piece> pieces = model.pieces();
            LAUNCH(sgd, dim3(unsigned(pieces.size())), dim3(256), 0, parameters.data(), pieces.data(), nullptr, 0.1f, 2.0f, 0.8f,
                   0.01f);
            double worst = 0;
            Error state;
            for (size_t t = 0; t < model.sizes.size(); t++)
                for (size_t i = 0; i < model.sizes[t]; i++) {
                    const double before = widened(old.weights[t][i]);
                    const double v = (velocity ? old.first[t][i] * double(0.8f) : 0) + 2.0 * widened(old.gradients[t][i]) + double(0.01f) * before;
                    state.add(model.first[t][i], velocity ? v : old.first[t][i]);
                    worst = std::max(worst, off(model.weights[t][i], before - double(0.1f) * v, model.weights[t].data()));
                }
            note(sgd_name, "weights, in roundings", worst, sizeof(W) == 4 ? 2 : 1.001);
            note(std::string(sgd_name) + " copy", "weights in bf16", model.copied() ? 0 : 1, 0);
            note(std::string(sgd_name) + " state", "velocity", state.relative(), 1e-6);
        });
}

template <typename W, typename G, typename K> void lion(const char *name, K kernel, Random &random) {
    in_every_order([&] {
        Model<W, G> model(random), old(model);
        Buffer<Parameter> parameters = model.parameters(true);
        Buffer<Piece> pieces = model.pieces();
        Buffer<float> clip(1);
        clip[0] = 0.5f;
        const float lr = 0.01f, b1 = 0.9f, b2 = 0.99f, keep = 1 - lr * 0.1f;
        // No gradient and no mean: only decay.
        for (size_t i = 0; i < 5; i++)
            old.first[2][i] = model.first[2][i] = 0, old.gradients[2][i] = model.gradients[2][i] = host_from<G>(0.0f);
        LAUNCH(kernel, dim3(unsigned(pieces.size())), dim3(256), 0, parameters.data(), pieces.data(), clip.data(), lr, 4.0f, b1,
               1 - b1, b2, 1 - b2, keep);
        double worst = 0;
        Error state;
        for (size_t t = 0; t < model.sizes.size(); t++)
            for (size_t i = 0; i < model.sizes[t]; i++) {
                // The sign is that of a sum in f32.
                const float g = 2.0f * widened(old.gradients[t][i]);
                const float of_mean = old.first[t][i] * b1, of_gradient = g * (1 - b1), direction = of_mean + of_gradient;
                const double way = direction > 0 ? lr : direction < 0 ? -lr : 0;
                const double w = widened(old.weights[t][i]) * double(keep) - way;
                state.add(model.first[t][i], old.first[t][i] * double(b2) + double(g) * double(1 - b2));
                worst = std::max(worst, off(model.weights[t][i], w, model.weights[t].data()));
            }
        note(name, "weights, in roundings", worst, sizeof(W) == 4 ? 2 : 1.001);
        note(std::string(name) + " copy", "weights in bf16", model.copied() ? 0 : 1, 0);
        note(std::string(name) + " state", "mean", state.relative(), 1e-6);
    });
}

template <typename G, typename K> void norms(const char *name, K kernel, Random &random) {
    in_every_order([&] {
        Model<float, G> model(random);
        Buffer<Parameter> parameters = model.parameters(true);
        Buffer<Piece> pieces = model.pieces();
        Buffer<double> partial(pieces.size());
        Buffer<float> norm(1), factor(1);
        LAUNCH(kernel, dim3(unsigned(pieces.size())), dim3(256), 8 * 256, partial.data(), parameters.data(), pieces.data());
        double squares = 0;
        for (auto &g : model.gradients)
            for (size_t i = 0; i < g.size(); i++) squares += double(widened(g[i])) * widened(g[i]);
        const double whole = 2 * std::sqrt(squares);
        for (float most : {0.5f, 1e9f, 0.0f}) {
            LAUNCH(clip_factor, dim3(1), dim3(256), 8 * 256, norm.data(), factor.data(), partial.data(), int(pieces.size()), 2.0f,
                   most);
            const double right = most > 0 ? std::min(1.0, most / (whole + 1e-6)) : 1;
            note(name, "norm", std::fabs(norm[0] - whole) / whole, 1e-6);
            note("clip_factor", "factor", std::fabs(factor[0] - right) / right, 1e-6);
        }
        partial[2] = NAN;
        LAUNCH(clip_factor, dim3(1), dim3(256), 8 * 256, norm.data(), factor.data(), partial.data(), int(pieces.size()), 2.0f, 1.0f);
        note("clip_factor", "of what is no number", std::isnan(norm[0]) && std::isnan(factor[0]) ? 0 : 1, 0);
    });
}

// Steps that are too small for bf16 add up in the mean.
static void small_steps() {
    in_every_order([&] {
        const size_t n = 4096;
        Buffer<bf16> w(n);
        Buffer<float> g(n);
        Buffer<Parameter> parameter(1);
        Buffer<Piece> piece(1);
        for (size_t i = 0; i < n; i++) w[i] = host_from<bf16>(1.0f), g[i] = 1.0f;
        for (unsigned long long step = 0; step < 20; step++) {
            parameter[0] = {w.data(), nullptr, nullptr, g.data(), 0x9e3779b97f4a7c15ull * (step + 1), 0};
            piece[0] = {0, unsigned(n), 0};
            LAUNCH(sgd_bf16_f32, dim3(1), dim3(256), 0, parameter.data(), piece.data(), nullptr, 1e-3f, 0.5f, 0.0f, 0.0f);
        }
        double mean = 0;
        for (size_t i = 0; i < n; i++) mean += widened(w[i]) / double(n);
        note("rounding at random", "20 steps of 0.0005 from 1", std::fabs(mean - 0.99), 5e-4);
    });
}

int main() {
    Random random(7);
    small_steps();
    run<float, float>("adamw_f32_f32", adamw_f32_f32, "sgd_f32_f32", sgd_f32_f32, random);
    run<bf16, float>("adamw_bf16_f32", adamw_bf16_f32, "sgd_bf16_f32", sgd_bf16_f32, random);
    run<bf16, bf16>("adamw_bf16_bf16", adamw_bf16_bf16, "sgd_bf16_bf16", sgd_bf16_bf16, random);
    run<float, bf16>("adamw_f32_bf16", adamw_f32_bf16, "sgd_f32_bf16", sgd_f32_bf16, random);
    lion<float, float>("lion_f32_f32", lion_f32_f32, random);
    lion<bf16, float>("lion_bf16_f32", lion_bf16_f32, random);
    lion<bf16, bf16>("lion_bf16_bf16", lion_bf16_bf16, random);
    lion<float, bf16>("lion_f32_bf16", lion_f32_bf16, random);
    norms<float>("squared_norms_f32", squared_norms_f32, random);
    norms<bf16>("squared_norms_bf16", squared_norms_bf16, random);
    return report();
}
