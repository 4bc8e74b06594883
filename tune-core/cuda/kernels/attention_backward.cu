// Attention's backward pass on tensor cores, in two passes without atomics: the gradient of the queries, with a tile of queries
// for each block, and those of keys and values, with a tile of keys. Both make the weights again from lse.
#include "attention_tiles.cuh"

namespace {

// The arguments of every kernel here.
struct Backward {
    bf16 *dq, *dk, *dv;
    const bf16 *q, *k, *v, *g;
    const float *lse, *delta;
    const Tile *tiles;
    long long tokens, dq_stride, dk_stride, dv_stride, q_stride, k_stride, v_stride, g_stride;
    int group, dim;
    Look look;
};

// What a score is multiplied by before the exponential, and before the cap's tanh.
struct Factors {
    bool caps;
    float score, uncapped;
    __device__ __forceinline__ explicit Factors(const Look &look)
        : caps(look.softcap > 0), score(LOG2_E * (caps ? look.softcap : look.scale)),
          uncapped(caps ? look.scale / look.softcap : 0.0f) {}
};

// The weight of a score and the gradient of the score, before the scale. `normalizer` is lse in powers of two.
__device__ __forceinline__ float2 weight_and_gradient(const Factors &f, float score, float dp, float normalizer, float delta,
                                                      bool seen) {
    float slope = 1.0f;
    if (f.caps) score = fast_tanh(score * f.uncapped), slope = 1.0f - score * score;
    const float p = seen ? fast_exp2(score * f.score - normalizer) : 0.0f;
    return make_float2(p, p * (dp - delta) * slope);
}

// M * 16 queries for each warp, KEYS keys at a time.
template <int DIM, int WARPS, int M, int KEYS> __device__ __forceinline__ void of_queries(const Backward &f) {
    constexpr int QUERIES = WARPS * 16 * M, THREADS = WARPS * 32, N = KEYS / 8, STAGE = 2 * KEYS * PITCH<DIM>;
    bf16 *queries = reinterpret_cast<bf16 *>(shared_memory()), *grads = queries + QUERIES * PITCH<DIM>;
    bf16 *stages = grads + QUERIES * PITCH<DIM>;
    const Tile tile = f.tiles[blockIdx.y];
    const int head = blockIdx.x, rows = min(QUERIES, tile.length - tile.first), end = tile.first + rows;
    const int begin = first_key(f.look, tile.first) / KEYS * KEYS;
    const bf16 *k = f.k + tile.span * f.k_stride + (long long)(head / f.group) * f.dim;
    const bf16 *v = f.v + tile.span * f.v_stride + (long long)(head / f.group) * f.dim;
    const long long token = (long long)tile.span + tile.first, column = (long long)head * f.dim;
    const auto bring_keys = [&](int start) {
        bf16 *stage = stages + (start - begin) / KEYS % 2 * STAGE;
        bring<KEYS, DIM, THREADS>(stage, k + start * f.k_stride, f.k_stride, end - start, f.dim);
        bring<KEYS, DIM, THREADS>(stage + KEYS * PITCH<DIM>, v + start * f.v_stride, f.v_stride, end - start, f.dim);
    };
    bring<QUERIES, DIM, THREADS>(queries, f.q + token * f.q_stride + column, f.q_stride, rows, f.dim);
    bring<QUERIES, DIM, THREADS>(grads, f.g + token * f.g_stride + column, f.g_stride, rows, f.dim);
    bring_keys(begin);
    copy_async_commit();

    const int row = threadIdx.x / 32 * 16 * M, lane = threadIdx.x % 32, first = tile.first + row;
    const Factors factors(f.look);
    float sums[M][DIM / 8][4], normalizer[M][2], delta[M][2];
    clear(sums);
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int mine = row + 16 * m + lane / 4 + 8 * half;
            // Rows that are not there get weights of 2^-inf.
            normalizer[m][half] = mine < rows ? LOG2_E * f.lse[head * f.tokens + token + mine] : INFINITY;
            delta[m][half] = mine < rows ? f.delta[head * f.tokens + token + mine] : 0;
        }

