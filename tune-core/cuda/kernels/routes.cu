// Which experts the tokens of a mixture go to, where each has its place, and the gradient of the router's logits.
//
// Probabilities are in f64, as the processor has them, and a weight is rounded once. Experts are compared by their logits: that order is
// the same on every machine, whatever its exponential function rounds.
#include "common.cuh"

namespace {

constexpr int WARPS = 8, PIECES = 8;

// A larger one is chosen before a smaller: by the logit, of equal ones the expert with the lower number. What is no number comes
// last, and -0 is 0.
__device__ __forceinline__ unsigned long long preference(float logit, unsigned expert) {
    const unsigned bits = __float_as_uint(logit + 0.0f);
    const unsigned order = logit != logit ? 0u : (bits & 0x80000000u) ? ~bits : bits | 0x80000000u;
    return (unsigned long long)order << 32 | (0xffffffffu - expert);
}

// The softmax of a row of logits.
struct Softmax {
    const float *row;
    double most, sum;

    // A warp's lanes together.
    __device__ __forceinline__ Softmax(const float *row, int count, int lane) : row(row), sum(0) {
        float largest = -INFINITY;
        for (int e = lane; e < count; e += 32) largest = fmaxf(largest, row[e]);
        most = warp_max(largest);
        for (int e = lane; e < count; e += 32) sum += exp(row[e] - most);
#pragma unroll
        for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, with);
    }

    __device__ __forceinline__ double of(int expert) const { return exp(row[expert] - most) / sum; }
};

// The sum of a number of each thread of a block of WARPS warps.
__device__ __forceinline__ unsigned block_sum(unsigned x, unsigned *shared) {
#pragma unroll
    for (int with = 16; with > 0; with /= 2) x += __shfl_xor_sync(ALL_LANES, x, with);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) x += shared[i];
    __syncthreads();
    return x;
}

template <typename T>
__device__ __forceinline__ void route_back(T *y, const float *logits, const unsigned *experts, const unsigned *places,
                                           const float *g, long long tokens, int count, int chosen, int renormalized) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (long long token = (long long)blockIdx.x * warps + threadIdx.x / 32; token < tokens; token += (long long)gridDim.x * warps) {
        const Softmax p(logits + token * count, count, lane);
        const unsigned *mine = experts + token * chosen, *at = places + token * chosen;
        double total = 0, mean = 0;
        for (int k = 0; k < chosen; k++) {
            total += p.of(int(mine[k]));
            mean += (double)g[at[k]] * p.of(int(mine[k]));
        }
        // Of g with the weights, and, of what that leaves to the probabilities, with these.
        const double of_weights = renormalized ? mean / total : 0.0, factor = renormalized ? 1.0 / total : 1.0;
        double below = 0;
        for (int k = 0; k < chosen; k++) below += ((double)g[at[k]] - of_weights) * factor * p.of(int(mine[k]));
        for (int e = lane; e < count; e += 32) {
            double q = 0;
            for (int k = 0; k < chosen; k++)
                if (mine[k] == (unsigned)e) q = ((double)g[at[k]] - of_weights) * factor;
            y[token * count + e] = from_f32<T>(float(p.of(e) * (q - below)));
        }
    }
}

} // namespace

