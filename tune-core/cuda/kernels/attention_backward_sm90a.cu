// Attention's backward pass with the products of warpgroups, in two passes without atomics: the gradient of the queries, with
// 64 queries for each of two warpgroups, and those of keys and values, with 64 keys. Both make the weights again from lse.
#include "attention_panels.cuh"
#include "attention_rows.cuh"

namespace {

constexpr int MINE = 128, THREADS = 256;

// The arguments of every kernel here.
struct Backward {
    bf16 *dq;
    const bf16 *q, *k, *v, *g;
    const float *lse, *delta;
    const Tile *tiles;
    long long tokens, dq_stride, dk_stride, dv_stride, q_stride, k_stride, v_stride, g_stride;
    int group, dim;
    Look look;
};

template <int N> __device__ __forceinline__ void clear(float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[n][i] = 0;
}

template <int DIM, int KEYS> __device__ __forceinline__ void of_queries(const Backward &f) {
    constexpr int BYTES = 2 * KEYS * DIM;
    unsigned char *queries = shared_memory(), *grads = queries + 2 * MINE * DIM, *stages = grads + 2 * MINE * DIM;
    const Tile tile = f.tiles[blockIdx.y];
    const int head = blockIdx.x, rows = min(MINE, tile.length - tile.first), end = tile.first + rows;
    const int begin = first_key(f.look, tile.first) / KEYS * KEYS, steps = (end - begin + KEYS - 1) / KEYS;
    const bf16 *k = f.k + (tile.span + begin) * f.k_stride + (long long)(head / f.group) * f.dim;
    const bf16 *v = f.v + (tile.span + begin) * f.v_stride + (long long)(head / f.group) * f.dim;
    const long long token = (long long)tile.span + tile.first, column = (long long)head * f.dim;
    const auto bring_keys = [&](int step) {
        unsigned char *stage = stages + step % 2 * 2 * BYTES;
        const int there = end - begin - step * KEYS;
        bring_panels<KEYS, DIM, THREADS>(stage, k + (long long)step * KEYS * f.k_stride, f.k_stride, there, f.dim, threadIdx.x);
        bring_panels<KEYS, DIM, THREADS>(stage + BYTES, v + (long long)step * KEYS * f.v_stride, f.v_stride, there, f.dim, threadIdx.x);
        copy_async_commit();
    };
    bring_panels<MINE, DIM, THREADS>(queries, f.q + token * f.q_stride + column, f.q_stride, rows, f.dim, threadIdx.x);
    bring_panels<MINE, DIM, THREADS>(grads, f.g + token * f.g_stride + column, f.g_stride, rows, f.dim, threadIdx.x);
    bring_keys(0);

    const int row = threadIdx.x / 128 * 64, lane = threadIdx.x % 32;
    const int first = tile.first + row;                            // the warpgroup's first query
    const int mine = row + threadIdx.x % 128 / 32 * 16 + lane / 4; // the thread's first row
    const float factor = LOG2_E * f.look.scale;
    float sums[DIM / 8][4], normalizer[2], delta[2];
    clear(sums);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        // Rows that are not there get weights of 2^-inf.
        const bool there = mine + 8 * half < rows;
        normalizer[half] = there ? LOG2_E * f.lse[head * f.tokens + token + mine + 8 * half] : INFINITY;
        delta[half] = there ? f.delta[head * f.tokens + token + mine + 8 * half] : 0;
    }
    for (int step = 0; step < steps; step++) {
        copy_async_wait<0>();
        show_to_products();
        __syncthreads();
        if (step + 1 < steps) bring_keys(step + 1);
        const int start = begin + step * KEYS;
        if (start > first + 63) continue; // behind the diagonal
        const unsigned char *keys = stages + step % 2 * 2 * BYTES, *values = keys + BYTES;
        float scores[KEYS / 8][4], dp[KEYS / 8][4];
        warpgroup_fence();
        rows_by_rows<DIM, KEYS, MINE, KEYS>(scores, queries, row, keys);
        warpgroup_commit();
        rows_by_rows<DIM, KEYS, MINE, KEYS>(dp, grads, row, values);
        warpgroup_commit();
        warpgroup_wait<1>();
        if (start + KEYS - 1 > first || (f.look.window != 0 && first + 63 - start >= f.look.window))
            hide(scores, f.look, tile.first + mine, start + lane % 4 * 2);
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] = fast_exp2(scores[n][i] * factor - normalizer[i / 2]);
        warpgroup_wait<0>();
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) scores[n][i] *= dp[n][i] - delta[i / 2];
        uint32_t ds[KEYS / 16][4];
        pack(ds, scores);
        warpgroup_fence();
        weights_by_rows<DIM, KEYS>(sums, ds, keys);
        warpgroup_commit();
        warpgroup_wait<0>();
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
        if (mine + 8 * half < rows)
            write_row(f.dq + (token + mine + 8 * half) * f.dq_stride + column, sums, half, f.look.scale, f.dim);
}