    for (int start = begin; start < end; start += KEYS) {
        copy_async_wait<0>();
        __syncthreads();
        if (start + KEYS < end) {
            bring_keys(start + KEYS);
            copy_async_commit();
        }
        if (start > first + 16 * M - 1) continue; // behind the diagonal
        const bf16 *keys = stages + (start - begin) / KEYS % 2 * STAGE, *values = keys + KEYS * PITCH<DIM>;
        float scores[M][N][4], dp[M][N][4];
        clear(scores);
        clear(dp);
        rows_by_rows<DIM>(scores, queries, row, keys);
        rows_by_rows<DIM>(dp, grads, row, values);
        const bool all_seen =
            start + KEYS - 1 <= first && (f.look.window == 0 || first + 16 * M - 1 - start < f.look.window);
        uint32_t ds[M][N][2];
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float of_score[2];
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        const int query = first + 16 * m + lane / 4 + 8 * half, key = start + 8 * n + lane % 4 * 2 + i;
                        of_score[i] = weight_and_gradient(factors, scores[m][n][2 * half + i], dp[m][n][2 * half + i],
                                                          normalizer[m][half], delta[m][half],
                                                          all_seen || sees(f.look, query, key))
                                          .y;
                    }
                    ds[m][n][half] = pack_bf16(of_score[0], of_score[1]);
                }
        weights_by_rows<DIM, DIM>(sums, ds, keys);
    }
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int mine = row + 16 * m + lane / 4 + 8 * half;
            if (mine < rows)
                write_row(f.dq + (token + mine) * f.dq_stride + column, sums[m], half, f.look.scale, f.dim);
        }
}