// For each row of logits [tokens, count] its `chosen` most probable experts, the most probable first, of equal ones the first, and how
// much each counts: its probability over all experts, divided by the sum of the chosen ones' if `renormalized`. Both [tokens, chosen].
// launch: grid (min(ceil(tokens / 4), 65535)), block (128), no shared memory. 1 <= chosen <= count.
extern "C" __global__ void __launch_bounds__(128)
    routes_choose(unsigned *experts, float *weights, const float *logits, long long tokens, int count, int chosen, int renormalized) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (long long token = (long long)blockIdx.x * warps + threadIdx.x / 32; token < tokens; token += (long long)gridDim.x * warps) {
        const float *row = logits + token * count;
        const Softmax p(row, count, lane);
        unsigned *mine = experts + token * chosen;
        unsigned long long last = ~0ull;
        double total = 0;
        for (int k = 0; k < chosen; k++) {
            unsigned long long best = 0;
            for (int e = lane; e < count; e += 32) {
                const unsigned long long other = preference(row[e], (unsigned)e);
                if (other < last && other > best) best = other;
            }
#pragma unroll
            for (int with = 16; with > 0; with /= 2) best = max(best, __shfl_xor_sync(ALL_LANES, best, with));
            last = best;
            const unsigned expert = 0xffffffffu - (unsigned)best;
            if (renormalized) total += p.of(int(expert));
            if (lane == 0) mine[k] = expert;
        }
        __syncwarp();
        for (int k = lane; k < chosen; k += 32)
            weights[token * chosen + k] = float(renormalized ? p.of(int(mine[k])) / total : p.of(int(mine[k])));
        __syncwarp();
    }
}

// Places for `choices` [tokens, chosen] of experts below the grid's size: expert by expert, and by token within each. places[i] is that of
// choice i; of each place, tokens is its token, and of_places the weight of its choice. starts is the first place of each expert, and the
// number of places behind the last one.
// launch: grid (count), block (256), dynamic shared bytes 2 * 8 * 4.
extern "C" __global__ void __launch_bounds__(256)
    routes_place(unsigned *places, unsigned *tokens, float *of_places, unsigned *starts, const unsigned *experts,
                 const float *weights, long long choices, int chosen) {
    unsigned *shared = reinterpret_cast<unsigned *>(shared_memory());
    const unsigned expert = blockIdx.x;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    unsigned before = 0;
    for (long long i = threadIdx.x; i < choices; i += 32 * WARPS) before += experts[i] < expert;
    unsigned next = block_sum(before, shared);
    if (threadIdx.x == 0) {
        starts[expert] = next;
        if (expert + 1 == gridDim.x) starts[gridDim.x] = (unsigned)choices;
    }
    int turn = 0;
    for (long long first = 0; first < choices; first += 32 * WARPS * PIECES) {
        // Each warp has PIECES times 32 choices in a row.
        const long long of_warp = first + warp * 32 * PIECES;
        unsigned votes[PIECES], count = 0;
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const long long i = of_warp + piece * 32 + lane;
            votes[piece] = __ballot_sync(ALL_LANES, i < choices && experts[i] == expert);
            count += __popc(votes[piece]);
        }
        // Two sets of counts take turns, so that one barrier is enough.
        unsigned *counts = shared + turn * WARPS;
        turn ^= 1;
        if (lane == 0) counts[warp] = count;
        __syncthreads();
        unsigned place = next;
#pragma unroll
        for (int i = 0; i < WARPS; i++) {
            if (i < warp) place += counts[i];
            next += counts[i];
        }
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            const long long i = of_warp + piece * 32 + lane;
            if (votes[piece] >> lane & 1) {
                const unsigned at = place + __popc(votes[piece] & ((1u << lane) - 1));
                places[i] = at;
                tokens[at] = (unsigned)(i / chosen);
                of_places[at] = weights[i];
            }
            place += __popc(votes[piece]);
        }
    }
}

// The gradient of the logits [tokens, count] for that of the weights, g of each place; which experts are chosen counts as fixed. With q
// the gradient of the probabilities p it is p (q - sum of q p); renormalized, q is (g - sum of g w) / sum of p, sums over the chosen.
// launch: as routes_choose.
#define ROUTES_BACK(NAME, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(128)                                                                     \
        NAME(T *y, const float *logits, const unsigned *experts, const unsigned *places, const float *g,                 \
             long long tokens, int count, int chosen, int renormalized) {                                                \
        route_back<T>(y, logits, experts, places, g, tokens, count, chosen, renormalized);                               \
    }
ROUTES_BACK(routes_back_f32, float)
ROUTES_BACK(routes_back_bf16, bf16)