// Scores are made transposed, so that they come as the left side of the products that make the gradients. A head of keys may be
// `parts` of them, of which each has some of its query heads and gradients of its own, to be summed: f.group is that of a part.
template <int DIM, int QUERIES, typename Out>
__device__ __forceinline__ void of_keys(const Backward &f, Out *dk, Out *dv, int parts) {
    constexpr int BYTES = 2 * QUERIES * DIM;
    unsigned char *keys = shared_memory(), *values = keys + 2 * MINE * DIM, *stages = values + 2 * MINE * DIM;
    float *numbers = reinterpret_cast<float *>(stages + 4 * BYTES); // normalizer and delta of each query of a stage
    const Tile tile = f.tiles[blockIdx.y];
    const int kv_head = blockIdx.x, rows = min(MINE, tile.length - tile.first);
    const long long token = (long long)tile.span + tile.first, column = (long long)(kv_head / parts) * f.dim;
    const int begin = tile.first, end = end_query(f.look, tile.first + rows - 1, tile.length);
    const int steps = (end - begin + QUERIES - 1) / QUERIES, all = steps * f.group;
    // The step that is brought next: its number, head and first query.
    int coming = 0, head = kv_head * f.group, query = begin;
    const auto bring_queries = [&] {
        unsigned char *stage = stages + coming % 2 * 2 * BYTES;
        const long long from = (long long)tile.span + query, at = (long long)head * f.dim;
        bring_panels<QUERIES, DIM, THREADS>(stage, f.q + from * f.q_stride + at, f.q_stride, end - query, f.dim, threadIdx.x);
        bring_panels<QUERIES, DIM, THREADS>(stage + BYTES, f.g + from * f.g_stride + at, f.g_stride, end - query, f.dim, threadIdx.x);
        copy_async_commit();
    };
    // Thread t < QUERIES brings the two numbers of query t. Queries that are not there give weights of 2^-inf.
    const auto numbers_of_query = [&] {
        const int mine = query + int(threadIdx.x);
        if (threadIdx.x >= QUERIES || mine >= end) return make_float2(INFINITY, 0.0f);
        const long long at = head * f.tokens + tile.span + mine;
        return make_float2(LOG2_E * f.lse[at], f.delta[at]);
    };
    const auto keep_numbers = [&](int step, float2 two) {
        if (threadIdx.x >= QUERIES) return;
        float *to = numbers + step % 2 * 2 * QUERIES + threadIdx.x;
        to[0] = two.x, to[QUERIES] = two.y;
    };
    const auto advance = [&] {
        coming++, query += QUERIES;
        if (query >= end) head++, query = begin;
    };
    bring_panels<MINE, DIM, THREADS>(keys, f.k + token * f.k_stride + column, f.k_stride, rows, f.dim, threadIdx.x);
    bring_panels<MINE, DIM, THREADS>(values, f.v + token * f.v_stride + column, f.v_stride, rows, f.dim, threadIdx.x);
    bring_queries();
    keep_numbers(0, numbers_of_query());
    advance();

    const int row = threadIdx.x / 128 * 64, lane = threadIdx.x % 32;
    const int first = tile.first + row;                            // the warpgroup's first key
    const int mine = row + threadIdx.x % 128 / 32 * 16 + lane / 4; // the thread's first row
    const float factor = LOG2_E * f.look.scale;
    float of_key[DIM / 8][4], of_value[DIM / 8][4];
    clear(of_key);
    clear(of_value);
    for (int step = 0, start = begin; step < all; step++) {
        copy_async_wait<0>();
        show_to_products();
        __syncthreads();
        float2 next = make_float2(0, 0);
        if (step + 1 < all) {
            bring_queries();
            next = numbers_of_query();
            advance();
        }
        if (start + QUERIES > first) { // else before the diagonal
            const unsigned char *queries = stages + step % 2 * 2 * BYTES, *grads = queries + BYTES;
            const float *normalizer = numbers + step % 2 * 2 * QUERIES + lane % 4 * 2, *delta = normalizer + QUERIES;
            float scores[QUERIES / 8][4], dp[QUERIES / 8][4];
            warpgroup_fence();
            rows_by_rows<DIM, QUERIES, MINE, QUERIES>(scores, keys, row, queries);
            warpgroup_commit();
            rows_by_rows<DIM, QUERIES, MINE, QUERIES>(dp, values, row, grads);
            warpgroup_commit();
            warpgroup_wait<1>();
            const bool all_seen = first + 63 <= start && (f.look.window == 0 || start + QUERIES - 1 - first < f.look.window);
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
                const float2 of_lse = *reinterpret_cast<const float2 *>(normalizer + 8 * n);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float p = fast_exp2(scores[n][i] * factor - (i % 2 ? of_lse.y : of_lse.x));
                    const bool seen = all_seen || sees(f.look, start + lane % 4 * 2 + 8 * n + i % 2, tile.first + mine + i / 2 * 8);
                    scores[n][i] = seen ? p : 0.0f;
                }
            }
            uint32_t weights[QUERIES / 16][4], ds[QUERIES / 16][4];
            pack(weights, scores);
            warpgroup_fence();
            weights_by_rows<DIM, QUERIES>(of_value, weights, grads);
            warpgroup_commit();
            warpgroup_wait<1>();
#pragma unroll
            for (int n = 0; n < QUERIES / 8; n++) {
                const float2 of_delta = *reinterpret_cast<const float2 *>(delta + 8 * n);
#pragma unroll
                for (int i = 0; i < 4; i++) scores[n][i] *= dp[n][i] - (i % 2 ? of_delta.y : of_delta.x);
            }
            pack(ds, scores);
            warpgroup_fence();
            weights_by_rows<DIM, QUERIES>(of_key, ds, queries);
            warpgroup_commit();
            warpgroup_wait<0>();
        }
        if (step + 1 < all) keep_numbers(step + 1, next);
        start += QUERIES;
        if (start >= end) start = begin;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (mine + 8 * half >= rows) continue;
        const long long to = (long long)kv_head * f.dim;
        write_row(dk + (token + mine + 8 * half) * f.dk_stride + to, of_key, half, f.look.scale, f.dim);
        write_row(dv + (token + mine + 8 * half) * f.dv_stride + to, of_value, half, 1.0f, f.dim);
    }
}

} // namespace

