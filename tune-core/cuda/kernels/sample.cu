// Draws tokens by rows of logits, in integers: equal logits give equal tokens on every machine, in whatever order threads run.
//
// A token's weight is floor(2^(40 + z)), with z = (logit - the largest) * factor in f32, and 2^z by a fixed sequence of operations that
// round once each. What has no weight is not there. Tokens are in order of their logits, the larger first, of equal ones the lower id.
#include "common.cuh"

namespace {

constexpr unsigned THREADS = 1024, BINS = 1024, AT_ONCE = 12;
constexpr int DIGIT = 10, UNIT = 40;
// Below it there is no weight. Times BINS_PER_TWO it is less than there are bins.
constexpr float LEAST = -42.0f, BINS_PER_TWO = 24.0f;

// How a token is drawn, as the processor writes it.
struct Draw {
    // Which part of the mass: of 2^64.
    unsigned long long random;
    // The first tokens that have this part of the mass, of 2^64; 0: all.
    unsigned long long share;
    // By which row of logits.
    unsigned row;
    // From so many first tokens; 0: all.
    unsigned most;
    // log2(e) / temperature; 0: the first token.
    float factor;
    // The same of the logarithm of its probability; 0: that is not wanted.
    float scored;
};

// Its place in the order, the first of all the smallest.
__device__ __forceinline__ unsigned long long code_of(float logit, unsigned id) {
    const unsigned bits = __float_as_uint(logit);
    const unsigned falling = (bits & 0x80000000u) ? bits : ~bits & 0x7fffffffu;
    return (unsigned long long)falling << 32 | id;
}

__device__ __forceinline__ float power_of(float logit, float most, float factor) {
    return __fmul_rn(__fsub_rn(logit, most), factor);
}

// 2^(UNIT + z), rounded down; none below LEAST and of what is no number.
__device__ __forceinline__ unsigned long long weight_of(float z) {
    // Adding and subtracting it rounds to an integer, which the low bits are.
    constexpr float ROUND = 12582912.0f;
    const float shifted = __fadd_rn(z, ROUND), f = __fsub_rn(z, __fsub_rn(shifted, ROUND));
    float y = 1.5453163e-4f;
    y = __fadd_rn(__fmul_rn(y, f), 1.3390863e-3f);
    y = __fadd_rn(__fmul_rn(y, f), 9.618083e-3f);
    y = __fadd_rn(__fmul_rn(y, f), 5.550357e-2f);
    y = __fadd_rn(__fmul_rn(y, f), 0.2402265f);
    y = __fadd_rn(__fmul_rn(y, f), 0.6931472f);
    y = __fadd_rn(__fmul_rn(y, f), 1.0f);
    if (!(z >= LEAST)) return 0;
    const unsigned long long whole = (unsigned)__fmul_rn(y, 16777216.0f);
    return whole << (UNIT - 24) >> (__float_as_uint(ROUND) - __float_as_uint(shifted));
}

__device__ __forceinline__ unsigned bin_of(float z) { return (unsigned)__fmul_rn(z, -BINS_PER_TWO); }

struct Bins {
    unsigned long long mass[BINS];
    unsigned count[BINS];
};

// What a block shares.
struct Shared {
    // By z, and by a digit of the place in the order.
    Bins of_all, of_digit;
    // Tokens that are left.
    unsigned long long codes[THREADS], weights[THREADS];
    unsigned long long of_warps[32], mass, weight, before, total;
    unsigned counts_of_warps[32], at, count, inside, those, token;
};

// What is looked for: the first token with which the mass, or the number of tokens, is more than this.
struct Target {
    unsigned long long more_than;
    bool by_count;
};

// A token, and what comes before it.
struct Found {
    unsigned long long mass, weight;
    unsigned token;
};

// A row of logits, by which a whole block draws.
struct Row {
    const float *logits;
    unsigned vocab;
    bool wide;
    float most;
    Shared *shared;

    template <int N, typename F> __device__ __forceinline__ void pieces(F f) const {
        constexpr unsigned STRETCH = THREADS * N, PIECES = AT_ONCE / N;
        for (unsigned start = 0; start < vocab; start += STRETCH * PIECES) {
            float x[PIECES][N];
            const unsigned mine = start + threadIdx.x * N;
#pragma unroll
            for (unsigned piece = 0; piece < PIECES; piece++) {
                const unsigned i = mine + piece * STRETCH;
                if (i < vocab) {
                    load(logits + i, x[piece]);
                } else {
#pragma unroll
                    for (int j = 0; j < N; j++) x[piece][j] = NAN;
                }
            }
#pragma unroll
            for (unsigned piece = 0; piece < PIECES; piece++)
#pragma unroll
                for (int j = 0; j < N; j++) f(mine + piece * STRETCH + j, x[piece][j]);
        }
    }

