// Attention of one new token for each sequence on a cache of keys and values, in two kernels: parts of each sequence's keys,
// then the parts together, in their order.
#include "attention.cuh"

namespace {

constexpr int WARPS = 4, THREADS = 32 * WARPS, MOST = 4; // pairs of elements that a lane holds: head_dim <= 64 * MOST

// Elements 2 * (lane + 32 * j) and the next of a row.
template <typename T> __device__ __forceinline__ void load_pairs(float2 (&x)[MOST], const T *from, int dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < MOST; j++) {
        const int at = 2 * (lane + 32 * j);
        x[j] = make_float2(0, 0);
        if (at >= dim) continue;
        if constexpr (sizeof(T) == 2) {
            const uint32_t both = *reinterpret_cast<const uint32_t *>(from + at);
            x[j] = make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
        } else {
            x[j] = *reinterpret_cast<const float2 *>(from + at);
        }
    }
}

// G query heads of one sequence that share their keys, over one of `gridDim.z` parts of the keys that they see.
template <typename T, int G>
__device__ __forceinline__ void part(float *parts, const T *q, const T *k, const T *v, const int2 *sequences, long long q_stride,
                                     long long k_stride, long long v_stride, int heads, int group, int dim, const Look &look) {
    // For each warp and head: the maximum, the sum, and the weighted values.
    float *shared = reinterpret_cast<float *>(shared_memory());
    const int sequence = blockIdx.y, head = blockIdx.x * G, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row_of_first = sequences[sequence].x, length = sequences[sequence].y, begin = first_key(look, length - 1);
    const int size = (length - begin + gridDim.z - 1) / gridDim.z;
    const int start = begin + blockIdx.z * size, end = min(length, start + size);
    k += row_of_first * k_stride + (long long)(head / group) * dim;
    v += row_of_first * v_stride + (long long)(head / group) * dim;
    float2 queries[G][MOST], sums[G][MOST];
    float most[G], total[G];
#pragma unroll
    for (int g = 0; g < G; g++) {
        load_pairs(queries[g], q + sequence * q_stride + (long long)(head + g) * dim, dim);
        most[g] = -INFINITY, total[g] = 0;
#pragma unroll
        for (int j = 0; j < MOST; j++) sums[g][j] = make_float2(0, 0);
    }
    for (int key = start + warp; key < end; key += WARPS) {
        float2 of_key[MOST], of_value[MOST];
        load_pairs(of_key, k + key * k_stride, dim);
        load_pairs(of_value, v + key * v_stride, dim);
#pragma unroll
        for (int g = 0; g < G; g++) {
            float s = 0;
#pragma unroll
            for (int j = 0; j < MOST; j++) s += queries[g][j].x * of_key[j].x + queries[g][j].y * of_key[j].y;
            s = warp_sum(s) * look.scale;
            if (look.softcap > 0) s = look.softcap * tanhf(s / look.softcap);
            const float larger = fmaxf(most[g], s), keep = __expf(most[g] - larger), p = __expf(s - larger);
            most[g] = larger;
            total[g] = total[g] * keep + p;
#pragma unroll
            for (int j = 0; j < MOST; j++) {
                sums[g][j].x = sums[g][j].x * keep + p * of_value[j].x;
                sums[g][j].y = sums[g][j].y * keep + p * of_value[j].y;
            }
        }
    }
    const int row = dim + 2;
#pragma unroll
    for (int g = 0; g < G; g++) {
        float *mine = shared + (warp * G + g) * row;
        if (lane == 0) mine[0] = most[g], mine[1] = total[g];
#pragma unroll
        for (int j = 0; j < MOST; j++) {
            const int at = 2 * (lane + 32 * j);
            if (at < dim) mine[2 + at] = sums[g][j].x, mine[3 + at] = sums[g][j].y;
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < G * row; i += THREADS) {
        const int g = i / row, at = i % row;
        float larger = -INFINITY, sum = 0;
        for (int w = 0; w < WARPS; w++) larger = fmaxf(larger, shared[(w * G + g) * row]);
        const float shift = larger == -INFINITY ? 0.0f : larger;
        for (int w = 0; w < WARPS; w++) {
            const float *of = shared + (w * G + g) * row;
            sum += __expf(of[0] - shift) * of[at];
        }
        parts[(((long long)sequence * heads + head + g) * gridDim.z + blockIdx.z) * row + at] = at == 0 ? larger : sum;
    }
}

template <typename T>
__device__ __forceinline__ void join(T *out, float *lse, const float *parts, long long out_stride, int heads, int count, int dim) {
    const int sequence = blockIdx.y, head = blockIdx.x, row = dim + 2;
    parts += ((long long)sequence * heads + head) * count * row;
    float larger = -INFINITY, total = 0;
    for (int i = 0; i < count; i++) larger = fmaxf(larger, parts[i * row]);
    for (int i = 0; i < count; i++) total += __expf(parts[i * row] - larger) * parts[i * row + 1];
    if (threadIdx.x == 0) lse[(long long)head * gridDim.y + sequence] = larger + logf(total);
    for (int at = threadIdx.x; at < dim; at += blockDim.x) {
        float sum = 0;
        for (int i = 0; i < count; i++) sum += __expf(parts[i * row] - larger) * parts[i * row + 2 + at];
        out[sequence * out_stride + (long long)head * dim + at] = from_f32<T>(sum / total);
    }
}

} // namespace

// Parts of the attention of q [sequences, heads * head_dim] on keys and values of a cache: `sequences` has, for each, the row of its
// first key and value and how many there are, the query's own (the last) included: two i32.
// parts: f32 [sequences, heads, PARTS, head_dim + 2]. head_dim even, at most 256. group = heads / kv_heads; G divides it.
// launch: grid (heads / G, sequences, PARTS), block (128), dynamic shared bytes 16 * G * (head_dim + 2); then attention_join.
//   PARTS as many as fill the card: about 264 / (heads / G * sequences), at least 1, at most length / 64; it decides the order of
//   sums. alignment: that of two elements, strides even.
#define ATTENTION_DECODE(NAME, T, G)                                                                                      \
    extern "C" __global__ void __launch_bounds__(128)                                                                     \
        NAME(float *parts, const T *q, const T *k, const T *v, const int2 *sequences, long long q_stride,                \
             long long k_stride, long long v_stride, int heads, int group, int head_dim, int window, float scale,        \
             float softcap) {                                                                                            \
        part<T, G>(parts, q, k, v, sequences, q_stride, k_stride, v_stride, heads, group, head_dim,                      \
                   Look{window, scale, softcap});                                                                         \
    }
ATTENTION_DECODE(attention_decode_f32_g1, float, 1)
ATTENTION_DECODE(attention_decode_f32_g2, float, 2)
ATTENTION_DECODE(attention_decode_f32_g4, float, 4)
ATTENTION_DECODE(attention_decode_bf16_g1, bf16, 1)
ATTENTION_DECODE(attention_decode_bf16_g2, bf16, 2)
ATTENTION_DECODE(attention_decode_bf16_g4, bf16, 4)

// out [sequences, heads * head_dim] and lse [heads, sequences] from `count` parts. launch: grid (heads, sequences), block (128), no shared memory.
#define ATTENTION_JOIN(NAME, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(128)                                                                     \
        NAME(T *out, float *lse, const float *parts, long long out_stride, int heads, int count, int head_dim) {         \
        join<T>(out, lse, parts, out_stride, heads, count, head_dim);                                                     \
    }
ATTENTION_JOIN(attention_join_f32, float)
ATTENTION_JOIN(attention_join_bf16, bf16)