// 16 keys for each warp, QUERIES queries at a time, of all heads that share the keys. Scores are made transposed, so that
// they come as the left side of the products that make the gradients. SPLIT warps share 16 keys and have a part of the
// gradients' columns each, where all of them would not fit in registers; each makes the scores.
template <int DIM, int WARPS, int QUERIES, int SPLIT> __device__ __forceinline__ void of_keys(const Backward &f) {
    constexpr int KEYS = WARPS * 16, THREADS = SPLIT * WARPS * 32, COLS = DIM / SPLIT, N = QUERIES / 8, STAGE = 2 * QUERIES * PITCH<DIM>;
    bf16 *keys = reinterpret_cast<bf16 *>(shared_memory()), *values = keys + KEYS * PITCH<DIM>;
    bf16 *stages = values + KEYS * PITCH<DIM>;
    float *numbers = reinterpret_cast<float *>(stages + 2 * STAGE); // normalizer and delta of each query of a stage
    const Tile tile = f.tiles[blockIdx.y];
    const int kv_head = blockIdx.x, rows = min(KEYS, tile.length - tile.first);
    const long long token = (long long)tile.span + tile.first, column = (long long)kv_head * f.dim;
    const int begin = tile.first / QUERIES * QUERIES, end = end_query(f.look, tile.first + rows - 1, tile.length);
    const int steps = (end - begin + QUERIES - 1) / QUERIES, all = steps * f.group;
    const auto head_of = [&](int step) { return kv_head * f.group + step / steps; };
    const auto start_of = [&](int step) { return begin + step % steps * QUERIES; };
    const auto bring_queries = [&](int step) {
        bf16 *stage = stages + step % 2 * STAGE;
        const long long from = (long long)tile.span + start_of(step), at = (long long)head_of(step) * f.dim;
        bring<QUERIES, DIM, THREADS>(stage, f.q + from * f.q_stride + at, f.q_stride, end - start_of(step), f.dim);
        bring<QUERIES, DIM, THREADS>(stage + QUERIES * PITCH<DIM>, f.g + from * f.g_stride + at, f.g_stride,
                                     end - start_of(step), f.dim);
    };
    // Thread t < QUERIES brings the two numbers of query t. Queries that are not there give weights of 2^-inf.
    const auto numbers_of = [&](int step) {
        const int query = start_of(step) + threadIdx.x;
        if (query >= end) return make_float2(INFINITY, 0.0f);
        const long long at = head_of(step) * f.tokens + tile.span + query;
        return make_float2(LOG2_E * f.lse[at], f.delta[at]);
    };
    static_assert(QUERIES <= THREADS, "a thread for each query");
    bring<KEYS, DIM, THREADS>(keys, f.k + token * f.k_stride + column, f.k_stride, rows, f.dim);
    bring<KEYS, DIM, THREADS>(values, f.v + token * f.v_stride + column, f.v_stride, rows, f.dim);
    bring_queries(0);
    copy_async_commit();
    if (threadIdx.x < QUERIES) {
        const float2 two = numbers_of(0);
        numbers[threadIdx.x] = two.x, numbers[QUERIES + threadIdx.x] = two.y;
    }

    const int row = threadIdx.x / 32 % WARPS * 16, part = threadIdx.x / 32 / WARPS * COLS, lane = threadIdx.x % 32, first = tile.first + row;
    const Factors factors(f.look);
    float of_key[1][COLS / 8][4], of_value[1][COLS / 8][4];
    clear(of_key);
    clear(of_value);
    for (int step = 0; step < all; step++) {
        copy_async_wait<0>();
        __syncthreads();
        float2 next = make_float2(0, 0);
        if (step + 1 < all) {
            bring_queries(step + 1);
            copy_async_commit();
            if (threadIdx.x < QUERIES) next = numbers_of(step + 1);
        }
        const int start = start_of(step);
        const bf16 *queries = stages + step % 2 * STAGE, *grads = queries + QUERIES * PITCH<DIM>;
        const float *normalizer = numbers + step % 2 * 2 * QUERIES, *delta = normalizer + QUERIES;
        float scores[1][N][4], dp[1][N][4];
        clear(scores);
        clear(dp);
        rows_by_rows<DIM>(scores, keys, row, queries);
        rows_by_rows<DIM>(dp, values, row, grads);
        const bool all_seen = first + 15 <= start && (f.look.window == 0 || start + QUERIES - 1 - first < f.look.window);
        uint32_t weights[1][N][2], ds[1][N][2];
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float2 of_lse = *reinterpret_cast<const float2 *>(normalizer + 8 * n + lane % 4 * 2);
            const float2 of_delta = *reinterpret_cast<const float2 *>(delta + 8 * n + lane % 4 * 2);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int key = first + lane / 4 + 8 * half, query = start + 8 * n + lane % 4 * 2;
                const float2 a = weight_and_gradient(factors, scores[0][n][2 * half], dp[0][n][2 * half], of_lse.x, of_delta.x,
                                                     all_seen || sees(f.look, query, key));
                const float2 b = weight_and_gradient(factors, scores[0][n][2 * half + 1], dp[0][n][2 * half + 1], of_lse.y,
                                                     of_delta.y, all_seen || sees(f.look, query + 1, key));
                weights[0][n][half] = pack_bf16(a.x, b.x);
                ds[0][n][half] = pack_bf16(a.y, b.y);
            }
        }
        weights_by_rows<DIM, COLS>(of_value, weights, grads + part);
        weights_by_rows<DIM, COLS>(of_key, ds, queries + part);
        if (step + 1 < all && threadIdx.x < QUERIES) {
            float *to = numbers + (step + 1) % 2 * 2 * QUERIES;
            to[threadIdx.x] = next.x, to[QUERIES + threadIdx.x] = next.y;
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int mine = row + lane / 4 + 8 * half;
        if (mine >= rows) continue;
        write_row(f.dk + (token + mine) * f.dk_stride + column + part, of_key[0], half, f.look.scale, f.dim - part);
        write_row(f.dv + (token + mine) * f.dv_stride + column + part, of_value[0], half, 1.0f, f.dim - part);
    }
}

} // namespace

