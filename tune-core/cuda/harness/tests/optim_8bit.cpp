// AdamW with state in eight bits, against the processor's rule: codes and scales to the last bit.
#include "../harness.h"

#include "../../kernels/optim_8bit.cu"

using namespace harness;

// Values of both signs or of one, and where the numbers of each code end, behind each other.
static std::vector<float> maps() {
    std::vector<float> all;
    for (int sign = 1; sign >= 0; sign--) {
        std::vector<float> values;
        for (int i = 0; i < 256; i++) {
            const float x = sign ? (i - 127) / 128.0f : i / 255.0f;
            values.push_back(x * std::fabs(x));
        }
        all.insert(all.end(), values.begin(), values.end());
        for (int i = 0; i < 256; i++) all.push_back(i == 255 ? INFINITY : values[i] + (values[i + 1] - values[i]) * 0.5f);
    }
    return all;
}

static unsigned char nearest(float x, const float *ends) {
    int code = 0;
    while (code < 255 && ends[code] <= x) code++;
    return static_cast<unsigned char>(code);
}

static double off(float weight, double exact) { return std::fabs(weight - exact) / (1e-6 + 1e-6 * std::fabs(exact)); }
static double off(bf16 weight, double exact) {
    return std::fabs(widened(weight) - exact) / (std::ldexp(std::fabs(exact), -7) + 1e-6);
}

template <typename W> struct Model {
    std::vector<size_t> sizes{1, 256, 4096 + 77, 2053};
    std::vector<Buffer<W>> weights;
    std::vector<Buffer<float>> gradients, scales[2];
    std::vector<Buffer<unsigned char>> codes[2];
    std::vector<Buffer<bf16>> copies;

    explicit Model(Random &random) {
        for (size_t n : sizes) {
            weights.emplace_back(n), gradients.emplace_back(n), copies.emplace_back(n);
            fill(weights.back(), random), fill(gradients.back(), random);
            for (int part = 0; part < 2; part++) {
                codes[part].emplace_back(n), scales[part].emplace_back((n + 255) / 256);
                for (size_t i = 0; i < n; i++) codes[part].back()[i] = static_cast<unsigned char>(random.below(256));
                fill(scales[part].back(), random, 0.1f);
                for (size_t i = 0; i < scales[part].back().size(); i++)
                    scales[part].back()[i] = std::fabs(scales[part].back()[i]) + 1e-3f;
            }
            // A block of zeros, whose gradients are none either.
            if (n > 1000)
                for (size_t i = 256; i < 512; i++)
                    codes[0].back()[i] = 127, codes[1].back()[i] = 0, gradients.back()[i] = 0;
        }
    }
};

