// AdamW whose state is in eight bits: codes for blocks of 256 numbers that share a scale (Dettmers et al. 2021,
// https://arxiv.org/abs/2110.02861). Steps and codes have the bits that the processor gives them. Pieces and rounding: see optim.cuh.
#include "optim.cuh"

// One parameter: 64 bytes, in device memory. Pointers to its beginning.
struct Parameter8 {
    void *weight;
    const float *gradient;
    unsigned char *first_codes, *second_codes;
    float *first_scales, *second_scales; // one for each block
    unsigned long long key;
    bf16 *copy;
};

namespace {

constexpr unsigned BLOCK = 256, EACH = BLOCK / 32;

// The least scale: a block of zeros has one, too.
constexpr float LEAST = 1e-12f;

// What codes stand for, and the number that the next code begins at: the last of these is infinite.
struct Map {
    const float *values, *ends;

    __device__ __forceinline__ unsigned char code(float x) const {
        unsigned code = 0;
#pragma unroll
        for (unsigned step = 128; step > 0; step /= 2)
            if (ends[code + step - 1] <= x) code += step;
        return static_cast<unsigned char>(code);
    }
};

// A block of so many numbers from `first` on, by a warp.
template <typename W>
__device__ __forceinline__ void adamw_block(const Parameter8 &p, unsigned long long first, unsigned count, const AdamW &rule,
                                            const Map &with_sign, const Map &without) {
    const unsigned lane = threadIdx.x % 32;
    const float scale_first = p.first_scales[first / BLOCK], scale_second = p.second_scales[first / BLOCK];
    W *weight = static_cast<W *>(p.weight);
    float m[EACH], v[EACH], most_first = LEAST, most_second = LEAST;
#pragma unroll
    for (unsigned j = 0; j < EACH; j++) {
        const unsigned at = lane + 32 * j;
        m[j] = v[j] = 0;
        if (at >= count) continue;
        const unsigned long long i = first + at;
        m[j] = times(with_sign.values[p.first_codes[i]], scale_first);
        v[j] = times(without.values[p.second_codes[i]], scale_second);
        const float w[1] = {rule.step(to_f32(weight[i]), m[j], v[j], p.gradient[i])};
        store_weights(weight + i, p.copy, w, p.key, i);
        most_first = fmaxf(most_first, fabsf(m[j])), most_second = fmaxf(most_second, fabsf(v[j]));
    }
    most_first = warp_max(most_first), most_second = warp_max(most_second);
#pragma unroll
    for (unsigned j = 0; j < EACH; j++) {
        const unsigned at = lane + 32 * j;
        if (at >= count) continue;
        p.first_codes[first + at] = with_sign.code(__fdiv_rn(m[j], most_first));
        p.second_codes[first + at] = without.code(__fdiv_rn(v[j], most_second));
    }
    if (lane == 0) p.first_scales[first / BLOCK] = most_first, p.second_scales[first / BLOCK] = most_second;
}

} // namespace

// One step of AdamW, as in optim.cu, of parameters whose two means are in blocks, with gradients of f32. `maps` has four times 256
// numbers: what the codes of the first mean stand for and where each one's numbers end, and the same of the second.
// A piece begins where a block does. Names end in the type of the weight. Dynamic shared bytes 4 * 1024.
#define ADAMW_8BIT(NAME, W)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const Parameter8 *parameters, const Piece *pieces, const float *maps, float scale, float toward_first,      \
             float keep_second, float toward_second, float size, float root, float keep, float eps) {                    \
        float *shared = reinterpret_cast<float *>(shared_memory());                                                       \
        for (unsigned i = threadIdx.x; i < 4 * BLOCK; i += blockDim.x) shared[i] = maps[i];                               \
        __syncthreads();                                                                                                  \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const Parameter8 p = parameters[piece.parameter];                                                                 \
        const AdamW rule{scale, toward_first, keep_second, toward_second, size, root, keep, eps};                         \
        const Map with_sign{shared, shared + BLOCK}, without{shared + 2 * BLOCK, shared + 3 * BLOCK};                     \
        for (unsigned at = threadIdx.x / 32 * BLOCK; at < piece.count; at += blockDim.x / 32 * BLOCK)                     \
            adamw_block<W>(p, piece.first + at, min(piece.count - at, BLOCK), rule, with_sign, without);                  \
    }
ADAMW_8BIT(adamw_8bit_f32, float)
ADAMW_8BIT(adamw_8bit_bf16, bf16)
