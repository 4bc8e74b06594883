// Attention for f32 and for heads of any size up to 256: right on every card, without tensor cores.
//
// A warp has a row of its own (a query, or in attention_plain_keys a key), a block ROWS of them. The other side passes by in
// tiles of 32 through shared memory: a lane computes one score at a time, then holds some of the sum's elements.
#include "attention.cuh"

namespace {

constexpr int ROWS = 8, OTHERS = 32, MOST = 8; // elements of a head that a lane holds: head_dim <= 32 * MOST

// A tile's rows as f32, padded so that the lanes of a warp read 32 rows without conflicts.
template <typename T>
__device__ __forceinline__ void bring(float *tile, const T *from, long long stride, int rows, int dim, float factor = 1.0f) {
    for (int i = threadIdx.x; i < rows * dim; i += blockDim.x)
        tile[i / dim * (dim + 1) + i % dim] = factor * to_f32(from[i / dim * stride + i % dim]);
}

__device__ __forceinline__ float dot(const float *a, const float *b, int dim) {
    float sum = 0;
    for (int i = 0; i < dim; i++) sum += a[i] * b[i];
    return sum;
}

// A score after the cap, and its derivative.
__device__ __forceinline__ float2 score(const Look &look, float s) {
    s *= look.scale;
    if (look.softcap <= 0) return make_float2(s, 1.0f);
    const float t = tanhf(s / look.softcap);
    return make_float2(look.softcap * t, 1.0f - t * t);
}

// sum += the weighted sum of 32 rows; lane l gives the weight of row l and holds elements l, l + 32, ...
__device__ __forceinline__ void add_rows(float (&sum)[MOST], float weight, const float *rows, int count, int dim) {
    const int lane = threadIdx.x % 32;
    for (int j = 0; j < count; j++) {
        const float w = __shfl_sync(ALL_LANES, weight, j);
#pragma unroll
        for (int e = 0; e < MOST; e++)
            if (lane + 32 * e < dim) sum[e] += w * rows[j * (dim + 1) + lane + 32 * e];
    }
}

template <typename T> __device__ __forceinline__ void write(T *to, const float (&x)[MOST], float factor, int dim) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int e = 0; e < MOST; e++)
        if (lane + 32 * e < dim) to[lane + 32 * e] = from_f32<T>(factor * x[e]);
}

template <typename T>
__device__ __forceinline__ void forward(T *out, float *lse, const T *q, const T *k, const T *v, const Tile *tiles,
                                        long long tokens, long long out_stride, long long q_stride, long long k_stride,
                                        long long v_stride, int group, int dim, const Look &look) {
    float *queries = reinterpret_cast<float *>(shared_memory());
    float *keys = queries + ROWS * (dim + 1), *values = keys + OTHERS * (dim + 1);
    const Tile tile = tiles[blockIdx.y];
    const int head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int rows = min(ROWS, tile.length - tile.first), end = tile.first + rows, query = tile.first + warp;
    const long long token = (long long)tile.span + query;
    k += ((long long)tile.span + tile.keys) * k_stride + (long long)(head / group) * dim;
    v += ((long long)tile.span + tile.keys) * v_stride + (long long)(head / group) * dim;
    bring(queries, q + ((long long)tile.span + tile.first) * q_stride + (long long)head * dim, q_stride, rows, dim);
    float sum[MOST] = {}, most = -INFINITY, total = 0;
    for (int start = first_key(look, tile.first); start < end; start += OTHERS) {
        const int count = min(OTHERS, end - start);
        __syncthreads();
        bring(keys, k + start * k_stride, k_stride, count, dim);
        bring(values, v + start * v_stride, v_stride, count, dim);
        __syncthreads();
        if (warp >= rows) continue;
        float s = -INFINITY;
        if (lane < count && sees(look, query, start + lane))
            s = score(look, dot(queries + warp * (dim + 1), keys + lane * (dim + 1), dim)).x;
        const float larger = fmaxf(most, warp_max(s));
        if (larger == -INFINITY) continue;
        const float keep = expf(most - larger), p = expf(s - larger);
        most = larger;
        total = total * keep + warp_sum(p);
#pragma unroll
        for (int e = 0; e < MOST; e++) sum[e] *= keep;
        add_rows(sum, p, values, count, dim);
    }
    if (warp >= rows) return;
    write(out + token * out_stride + (long long)head * dim, sum, 1.0f / total, dim);
    if (lane == 0) lse[head * tokens + token] = most + logf(total);
}

