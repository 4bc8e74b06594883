// What optimizers share: lists of parameters, and bf16 weights that are rounded at random.
//
// A bf16 weight is rounded up with the probability that keeps the mean (Gupta et al. 2015, https://arxiv.org/abs/1502.02551); the random
// bits depend on the parameter's key and the element's index alone.
//
// Products, sums, quotients and roots are rounded one by one, and never joined to one instruction: weights and state get the very
// bits that the processor's optimizers give them.
//
// launch of all kernels over `Piece`s: grid (number of pieces), block (256). A piece is a part of a parameter; `first`
//   is where it begins, a multiple of 8; no piece is longer than 2^31 elements, and 65536 is a good length.
//   alignment: any; 16-byte accesses where each pointer is aligned.
#pragma once

#include "common.cuh"

// One parameter: 48 bytes, in device memory. Pointers to its beginning.
struct Parameter {
    void *weight;
    float *first;  // AdamW, Lion: the mean of the gradients. SGD: the velocity, or null.
    float *second; // AdamW: the mean of their squares. Lion, SGD: unused.
    const void *gradient;
    unsigned long long key; // what random rounding uses: of parameter and step
    bf16 *copy;             // an f32 weight in bf16, too, to the nearest; or null
};

// A part of a parameter: 16 bytes.
struct Piece {
    unsigned parameter;
    unsigned count;
    unsigned long long first;
};

// Uniform random bits for element i: a multiplicative hash of 32 bits (the constants are Wellons's,
// https://nullprogram.com/blog/2018/07/31/).
__device__ __forceinline__ unsigned random_bits(unsigned long long key, unsigned long long i) {
    unsigned x = ((unsigned)i ^ (unsigned)key) + (unsigned)(key >> 32);
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

// x as bf16, up or down with the probabilities that give x in the mean. What is not finite stays so.
__device__ __forceinline__ bf16 rounded_at_random(float x, unsigned random) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bf16_of_bits((unsigned short)((bits >> 16) | (x != x ? 0x40 : 0)));
    return bf16_of_bits((unsigned short)((bits + (random & 0xffffu)) >> 16));
}

template <int N>
__device__ __forceinline__ void store_weights(float *to, bf16 *copy, const float (&w)[N], unsigned long long, unsigned long long i) {
    store(to, w);
    if (copy) store(copy + i, w);
}
template <int N>
__device__ __forceinline__ void store_weights(bf16 *to, bf16 *, const float (&w)[N], unsigned long long key,
                                              unsigned long long i) {
    union {
        uint4 all;
        bf16 each[8];
    } raw;
    if constexpr (N == 8) {
#pragma unroll
        for (int j = 0; j < 8; j++) raw.each[j] = rounded_at_random(w[j], random_bits(key, i + j));
        *reinterpret_cast<uint4 *>(to) = raw.all;
    } else {
#pragma unroll
        for (int j = 0; j < N; j++) to[j] = rounded_at_random(w[j], random_bits(key, i + j));
    }
}

__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float minus(float a, float b) { return __fsub_rn(a, b); }

struct AdamW {
    float scale, toward_first, keep_second, toward_second, size, root, keep, eps;

    __device__ __forceinline__ float step(float w, float &m, float &v, float g) const {
        g = times(g, scale);
        m = plus(m, times(minus(g, m), toward_first));
        v = plus(times(v, keep_second), times(times(toward_second, g), g));
        const float root_of_mean = plus(__fdiv_rn(__fsqrt_rn(v), root), eps);
        return minus(times(w, keep), __fdiv_rn(times(size, m), root_of_mean));
    }
};

__device__ __forceinline__ bool all_wide(const Parameter &p) {
    return is_wide(static_cast<const float *>(p.weight), 0) && is_wide(p.first, 0) && is_wide(p.second, 0) &&
           is_wide(static_cast<const float *>(p.gradient), 0) && is_wide(p.copy, 0);
}
