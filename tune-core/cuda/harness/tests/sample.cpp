// Tokens that are drawn, against all tokens in order and sums of 128 bits; weights against exponentials in f64.
#include "../harness.h"

#include "../../kernels/sample.cu"

#include <numeric>

using namespace harness;

namespace {

constexpr double UNIT_OF_WEIGHT = 1099511627776.0;

// Larger is earlier, as numbers of f32 are in order of their bits, -NaN first and NaN last.
long long rank(float x) {
    int32_t bits;
    memcpy(&bits, &x, 4);
    return bits < 0 ? -1 - (long long)(bits & 0x7fffffff) : bits;
}

// 2^(40 + z) as the processor has it, in other words than the kernel's.
unsigned long long weight(float z) {
    if (!(z >= -42.0f)) return 0;
    const float n = std::nearbyint(z), f = z - n;
    const float coefficients[] = {1.3390863e-3f, 9.618083e-3f, 5.550357e-2f, 0.2402265f, 0.6931472f, 1.0f};
    float y = 1.5453163e-4f;
    for (float c : coefficients) {
        y *= f;
        y += c;
    }
    return (unsigned long long)std::floor(std::ldexp(double(y), 40 + int(n)));
}

__global__ void list_weights(unsigned long long *weights, const float *z, int count) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) weights[i] = weight_of(z[i]);
}

struct Right {
    unsigned token;
    double log_prob;
};

Right right(const float *logits, unsigned vocab, const Draw &how) {
    std::vector<unsigned> order(vocab);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](unsigned a, unsigned b) { return rank(logits[a]) > rank(logits[b]); });
    const float most = logits[order[0]];
    if (!std::isfinite(most)) return {order[0], NAN};
    unsigned token = order[0];
    if (how.factor > 0) {
        std::vector<unsigned __int128> up_to{0};
        std::vector<unsigned> there;
        for (unsigned id : order) {
            const float apart = logits[id] - most;
            const unsigned long long own = weight(apart * how.factor);
            if (own) there.push_back(id), up_to.push_back(up_to.back() + own);
        }
        size_t kept = there.size();
        if (how.most) kept = std::min(kept, size_t(how.most));
        if (how.share) {
            // The fewest with at least that part.
            size_t fewest = 1;
            const auto less = [&](unsigned __int128 mass) {
                const auto part = (unsigned __int128)how.share * up_to[kept];
                return mass << 64 < part || (mass >> 64) != 0;
            };
            while (less(up_to[fewest])) fewest++;
            kept = fewest;
        }
        const unsigned __int128 at = (unsigned __int128)how.random * up_to[kept] >> 64;
        size_t place = 0;
        while (up_to[place + 1] <= at) place++;
        token = there[place];
    }
    double sum = 0;
    const double per = how.scored / 1.4426950408889634;
    for (unsigned id = 0; id < vocab; id++)
        if (!std::isnan(logits[id])) sum += std::exp((double(logits[id]) - most) * per);
    return {token, (double(logits[token]) - most) * per - std::log(sum)};
}

struct Batch {
    unsigned vocab;
    Buffer<float> logits;
    std::vector<Draw> draws;

    Batch(unsigned vocab, unsigned rows, bool aligned) : vocab(vocab), logits(size_t(rows) * vocab, aligned) {}

    void check(const char *what) {
        Buffer<Draw> given(draws.size());
        for (size_t i = 0; i < draws.size(); i++) given[i] = draws[i];
        std::vector<Right> all;
        for (const Draw &how : draws) all.push_back(right(logits.data() + size_t(how.row) * vocab, vocab, how));
        in_every_order([&] {
            Buffer<unsigned> found(2 * draws.size());
            LAUNCH(sample_tokens, dim3(unsigned(draws.size())), dim3(1024), 43008, found.data(), logits.data(), given.data(), vocab);
            for (size_t i = 0; i < draws.size(); i++) {
                char name[200];
                snprintf(name, sizeof name, "%s, %u tokens, draw %zu: token %u, not %u", what, vocab, i, found[2 * i], all[i].token);
                note("sample_tokens", name, found[2 * i] == all[i].token ? 0 : NAN, 0);
                const float scored = __uint_as_float(found[2 * i + 1]);
                const bool both_none = std::isnan(scored) && std::isnan(all[i].log_prob);
                const double right = draws[i].scored > 0 ? all[i].log_prob : 0;
                const double error = std::fabs(scored - right) / std::fmax(1, std::fabs(right));
                note("sample_tokens, log-probability", name, both_none ? 0 : error, 2e-6);
            }
        });
    }
};

constexpr float PLAIN = 1.442695f;

unsigned long long any(Random &random) {
    return (unsigned long long)random.engine() << 32 | random.engine();
}