// The gradient of the queries.
template <typename T>
__device__ __forceinline__ void backward_queries(T *dq, const T *q, const T *k, const T *v, const T *g, const float *lse,
                                                 const float *delta, const Tile *tiles, long long tokens,
                                                 long long dq_stride, long long q_stride, long long k_stride,
                                                 long long v_stride, long long g_stride, int group, int dim,
                                                 const Look &look) {
    float *queries = reinterpret_cast<float *>(shared_memory());
    float *grads = queries + ROWS * (dim + 1), *keys = grads + ROWS * (dim + 1), *values = keys + OTHERS * (dim + 1);
    const Tile tile = tiles[blockIdx.y];
    const int head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int rows = min(ROWS, tile.length - tile.first), end = tile.first + rows, query = tile.first + warp;
    const long long first = (long long)tile.span + tile.first, token = first + warp;
    k += (long long)tile.span * k_stride + (long long)(head / group) * dim;
    v += (long long)tile.span * v_stride + (long long)(head / group) * dim;
    bring(queries, q + first * q_stride + (long long)head * dim, q_stride, rows, dim);
    bring(grads, g + first * g_stride + (long long)head * dim, g_stride, rows, dim);
    float sum[MOST] = {};
    const float normalizer = warp < rows ? lse[head * tokens + token] : 0, of_row = warp < rows ? delta[head * tokens + token] : 0;
    for (int start = first_key(look, tile.first); start < end; start += OTHERS) {
        const int count = min(OTHERS, end - start);
        __syncthreads();
        bring(keys, k + start * k_stride, k_stride, count, dim);
        bring(values, v + start * v_stride, v_stride, count, dim);
        __syncthreads();
        if (warp >= rows) continue;
        float ds = 0;
        if (lane < count && sees(look, query, start + lane)) {
            const float2 s = score(look, dot(queries + warp * (dim + 1), keys + lane * (dim + 1), dim));
            const float dp = dot(grads + warp * (dim + 1), values + lane * (dim + 1), dim);
            ds = expf(s.x - normalizer) * (dp - of_row) * s.y;
        }
        add_rows(sum, ds, keys, count, dim);
    }
    if (warp < rows) write(dq + token * dq_stride + (long long)head * dim, sum, look.scale, dim);
}

// The gradients of keys and values, summed over the query heads that share them.
template <typename T>
__device__ __forceinline__ void backward_keys(T *dk, T *dv, const T *q, const T *k, const T *v, const T *g, const float *lse,
                                              const float *delta, const Tile *tiles, long long tokens, long long dk_stride,
                                              long long dv_stride, long long q_stride, long long k_stride,
                                              long long v_stride, long long g_stride, int group, int dim, const Look &look) {
    float *keys = reinterpret_cast<float *>(shared_memory());
    float *values = keys + ROWS * (dim + 1), *queries = values + ROWS * (dim + 1), *grads = queries + OTHERS * (dim + 1);
    const Tile tile = tiles[blockIdx.y];
    const int kv_head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int rows = min(ROWS, tile.length - tile.first), key = tile.first + warp;
    const int end = end_query(look, tile.first + rows - 1, tile.length);
    const long long first = (long long)tile.span + tile.first;
    bring(keys, k + first * k_stride + (long long)kv_head * dim, k_stride, rows, dim);
    bring(values, v + first * v_stride + (long long)kv_head * dim, v_stride, rows, dim);
    float of_key[MOST] = {}, of_value[MOST] = {};
    for (int head = kv_head * group; head < (kv_head + 1) * group; head++) {
        for (int start = tile.first; start < end; start += OTHERS) {
            const int count = min(OTHERS, end - start);
            const long long token = (long long)tile.span + start;
            __syncthreads();
            bring(queries, q + token * q_stride + (long long)head * dim, q_stride, count, dim);
            bring(grads, g + token * g_stride + (long long)head * dim, g_stride, count, dim);
            __syncthreads();
            if (warp >= rows) continue;
            float p = 0, ds = 0;
            if (lane < count && sees(look, start + lane, key)) {
                const float2 s = score(look, dot(keys + warp * (dim + 1), queries + lane * (dim + 1), dim));
                const float dp = dot(values + warp * (dim + 1), grads + lane * (dim + 1), dim);
                p = expf(s.x - lse[head * tokens + token + lane]);
                ds = p * (dp - delta[head * tokens + token + lane]) * s.y;
            }
            add_rows(of_value, p, grads, count, dim);
            add_rows(of_key, ds, queries, count, dim);
        }
    }
    if (warp >= rows) return;
    write(dk + (first + warp) * dk_stride + (long long)kv_head * dim, of_key, look.scale, dim);
    write(dv + (first + warp) * dv_stride + (long long)kv_head * dim, of_value, 1.0f, dim);
}

