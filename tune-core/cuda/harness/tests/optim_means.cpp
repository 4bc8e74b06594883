// Optimizers by which a model has a mean of its weights between steps, against the processor's rules.
#include "../harness.h"

#include "../../kernels/optim_means.cu"

using namespace harness;

template <typename W> struct Model {
    std::vector<size_t> sizes{1, 7, 4096, 333, 2053};
    std::vector<Buffer<W>> weights;
    std::vector<Buffer<float>> first, second, third, gradients;
    std::vector<Buffer<bf16>> copies;

    explicit Model(Random &random) {
        for (size_t n : sizes) {
            weights.emplace_back(n), copies.emplace_back(n);
            fill(weights.back(), random);
            for (auto *of : {&first, &second, &third, &gradients}) of->emplace_back(n), fill(of->back(), random);
            for (size_t i = 0; i < n; i++) second.back()[i] = std::fabs(second.back()[i]);
        }
    }
    Buffer<Parameter> parameters(bool keeps = true) {
        Buffer<Parameter> p(sizes.size());
        for (size_t i = 0; i < sizes.size(); i++)
            p[i] = {weights[i].data(), keeps ? first[i].data() : nullptr, second[i].data(), gradients[i].data(),
                    0x9e3779b97f4a7c15ull * (i + 1), sizeof(W) == 4 && i % 2 ? copies[i].data() : nullptr};
        return p;
    }
    Buffer<float *> thirds() {
        Buffer<float *> p(sizes.size());
        for (size_t i = 0; i < sizes.size(); i++) p[i] = third[i].data();
        return p;
    }
    Buffer<Piece> pieces() const {
        std::vector<Piece> list;
        for (size_t t = 0; t < sizes.size(); t++)
            for (size_t at = 0; at < sizes[t]; at += 1024)
                list.push_back({unsigned(t), unsigned(std::min<size_t>(1024, sizes[t] - at)), at});
        Buffer<Piece> p(list.size());
        for (size_t i = 0; i < list.size(); i++) p[i] = list[i];
        return p;
    }
    // Calls `f` with each parameter and element.
    template <typename F> void each(F f) const {
        for (size_t t = 0; t < sizes.size(); t++)
            for (size_t i = 0; i < sizes[t]; i++) f(t, i);
    }
    // The copies that were asked for are the weights to the nearest; the others were not touched.
    double uncopied() const {
        double wrong = 0;
        each([&](size_t t, size_t i) {
            const bool asked = sizeof(W) == 4 && t % 2;
            const float right = widened(host_from<bf16>(widened(weights[t][i])));
            wrong += asked ? widened(copies[t][i]) != right : !is_poison(copies[t][i]);
        });
        return wrong;
    }
};

// How far a weight is from what it is to be: not at all in f32, and to a neighbour in bf16.
static double off(float weight, float right) { return weight == right ? 0 : 1e9; }
static double off(bf16 weight, float right) {
    return std::fabs(widened(weight) - right) / (std::ldexp(std::fabs(right), -7) + 1e-30);
}

template <typename W, typename B, typename S, typename A>
void run(const std::string &type, B between, S schedule_free, A averaged, Random &random) {
    // At the mean and at z alone they are these themselves; rounded at random, what bf16 has is not moved.
    for (bool keeps : {true, false})
        in_every_order([&] {
            Model<W> model(random), old(model);
            Buffer<Parameter> parameters = model.parameters(keeps);
            Buffer<Piece> pieces = model.pieces();
            const float share = 0.1f;
            LAUNCH(between, dim3(unsigned(pieces.size())), dim3(256), 0, parameters.data(), pieces.data(), share);
            double worst = 0;
            model.each([&](size_t t, size_t i) {
                const float x = old.first[t][i], z = old.gradients[t][i];
                // A product of its own: the compiler of a test for a card would join it to the sum.
                const volatile float part = (z - x) * share;
                worst = std::max(worst, off(model.weights[t][i], keeps ? x + part : z));
            });
            note("between_" + type, keeps ? "two" : "one alone", worst, 1.001);
            note("between_" + type + " copy", "weights in bf16", model.uncopied(), 0);
        });
    in_every_order([&] {
        Model<W> model(random), old(model);
        Buffer<Parameter> parameters = model.parameters();
        Buffer<float *> thirds = model.thirds();
        Buffer<Piece> pieces = model.pieces();
        const float lr = 0.02f, b2 = 0.99f, bias = 0.03f, eps = 1e-6f, decay = 0.1f, share = 0.25f;
        LAUNCH(schedule_free, dim3(unsigned(pieces.size())), dim3(256), 0, parameters.data(), pieces.data(), thirds.data(), 0.5f,
               lr, b2, 1 - b2, bias, eps, decay, share);
        double worst = 0;
        Error state;
        model.each([&](size_t t, size_t i) {
            const double g = 0.5 * old.gradients[t][i], y = widened(old.weights[t][i]);
            const double v = old.second[t][i] * double(b2) + double(1 - b2) * g * g;
            const double z = old.first[t][i] - double(lr) * (g / (std::sqrt(v / bias) + eps) + double(decay) * y);
            const double x = old.third[t][i] + (z - old.third[t][i]) * share;
            state.add(model.first[t][i], z), state.add(model.second[t][i], v), state.add(model.third[t][i], x);
            worst = std::max(worst, off(model.weights[t][i], model.third[t][i]));
        });
        note("schedule_free_" + type, "weights are the mean", worst, 1.001);
        note("schedule_free_" + type + " state", "three parts", state.relative(), 1e-6);
        note("schedule_free_" + type + " copy", "weights in bf16", model.uncopied(), 0);
    });
    in_every_order([&] {
        Model<W> model(random), old(model);
        Buffer<Parameter> parameters = model.parameters();
        Buffer<Piece> pieces = model.pieces();
        const float share = 0.25f;
        LAUNCH(averaged, dim3(unsigned(pieces.size())), dim3(256), 0, parameters.data(), pieces.data(), share);
        double worst = 0, kept = 0;
        Error state;
        model.each([&](size_t t, size_t i) {
            const double w = widened(old.weights[t][i]);
            state.add(model.second[t][i], old.second[t][i] + (w - old.second[t][i]) * share);
            kept += model.first[t][i] != float(w);
            worst = std::max(worst, off(model.weights[t][i], model.second[t][i]));
        });
        note("averaged_" + type, "weights are the mean", worst, 1.001);
        note("averaged_" + type + " kept", "weights that are others", kept, 0);
        note("averaged_" + type + " state", "the mean", state.relative(), 1e-6);
        note("averaged_" + type + " copy", "weights in bf16", model.uncopied(), 0);
    });
}

int main() {
    Random random(41);
    run<float>("f32", between_f32, schedule_free_f32, averaged_f32, random);
    run<bf16>("bf16", between_bf16, schedule_free_bf16, averaged_bf16, random);
    return report();
}