// Draws of all kinds by each row, at the ends of what is random too.
void ask(Batch &batch, unsigned rows, Random &random) {
    const unsigned long long most = ~0ull, half = 1ull << 63;
    const float factors[] = {0, PLAIN, PLAIN / 0.7f, PLAIN / 4, 1e-38f, 3.4e38f};
    for (unsigned row = 0; row < rows; row++)
        for (unsigned kind = 0; kind < 8; kind++) {
            const float factor = factors[random.below(6)];
            const unsigned long long at[] = {any(random), any(random), 0, most};
            const unsigned long long shares[] = {half, most - most / 20, 1, most};
            const float scored = kind % 3 == 0 ? 0 : kind % 3 == 1 && factor > 0 ? factor : PLAIN;
            batch.draws.push_back({at[random.below(4)], kind & 2 ? shares[random.below(4)] : 0, row,
                                   kind & 1 ? 1 + unsigned(random.below(int(batch.vocab) + 2)) : 0, factor, scored});
        }
}

void run(unsigned vocab, unsigned rows, float size, unsigned values, bool aligned, Random &random) {
    Batch batch(vocab, rows, aligned);
    for (size_t i = 0; i < batch.logits.size(); i++) {
        const float x = size * random.next() + size * random.next();
        batch.logits[i] = values ? std::round(x * float(values) / (2 * size)) / float(values) * 2 * size : x;
    }
    ask(batch, rows, random);
    char what[100];
    snprintf(what, sizeof what, "logits up to %g, %u values", size, values);
    batch.check(what);
}

// What is no number, what is infinite, and zeros of both signs.
void no_numbers(Random &random) {
    const float minus_nan = __uint_as_float(0xffc00000u);
    const std::vector<std::vector<float>> rows{
        {NAN, 1, NAN},        {minus_nan, 1, 2},      {-INFINITY, 0, -1},   {-INFINITY, -INFINITY, -INFINITY},
        {1, INFINITY, 2},     {-0.0f, 0.0f, -0.0f},   {-0.0f, -0.0f, -1e30f}, {3e38f, -3e38f, 3e38f},
        {minus_nan, minus_nan, -INFINITY}, {1e-40f, 0, 2e-40f},
    };
    Batch batch(3, unsigned(rows.size()), true);
    for (size_t i = 0; i < rows.size(); i++)
        for (int j = 0; j < 3; j++) batch.logits[3 * i + j] = rows[i][j];
    ask(batch, unsigned(rows.size()), random);
    batch.check("what is no number");
}

// By how much a weight differs from its exponential: of itself, beside what is rounded down.
void weights() {
    const int steps = 430001;
    const float ends[] = {0.0f, -0.0f, -40.0f, -41.0f, -INFINITY, NAN, -1e-40f, -3e38f};
    const unsigned long long of_ends[] = {1ull << 40, 1ull << 40, 1, 0, 0, 0, 1ull << 40, 0};
    Buffer<float> z(steps + 8);
    Buffer<unsigned long long> found(steps + 8);
    for (int i = 0; i < steps; i++) z[i] = -float(i) / 10000;
    for (int i = 0; i < 8; i++) z[steps + i] = ends[i];
    LAUNCH(list_weights, dim3(32), dim3(1024), 0, found.data(), z.data(), steps + 8);
    double worst = 0;
    bool same = true;
    for (int i = 0; i < steps; i++) {
        const double exact = std::exp2(double(z[i])) * UNIT_OF_WEIGHT;
        if (z[i] >= -42.0f) worst = std::fmax(worst, (std::fabs(double(found[i]) - exact) - 1) / exact);
        same = same && found[i] == weight(z[i]);
    }
    for (int i = 0; i < 8; i++) same = same && found[steps + i] == of_ends[i];
    note("weights", "2^z", worst, 1e-7);
    note("weights", "the processor's", same ? 0 : NAN, 0);
}

} // namespace

int main() {
    Random random(43);
    weights();
    no_numbers(random);
    for (unsigned vocab : {1u, 2u, 255u, 256u, 257u, 1023u, 1025u, 5000u})
        run(vocab, 2, 8, 0, true, random), run(vocab, 2, 8, 5, true, random);
    for (unsigned vocab : {1u, 257u, 1024u}) run(vocab, 2, 8, 0, false, random);
    // Flat, so that many are in one bin; and equal, which their ids alone tell apart.
    run(5000, 2, 1e-3f, 0, true, random), run(9000, 2, 20, 1, true, random), run(5001, 1, 1e-20f, 1, true, random);
    run(20000, 1, 30, 0, true, random), run(49152, 1, 12, 0, true, random);
    return report();
}