template <typename T>
__device__ __forceinline__ void row_products(float *delta, const T *out, const T *g, long long tokens, long long out_stride,
                                             long long g_stride, int heads, int dim) {
    const long long row = (long long)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= tokens * heads) return;
    const long long token = row / heads, head = row % heads;
    out += token * out_stride + head * dim;
    g += token * g_stride + head * dim;
    float sum = 0;
    for (int i = threadIdx.x % 32; i < dim; i += 32) sum += to_f32(out[i]) * to_f32(g[i]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[head * tokens + token] = sum;
}

} // namespace

// Attention for q [tokens, heads * head_dim] and k, v [tokens, kv_heads * head_dim] into out, shaped as q, and the logarithm of
// each query's normalizer into lse [heads, tokens] f32. group = heads / kv_heads. Tokens outside of every tile are not written.
// tiles: `Tile {i32 span, i32 length, i32 first, i32 keys}` (attention.cuh) of 8 positions each (the last of a span fewer).
//   List them by `first`, largest first: the longest-running begin.
// launch: grid (heads, tiles), block (256), dynamic shared bytes 4 * (head_dim + 1) * 72. head_dim <= 256. alignment: any.
#define ATTENTION_PLAIN_FORWARD(NAME, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *out, float *lse, const T *q, const T *k, const T *v, const Tile *tiles, long long tokens,                \
             long long out_stride, long long q_stride, long long k_stride, long long v_stride, int group, int head_dim,  \
             int window, float scale, float softcap) {                                                                   \
        forward<T>(out, lse, q, k, v, tiles, tokens, out_stride, q_stride, k_stride, v_stride, group, head_dim,          \
                   Look{window, scale, softcap});                                                                         \
    }
ATTENTION_PLAIN_FORWARD(attention_plain_forward_f32, float)
ATTENTION_PLAIN_FORWARD(attention_plain_forward_bf16, bf16)

// delta [heads, tokens] f32: the products of out and its gradient g, row by row; what the two passes below need.
// launch: grid (ceil(tokens * heads / 8)), block (256), no shared memory. Used by all backward passes.
#define ATTENTION_DELTA(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(float *delta, const T *out, const T *g, long long tokens, long long out_stride, long long g_stride,         \
             int heads, int head_dim) {                                                                                  \
        row_products<T>(delta, out, g, tokens, out_stride, g_stride, heads, head_dim);                                    \
    }
ATTENTION_DELTA(attention_delta_f32, float)
ATTENTION_DELTA(attention_delta_bf16, bf16)

// The gradient of q from that of out (g), lse and delta. Tiles of 8 as forward.
// launch: grid (heads, tiles), block (256), dynamic shared bytes 4 * (head_dim + 1) * 80. head_dim <= 256.
#define ATTENTION_PLAIN_QUERIES(NAME, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *dq, const T *q, const T *k, const T *v, const T *g, const float *lse, const float *delta,                \
             const Tile *tiles, long long tokens, long long dq_stride, long long q_stride, long long k_stride,           \
             long long v_stride, long long g_stride, int group, int head_dim, int window, float scale, float softcap) {  \
        backward_queries<T>(dq, q, k, v, g, lse, delta, tiles, tokens, dq_stride, q_stride, k_stride, v_stride,          \
                            g_stride, group, head_dim, Look{window, scale, softcap});                                     \
    }
ATTENTION_PLAIN_QUERIES(attention_plain_queries_f32, float)
ATTENTION_PLAIN_QUERIES(attention_plain_queries_bf16, bf16)

// The gradients of k and v. Tiles of 8 keys, by `first`, smallest first.
// launch: grid (kv_heads, tiles), block (256), dynamic shared bytes 4 * (head_dim + 1) * 80. head_dim <= 256.
#define ATTENTION_PLAIN_KEYS(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *dk, T *dv, const T *q, const T *k, const T *v, const T *g, const float *lse, const float *delta,         \
             const Tile *tiles, long long tokens, long long dk_stride, long long dv_stride, long long q_stride,          \
             long long k_stride, long long v_stride, long long g_stride, int group, int head_dim, int window,            \
             float scale, float softcap) {                                                                               \
        backward_keys<T>(dk, dv, q, k, v, g, lse, delta, tiles, tokens, dk_stride, dv_stride, q_stride, k_stride,        \
                         v_stride, g_stride, group, head_dim, Look{window, scale, softcap});                              \
    }
ATTENTION_PLAIN_KEYS(attention_plain_keys_f32, float)
ATTENTION_PLAIN_KEYS(attention_plain_keys_bf16, bf16)