// The twin of attention_queries_bf16_dN for sm_90a, with the same arguments; but only for softcap = 0.
// tiles: of 128 positions, by `first`, largest first. launch: grid (heads, tiles), block (256), dynamic shared bytes
//   4 * (128 + 2 * KEYS) * D. alignment: 16 bytes for q, k, v, g and their strides, 4 for dq.
#define ATTENTION_QUERIES(NAME, D, KEYS)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                                  \
        NAME(bf16 *dq, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g, const float *lse, const float *delta, \
             const Tile *tiles, long long tokens, long long dq_stride, long long q_stride, long long k_stride,           \
             long long v_stride, long long g_stride, int group, int head_dim, int window, float scale, float softcap) {  \
        of_queries<D, KEYS>(Backward{dq, q, k, v, g, lse, delta, tiles, tokens, dq_stride, 0, 0,       \
                                     q_stride, k_stride, v_stride, g_stride, group, head_dim,                            \
                                     Look{window, scale, softcap}});                                                     \
    }
// KEYS = 128; 98,304 bytes.
ATTENTION_QUERIES(attention_queries_bf16_d64_sm90a, 64, 128)
// KEYS = 64; 131,072 bytes.
ATTENTION_QUERIES(attention_queries_bf16_d128_sm90a, 128, 64)