// As attention_plain_queries, for bf16 and head_dim a multiple of 8, at most the number in the name.
// tiles: of QUERIES = WARPS * 16 * M positions, by `first`, largest first. launch: grid (heads, tiles), block (WARPS * 32),
//   dynamic shared bytes 4 * (QUERIES + 2 * KEYS) * (D + 8). alignment: 16 bytes for q, k, v, g and their strides, 4 for dq.
#define ATTENTION_QUERIES(NAME, D, WARPS, M, KEYS)                                                                        \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                                                              \
        NAME(bf16 *dq, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g, const float *lse, const float *delta, \
             const Tile *tiles, long long tokens, long long dq_stride, long long q_stride, long long k_stride,           \
             long long v_stride, long long g_stride, int group, int head_dim, int window, float scale, float softcap) {  \
        of_queries<D, WARPS, M, KEYS>(Backward{dq, nullptr, nullptr, q, k, v, g, lse, delta, tiles, tokens, dq_stride,   \
                                               0, 0, q_stride, k_stride, v_stride, g_stride, group, head_dim,            \
                                               Look{window, scale, softcap}});                                           \
    }
// QUERIES = 128, KEYS = 32; block 128; 55,296 bytes.
ATTENTION_QUERIES(attention_queries_bf16_d64, 64, 4, 2, 32)
// QUERIES = 128, KEYS = 32; block 128; 79,872 bytes.
ATTENTION_QUERIES(attention_queries_bf16_d96, 96, 4, 2, 32)
// QUERIES = 64, KEYS = 32; block 128; 69,632 bytes.
ATTENTION_QUERIES(attention_queries_bf16_d128, 128, 4, 1, 32)
// QUERIES = 64, KEYS = 16; block 128; 101,376 bytes.
ATTENTION_QUERIES(attention_queries_bf16_d256, 256, 4, 1, 16)

// As attention_plain_keys, for bf16 and head_dim a multiple of 8, at most the number in the name.
// tiles: of KEYS = WARPS * 16 positions, by `first`, smallest first. launch: grid (kv_heads, tiles), block (SPLIT * WARPS * 32), dynamic
//   shared bytes 4 * (KEYS + 2 * QUERIES) * (D + 8) + 16 * QUERIES. alignment: 16 bytes for q, k, v, g, their strides; 4 for dk, dv.
#define ATTENTION_KEYS(NAME, D, WARPS, QUERIES, SPLIT)                                                                    \
    extern "C" __global__ void __launch_bounds__(SPLIT * WARPS * 32)                                                      \
        NAME(bf16 *dk, bf16 *dv, const bf16 *q, const bf16 *k, const bf16 *v, const bf16 *g, const float *lse,           \
             const float *delta, const Tile *tiles, long long tokens, long long dk_stride, long long dv_stride,          \
             long long q_stride, long long k_stride, long long v_stride, long long g_stride, int group, int head_dim,    \
             int window, float scale, float softcap) {                                                                   \
        of_keys<D, WARPS, QUERIES, SPLIT>(Backward{nullptr, dk, dv, q, k, v, g, lse, delta, tiles, tokens, 0, dk_stride,        \
                                            dv_stride, q_stride, k_stride, v_stride, g_stride, group, head_dim,          \
                                            Look{window, scale, softcap}});                                              \
    }
// KEYS = 64, QUERIES = 64; block 128; 56,320 bytes.
ATTENTION_KEYS(attention_keys_bf16_d64, 64, 4, 64, 1)
// KEYS = 64, QUERIES = 32; block 128; 53,760 bytes.
ATTENTION_KEYS(attention_keys_bf16_d96, 96, 4, 32, 1)
// KEYS = 64, QUERIES = 32; block 128; 70,144 bytes.
ATTENTION_KEYS(attention_keys_bf16_d128, 128, 4, 32, 1)
// KEYS = 48, QUERIES = 16; block 192; 84,736 bytes.
ATTENTION_KEYS(attention_keys_bf16_d256, 256, 3, 16, 2)