template <typename W, typename K> void run(const char *name, K kernel, Random &random) {
    const std::vector<float> all = maps();
    Buffer<float> tables(all.size());
    for (size_t i = 0; i < all.size(); i++) tables[i] = all[i];
    in_every_order([&] {
        Model<W> model(random), old(model);
        const size_t count = model.sizes.size();
        Buffer<Parameter8> parameters(count);
        std::vector<Piece> list;
        for (size_t t = 0; t < count; t++) {
            parameters[t] = {model.weights[t].data(), model.gradients[t].data(), model.codes[0][t].data(),
                             model.codes[1][t].data(), model.scales[0][t].data(), model.scales[1][t].data(),
                             0x9e3779b97f4a7c15ull * (t + 1), sizeof(W) == 4 && t % 2 ? model.copies[t].data() : nullptr};
            for (size_t at = 0; at < model.sizes[t]; at += 3072)
                list.push_back({unsigned(t), unsigned(std::min<size_t>(3072, model.sizes[t] - at)), at});
        }
        Buffer<Piece> pieces(list.size());
        for (size_t i = 0; i < list.size(); i++) pieces[i] = list[i];
        const float lr = 0.01f, b1 = 0.9f, b2 = 0.99f, eps = 1e-6f, scale = 0.5f, keep = 1 - lr * 0.1f;
        const float size = 0.05f, root = 0.25f, toward_first = 1 - b1, toward_second = 1 - b2;
        LAUNCH(kernel, dim3(unsigned(pieces.size())), dim3(256), 4 * 1024, parameters.data(), pieces.data(), tables.data(), scale,
               toward_first, b2, toward_second, size, root, keep, eps);
        double worst = 0, wrong = 0, copied = 0;
        for (size_t t = 0; t < count; t++)
            for (size_t start = 0; start < model.sizes[t]; start += 256) {
                const size_t end = std::min(model.sizes[t], start + 256);
                // By the instructions of the processor, one by one.
                std::vector<float> state[2];
                float most[2] = {1e-12f, 1e-12f};
                for (size_t i = start; i < end; i++) {
                    float m = all[old.codes[0][t][i]] * old.scales[0][t][start / 256];
                    float v = all[512 + old.codes[1][t][i]] * old.scales[1][t][start / 256];
                    const float g = old.gradients[t][i] * scale;
                    const volatile float toward = (g - m) * toward_first, kept = v * b2, square = toward_second * g * g;
                    m = m + toward, v = kept + square;
                    const double w = widened(old.weights[t][i]) * double(keep) - double(size) * m / (std::sqrt(double(v)) / root + eps);
                    worst = std::max(worst, off(model.weights[t][i], w));
                    state[0].push_back(m), state[1].push_back(v);
                    most[0] = std::max(most[0], std::fabs(m)), most[1] = std::max(most[1], v);
                    const bool asked = sizeof(W) == 4 && t % 2;
                    const float copy = widened(host_from<bf16>(widened(model.weights[t][i])));
                    copied += asked ? widened(model.copies[t][i]) != copy : !is_poison(model.copies[t][i]);
                }
                for (int part = 0; part < 2; part++) {
                    wrong += model.scales[part][t][start / 256] != most[part];
                    for (size_t i = start; i < end; i++)
                        wrong += model.codes[part][t][i] != nearest(state[part][i - start] / most[part], all.data() + 512 * part + 256);
                }
            }
        note(name, "weights, in roundings", worst, sizeof(W) == 4 ? 2 : 1.001);
        note(std::string(name) + " state", "codes and scales that are others", wrong, 0);
        note(std::string(name) + " copy", "weights in bf16", copied, 0);
    });
}

int main() {
    Random random(43);
    run<float>("adamw_8bit_f32", adamw_8bit_f32, random);
    run<bf16>("adamw_8bit_bf16", adamw_8bit_bf16, random);
    // A number on the border between two codes has the upper one.
    in_every_order([&] {
        const std::vector<float> all = maps();
        Buffer<float> tables(all.size()), weight(256), gradient(256), scales[2] = {Buffer<float>(1), Buffer<float>(1)};
        for (size_t i = 0; i < all.size(); i++) tables[i] = all[i];
        Buffer<unsigned char> codes[2] = {Buffer<unsigned char>(256), Buffer<unsigned char>(256)};
        Buffer<Parameter8> parameter(1);
        Buffer<Piece> piece(1);
        scales[0][0] = scales[1][0] = 1;
        for (size_t i = 0; i < 256; i++)
            weight[i] = 0, gradient[i] = i == 255 ? 1.0f : all[256 + i], codes[0][i] = 127, codes[1][i] = 0;
        parameter[0] = {weight.data(), gradient.data(), codes[0].data(), codes[1].data(), scales[0].data(), scales[1].data(), 1, 0};
        piece[0] = {0, 256, 0};
        // The mean is the gradient itself.
        LAUNCH(adamw_8bit_f32, dim3(1), dim3(256), 4 * 1024, parameter.data(), piece.data(), tables.data(), 1.0f, 1.0f, 0.0f, 0.0f,
               0.0f, 1.0f, 1.0f, 1.0f);
        double wrong = 0;
        for (size_t i = 0; i < 255; i++) wrong += codes[0][i] != i + 1;
        note("codes on the border", "codes that are others", wrong, 0);
    });
    return report();
}