    // Calls f(id, logit) for each token, all threads as often; from `vocab` on a logit is no number.
    template <typename F> __device__ __forceinline__ void each(F f) const {
        if (wide) pieces<4>(f);
        else pieces<1>(f);
    }

    // The place of the first token.
    __device__ __forceinline__ unsigned long long first() const {
        unsigned long long best = ~0ull;
        each([&](unsigned id, float logit) {
            if (id < vocab) best = min(best, code_of(logit, id));
        });
#pragma unroll
        for (int with = 16; with > 0; with /= 2) best = min(best, __shfl_xor_sync(ALL_LANES, best, with));
        if (threadIdx.x % 32 == 0) shared->of_warps[threadIdx.x / 32] = best;
        __syncthreads();
#pragma unroll
        for (int warp = 0; warp < 32; warp++) best = min(best, shared->of_warps[warp]);
        __syncthreads();
        return best;
    }

    // Adds a token to a bin; all threads together, of which those without weight add none.
    static __device__ __forceinline__ void add(Bins &bins, unsigned bin, unsigned long long weight) {
        const unsigned those = __ballot_sync(ALL_LANES, weight != 0);
        if (those == 0) return;
        // Where all are of one bin, they would wait for each other.
        const unsigned common = __shfl_sync(ALL_LANES, bin, __ffs((int)those) - 1);
        if (__all_sync(ALL_LANES, weight == 0 || bin == common)) {
#pragma unroll
            for (int with = 16; with > 0; with /= 2) weight += __shfl_xor_sync(ALL_LANES, weight, with);
            if (threadIdx.x % 32 == 0) {
                atomicAdd(&bins.mass[common], weight);
                atomicAdd(&bins.count[common], (unsigned)__popc(those));
            }
        } else if (weight != 0) {
            atomicAdd(&bins.mass[bin], weight);
            atomicAdd(&bins.count[bin], 1u);
        }
    }

    // The bins of all tokens.
    __device__ __forceinline__ void sort(float factor) const {
        Bins &bins = shared->of_all;
        bins.mass[threadIdx.x] = 0, bins.count[threadIdx.x] = 0;
        __syncthreads();
        each([&](unsigned, float logit) {
            const float z = power_of(logit, most, factor);
            const unsigned long long weight = weight_of(z);
            add(bins, weight ? bin_of(z) : 0, weight);
        });
        __syncthreads();
    }

    // Finds the bin of a target; what comes before it is added to `found`, and taken from the target. Returns how many tokens it has;
    // `total` and `count` become those of all bins.
    __device__ __forceinline__ unsigned find(const Bins &bins, Target &target, Found &found, unsigned &bin) const {
        const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        unsigned long long mass = bins.mass[threadIdx.x];
        unsigned count = bins.count[threadIdx.x];
#pragma unroll
        for (unsigned by = 1; by < 32; by *= 2) {
            const unsigned long long more = __shfl_up_sync(ALL_LANES, mass, by);
            const unsigned as_many = __shfl_up_sync(ALL_LANES, count, by);
            if (lane >= by) mass += more, count += as_many;
        }
        if (lane == 31) shared->of_warps[warp] = mass, shared->counts_of_warps[warp] = count;
        __syncthreads();
        for (unsigned before = 0; before < warp; before++)
            mass += shared->of_warps[before], count += shared->counts_of_warps[before];
        if (threadIdx.x == THREADS - 1) shared->total = mass, shared->count = count;
        const unsigned long long reached = target.by_count ? count : mass;
        const unsigned long long own = target.by_count ? bins.count[threadIdx.x] : bins.mass[threadIdx.x];
        if (reached > target.more_than && reached - own <= target.more_than) {
            shared->at = threadIdx.x, shared->inside = bins.count[threadIdx.x];
            shared->mass = mass - bins.mass[threadIdx.x];
            shared->before = reached - own;
        }
        __syncthreads();
        bin = shared->at;
        found.mass += shared->mass;
        target.more_than -= shared->before;
        const unsigned inside = shared->inside;
        __syncthreads();
        return inside;
    }

