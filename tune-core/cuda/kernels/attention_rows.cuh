// What is done to rows of scores in registers, as products of tensor cores leave them: a thread has two rows (`half` 0 and 1),
// of each two neighbours in every eight columns.
#pragma once

#include "attention.cuh"

// Scores become weights e^(score - maximum), with the maximum and the sum so far kept for each row, in powers of two.
// `keep` is what earlier sums are to be multiplied by.
template <int N>
__device__ __forceinline__ void online_softmax(float (&scores)[N][4], float (&keep)[2], float (&most)[2], float (&total)[2],
                                               float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float larger = most[half];
#pragma unroll
        for (int n = 0; n < N; n++) larger = fmaxf(larger, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, 1));
        larger = fmaxf(larger, __shfl_xor_sync(ALL_LANES, larger, 2));
        // A row that has seen no key yet has no maximum; its weights stay 2^-inf.
        const float shift = larger == -INFINITY ? 0.0f : larger * factor;
        keep[half] = fast_exp2(most[half] * factor - shift);
        most[half] = larger;
        float sum = 0;
#pragma unroll
        for (int n = 0; n < N; n++) {
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = fast_exp2(scores[n][i] * factor - shift);
                sum += scores[n][i];
            }
        }
        total[half] = total[half] * keep[half] + sum;
    }
}

// Scores of queries from `query` on (the thread's first row) and keys from `key` on (its first column) that the mask hides.
template <int N> __device__ __forceinline__ void hide(float (&scores)[N][4], const Look &look, int query, int key) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (!sees(look, query + i / 2 * 8, key + 8 * n + i % 2)) scores[n][i] = -INFINITY;
}

// Writes a row's elements of sums.
template <int N>
__device__ __forceinline__ void write_row(bf16 *to, const float (&sums)[N][4], int half, float factor, int dim) {
    const int pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++)
        if (8 * n < dim)
            *reinterpret_cast<uint32_t *>(to + 8 * n + pair) = pack_bf16(factor * sums[n][2 * half], factor * sums[n][2 * half + 1]);
}

// The same in f32.
template <int N>
__device__ __forceinline__ void write_row(float *to, const float (&sums)[N][4], int half, float factor, int dim) {
    const int pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++)
        if (8 * n < dim)
            *reinterpret_cast<float2 *>(to + 8 * n + pair) = make_float2(factor * sums[n][2 * half], factor * sums[n][2 * half + 1]);
}