// The twin of attention_keys_bf16_dN for sm_90a, with the same arguments; but only for softcap = 0.
// tiles: of 128 positions, by `first`, smallest first. launch: grid (kv_heads, tiles), block (256), dynamic shared bytes
//   4 * (128 + 2 * QUERIES) * D + 16 * QUERIES. alignment: 16 bytes for q, k, v, g and their strides; 4 for dk and dv.
#define ATTENTION_KEYS(NAME, D, QUERIES)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                                  \
        NAME(bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g, const float *lse,           \
             const float *delta, const Tile *tiles, long long tokens, long long dk_stride, long long dv_stride,          \
             long long q_stride, long long k_stride, long long v_stride, long long g_stride, int group, int head_dim,    \
             int window, float scale, float softcap) {                                                                   \
        of_keys<D, QUERIES>(Backward{nullptr, q, k, v, g, lse, delta, tiles, tokens, 0, dk_stride, dv_stride, q_stride,  \
                                     k_stride, v_stride, g_stride, group, head_dim, Look{window, scale, softcap}},       \
                            dk, dv, 1);                                                                                   \
    }
// QUERIES = 128; 100,352 bytes.
ATTENTION_KEYS(attention_keys_bf16_d64_sm90a, 64, 128)
// QUERIES = 64; 132,096 bytes.
ATTENTION_KEYS(attention_keys_bf16_d128_sm90a, 128, 64)

// The same in parts, where heads of keys are few: dk and dv are [tokens, kv_heads, parts, head_dim] in f32, and group are the query heads of
// a part. To be summed by attention_join_keys_sm90a. launch: grid (kv_heads * parts, tiles), else as above.
#define ATTENTION_KEYS_IN_PARTS(NAME, D, QUERIES)                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                                  \
        NAME(float *dk, float *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g, const float *lse,         \
             const float *delta, const Tile *tiles, long long tokens, long long dk_stride, long long dv_stride,          \
             long long q_stride, long long k_stride, long long v_stride, long long g_stride, int group, int head_dim,    \
             int window, float scale, float softcap, int parts) {                                                        \
        of_keys<D, QUERIES>(Backward{nullptr, q, k, v, g, lse, delta, tiles, tokens, 0, dk_stride, dv_stride, q_stride,  \
                                     k_stride, v_stride, g_stride, group, head_dim, Look{window, scale, softcap}},       \
                            dk, dv, parts);                                                                               \
    }
ATTENTION_KEYS_IN_PARTS(attention_keys_in_parts_d64_sm90a, 64, 128)
ATTENTION_KEYS_IN_PARTS(attention_keys_in_parts_d128_sm90a, 128, 64)

// y[token, kv_head] = the sum of x[token, kv_head, part] over its parts, in their order; head_dim is a multiple of 8.
// launch: grid (ceil(tokens * kv_heads * head_dim / 8 / 256)), block (256). alignment: 16 bytes for both and the stride.
extern "C" __global__ void __launch_bounds__(256)
    attention_join_keys_sm90a(bf16 *y, const float *x, long long tokens, long long stride, int kv_heads, int parts, int head_dim) {
    const long long each = (long long)kv_heads * head_dim / 8, at = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= tokens * each) return;
    const long long token = at / each;
    const int col = int(at - token * each) * 8, head = col / head_dim, i = col - head * head_dim;
    const float *from = x + ((token * kv_heads + head) * parts) * head_dim + i;
    float sum[8], a[8];
    load(from, sum);
    for (int part = 1; part < parts; part++) {
        load(from + (long long)part * head_dim, a);
#pragma unroll
        for (int j = 0; j < 8; j++) sum[j] += a[j];
    }
    store(y + token * stride + col, sum);
}