    // The token that a target, which must be below what there is, is reached with. The bins are those of this factor.
    __device__ __forceinline__ Found reach(Target target, float factor) const {
        Found found{0, 0, 0};
        unsigned bin, digit;
        unsigned inside = find(shared->of_all, target, found, bin);
        unsigned long long digits = 0, known = 0;
        const auto weight_inside = [&](unsigned id, float logit) {
            const float z = power_of(logit, most, factor);
            const unsigned long long weight = weight_of(z);
            return weight && bin_of(z) == bin && (code_of(logit, id) & known) == digits ? weight : 0;
        };
        // More than are compared with each other: digit by digit of their places, the highest first. Behind the sixth there are 16 at most.
        for (int shift = 64 - DIGIT; shift > 0 && inside > THREADS; shift -= DIGIT) {
            Bins &bins = shared->of_digit;
            bins.mass[threadIdx.x] = 0, bins.count[threadIdx.x] = 0;
            __syncthreads();
            each([&](unsigned id, float logit) {
                add(bins, (unsigned)(code_of(logit, id) >> shift) & (BINS - 1), weight_inside(id, logit));
            });
            __syncthreads();
            inside = find(bins, target, found, digit);
            digits |= (unsigned long long)digit << shift;
            known |= (unsigned long long)(BINS - 1) << shift;
        }
        if (threadIdx.x == 0) shared->those = 0;
        __syncthreads();
        each([&](unsigned id, float logit) {
            const unsigned long long weight = weight_inside(id, logit);
            if (weight) {
                const unsigned at = atomicAdd(&shared->those, 1u);
                shared->codes[at] = code_of(logit, id), shared->weights[at] = weight;
            }
        });
        __syncthreads();
        if (threadIdx.x < inside) {
            const unsigned long long mine = shared->codes[threadIdx.x], weight = shared->weights[threadIdx.x];
            unsigned long long mass = 0, count = 0;
            for (unsigned other = 0; other < inside; other++)
                if (shared->codes[other] < mine) mass += shared->weights[other], count++;
            const unsigned long long before = target.by_count ? count : mass, own = target.by_count ? 1 : weight;
            if (before <= target.more_than && before + own > target.more_than)
                shared->token = (unsigned)mine, shared->mass = mass, shared->weight = weight;
        }
        __syncthreads();
        found.token = shared->token, found.weight = shared->weight, found.mass += shared->mass;
        __syncthreads();
        return found;
    }

    // The mass of all tokens, and how many have some.
    __device__ __forceinline__ unsigned long long total(float factor, unsigned &count) const {
        sort(factor);
        // The bin of the first token.
        Target first{0, false};
        Found nothing{0, 0, 0};
        unsigned bin;
        find(shared->of_all, first, nothing, bin);
        count = shared->count;
        return shared->total;
    }

    // The token that is drawn, and the mass of all.
    __device__ __forceinline__ unsigned draw(const Draw &how, unsigned long long &of_all) const {
        unsigned count;
        of_all = total(how.factor, count);
        unsigned long long kept = of_all;
        if (how.most != 0 && how.most < count) {
            const Found last = reach(Target{how.most - 1, true}, how.factor);
            kept = last.mass + last.weight;
        }
        if (how.share != 0) {
            // The least mass that is as much, or more.
            const unsigned long long enough = __umul64hi(how.share, kept) + (how.share * kept != 0);
            const Found last = reach(Target{enough - 1, false}, how.factor);
            kept = last.mass + last.weight;
        }
        return reach(Target{__umul64hi(how.random, kept), false}, how.factor).token;
    }
};

} // namespace

// For each of `count` draws the token that it draws by its row of logits [.., vocab], and the bits of the natural logarithm of that
// token's probability among all of the row, at the temperature that is scored: found [count, 2]. Where the first token's logit is not
// finite, it is drawn, and its logarithm is no number.
// launch: grid (count), block (1024), dynamic shared bytes 43008. 1 <= vocab < 2^24. alignment: any; rows that begin at 16 bytes and
//   have a multiple of four logits are fast.
extern "C" __global__ void __launch_bounds__(1024)
    sample_tokens(unsigned *found, const float *logits, const void *draws, int vocab) {
    static_assert(sizeof(Shared) <= 43008, "more than a launch asks for");
    const Draw how = reinterpret_cast<const Draw *>(draws)[blockIdx.x];
    Row row{logits + (long long)how.row * vocab, (unsigned)vocab, false, 0, reinterpret_cast<Shared *>(shared_memory())};
    row.wide = is_wide(row.logits, vocab);
    unsigned token = (unsigned)row.first();
    row.most = row.logits[token];
    const bool finite = fabsf(row.most) < INFINITY;
    unsigned long long total = 0;
    if (finite && how.factor > 0) token = row.draw(how, total);
    if (finite && how.scored > 0 && how.scored != how.factor) {
        unsigned ignored;
        total = row.total(how.scored, ignored);
    }
    if (threadIdx.x != 0) return;
    float scored = 0;
    if (how.scored > 0) {
        const double z = ((double)row.logits[token] - row.most) * how.scored;
        scored = finite ? float(0.6931471805599453 * (z + UNIT) - log((double)total)) : NAN;
    }
    found[2 * blockIdx.x] = token;
    found[2 * blockIdx.x + 1] = __float_as_uint(scored);
}
