// Which experts tokens go to, the order of their places, and the gradient of the router's logits, against plain loops.
#include "../harness.h"

#include "../../kernels/routes.cu"

#include <numeric>

using namespace harness;

template <typename T> struct Kernels;
template <> struct Kernels<float> {
    static constexpr auto back = routes_back_f32;
};
template <> struct Kernels<bf16> {
    static constexpr auto back = routes_back_bf16;
};

// What a token's experts are.
struct Right {
    std::vector<unsigned> experts, places, tokens, starts;
    std::vector<double> p, weights;
};

Right right(const Buffer<float> &logits, int tokens, int count, int chosen, bool renormalized) {
    Right r;
    for (int t = 0; t < tokens; t++) {
        const float *row = logits.data() + size_t(t) * count;
        double most = -INFINITY, sum = 0;
        for (int e = 0; e < count; e++) most = std::fmax(most, row[e]);
        for (int e = 0; e < count; e++) sum += std::exp(row[e] - most);
        std::vector<unsigned> order(count);
        std::iota(order.begin(), order.end(), 0u);
        const auto is_less = [](float a, float b) { return std::isnan(a) ? !std::isnan(b) : a < b; };
        std::stable_sort(order.begin(), order.end(), [&](unsigned a, unsigned b) { return is_less(row[b], row[a]); });
        double total = 0;
        for (int e = 0; e < count; e++) r.p.push_back(std::exp(row[e] - most) / sum);
        for (int k = 0; k < chosen; k++) total += r.p[size_t(t) * count + order[k]];
        for (int k = 0; k < chosen; k++) {
            r.experts.push_back(order[k]);
            r.weights.push_back(r.p[size_t(t) * count + order[k]] / (renormalized ? total : 1));
        }
    }
    r.places.resize(r.experts.size());
    for (int e = 0; e < count; e++) {
        r.starts.push_back(unsigned(r.tokens.size()));
        for (size_t i = 0; i < r.experts.size(); i++)
            if (r.experts[i] == unsigned(e)) r.places[i] = unsigned(r.tokens.size()), r.tokens.push_back(unsigned(i / chosen));
    }
    r.starts.push_back(unsigned(r.tokens.size()));
    return r;
}

bool same(const Buffer<unsigned> &found, const std::vector<unsigned> &right) {
    return found.size() == right.size() && std::equal(right.begin(), right.end(), found.data());
}

template <typename T> void back(const Buffer<float> &logits, const Right &r, int tokens, int count, int chosen, bool renormalized,
                                const char *what, Random &random) {
    const int choices = tokens * chosen;
    Buffer<unsigned> experts(choices), places(choices);
    Buffer<float> g(choices);
    fill(g, random);
    for (int i = 0; i < choices; i++) experts[i] = r.experts[i], places[i] = r.places[i];
    in_every_order([&] {
        Buffer<T> y(size_t(tokens) * count);
        LAUNCH(Kernels<T>::back, dim3((tokens + 3) / 4), dim3(128), 0, y.data(), logits.data(), experts.data(), places.data(),
               g.data(), tokens, count, chosen, int(renormalized));
        Error error;
        for (int t = 0; t < tokens; t++) {
            std::vector<double> q(count);
            double mean = 0, total = 0, below = 0;
            const double *p = r.p.data() + size_t(t) * count;
            for (int i = t * chosen; i < (t + 1) * chosen; i++)
                mean += double(g[r.places[i]]) * r.weights[i], total += p[r.experts[i]];
            for (int i = t * chosen; i < (t + 1) * chosen; i++)
                q[r.experts[i]] = renormalized ? (g[r.places[i]] - mean) / total : g[r.places[i]];
            for (int e = 0; e < count; e++) below += q[e] * p[e];
            for (int e = 0; e < count; e++) error.add(widened(y[size_t(t) * count + e]), p[e] * (q[e] - below));
        }
        // Where all experts are chosen and count in sum one, or one alone is, nothing may be left but what was rounded.
        const double size = error.size > 0 ? std::sqrt(error.size) : 1;
        note(std::string("routes_back_") + type_name<T>(), what, size > 1e-9 ? error.relative() : std::sqrt(error.difference),
             tolerance<T>());
    });
}

void run(int tokens, int count, int chosen, bool few_values, Random &random) {
    char what[200];
    snprintf(what, sizeof what, "%d tokens, %d of %d experts, %s", tokens, chosen, count, few_values ? "few values" : "any values");
    Buffer<float> logits(size_t(tokens) * count);
    for (size_t i = 0; i < logits.size(); i++) {
        const float some[] = {0.0f, -0.0f, 1.0f, 1e-20f, -1e-20f, 3e-40f, -2.0f, -INFINITY};
        logits[i] = few_values ? some[random.below(8)] : 6 * random.next();
    }
    // Somebody has to be possible.
    for (int t = 0; t < tokens; t++)
        if (few_values) logits[size_t(t) * count + random.below(count)] = 1.0f;
    const int choices = tokens * chosen;
    for (bool renormalized : {true, false}) {
        const Right r = right(logits, tokens, count, chosen, renormalized);
        in_every_order([&] {
            Buffer<unsigned> experts(choices), places(choices), of_places(choices), starts(count + 1);
            Buffer<float> weights(choices), weights_of_places(choices);
            LAUNCH(routes_choose, dim3((tokens + 3) / 4), dim3(128), 0, experts.data(), weights.data(), logits.data(), tokens, count,
                   chosen, int(renormalized));
            Error error;
            for (int i = 0; i < choices; i++) error.add(weights[i], r.weights[i]);
            note("routes_choose", what, same(experts, r.experts) ? error.relative() : NAN, 6e-8);
            LAUNCH(routes_place, dim3(count), dim3(256), 2 * 8 * 4, places.data(), of_places.data(), weights_of_places.data(),
                   starts.data(), experts.data(), weights.data(), choices, chosen);
            bool is_right = same(places, r.places) && same(of_places, r.tokens) && same(starts, r.starts);
            for (int i = 0; i < choices; i++) is_right = is_right && weights_of_places[r.places[i]] == weights[i];
            note("routes_place", what, is_right ? 0 : NAN, 0);
        });
        back<float>(logits, r, tokens, count, chosen, renormalized, what, random);
        back<bf16>(logits, r, tokens, count, chosen, renormalized, what, random);
    }
}

// A row of what is no number goes to the first experts, and one such logit comes after all others.
void no_numbers() {
    Buffer<float> logits(10);
    const float rows[] = {NAN, NAN, NAN, NAN, NAN, -3, NAN, -INFINITY, 2, -1};
    for (int i = 0; i < 10; i++) logits[i] = rows[i];
    Buffer<unsigned> experts(8);
    Buffer<float> weights(8);
    LAUNCH(routes_choose, dim3(1), dim3(128), 0, experts.data(), weights.data(), logits.data(), 2, 5, 4, 1);
    note("routes_choose", "what is no number", same(experts, {0, 1, 2, 3, 3, 4, 0, 2}) ? 0 : NAN, 0);
}

int main() {
    Random random(41);
    for (bool few_values : {false, true}) {
        run(1, 1, 1, few_values, random), run(1, 4, 2, few_values, random), run(5, 33, 33, few_values, random);
        run(9, 128, 8, few_values, random), run(70, 60, 4, few_values, random), run(3, 64, 40, few_values, random);
    }
    // More choices than a block looks at at a time, and one more.
    run(600, 4, 4, false, random), run(2049, 3, 1, true, random);
    no_numbers();
    return report();
}
