// Attention's forward pass with the products of warpgroups: two of them have 64 queries each, and while the sum of one tile of
// values is made, the softmax of the next tile's scores is (as in FlashAttention-3, Shah et al. 2024,
// https://arxiv.org/abs/2407.08608).
#include "attention_panels.cuh"
#include "attention_rows.cuh"

namespace {

constexpr int QUERIES = 128, THREADS = 256;

struct Forward {
    bf16 *out;
    float *lse;
    const bf16 *q, *k, *v;
    const Tile *tiles;
    long long tokens, out_stride, q_stride, k_stride, v_stride;
    int group, dim;
    Look look;
};

template <int DIM, int KEYS> __device__ __forceinline__ void forward(const Forward &f) {
    constexpr int BYTES = 2 * KEYS * DIM;
    unsigned char *queries = shared_memory(), *keys = queries + 2 * QUERIES * DIM, *values = keys + 2 * BYTES;
    const Tile tile = f.tiles[blockIdx.y];
    const int head = blockIdx.x, rows = min(QUERIES, tile.length - tile.first), end = tile.first + rows;
    const int begin = first_key(f.look, tile.first) / KEYS * KEYS, steps = (end - begin + KEYS - 1) / KEYS;
    const bf16 *k = f.k + (tile.span + begin) * f.k_stride + (long long)(head / f.group) * f.dim;
    const bf16 *v = f.v + (tile.span + begin) * f.v_stride + (long long)(head / f.group) * f.dim;
    const auto bring_keys = [&](int step) {
        bring_panels<KEYS, DIM, THREADS>(keys + step % 2 * BYTES, k + (long long)step * KEYS * f.k_stride, f.k_stride,
                                         end - begin - step * KEYS, f.dim);
    };
    const auto bring_values = [&](int step) {
        bring_panels<KEYS, DIM, THREADS>(values + step % 2 * BYTES, v + (long long)step * KEYS * f.v_stride, f.v_stride,
                                         end - begin - step * KEYS, f.dim);
    };
    bring_panels<QUERIES, DIM, THREADS>(queries, f.q + (tile.span + tile.first) * f.q_stride + (long long)head * f.dim, f.q_stride,
                                        rows, f.dim);
    bring_keys(0);
    copy_async_commit();
    bring_values(0);
    if (steps > 1) bring_keys(1);
    copy_async_commit();

    const int row = threadIdx.x / 128 * 64, lane = threadIdx.x % 32;
    const int first = tile.first + row;                             // the warpgroup's first query
    const int mine = row + threadIdx.x % 128 / 32 * 16 + lane / 4;  // the thread's first row
    const bool caps = f.look.softcap > 0;
    const float factor = LOG2_E * (caps ? f.look.softcap : f.look.scale), uncapped = caps ? f.look.scale / f.look.softcap : 0.0f;
    float sums[DIM / 8][4], scores[KEYS / 8][4], keep[2], most[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
    uint32_t weights[KEYS / 16][4];
    const auto soften = [&](int step) {
        const int start = begin + step * KEYS;
        if (caps) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) scores[n][i] = fast_tanh(scores[n][i] * uncapped);
        }
        if (start + KEYS - 1 > first || (f.look.window != 0 && first + 63 - start >= f.look.window))
            hide(scores, f.look, tile.first + mine, start + lane % 4 * 2);
        online_softmax(scores, keep, most, total, factor);
    };
#pragma unroll
    for (int n = 0; n < DIM / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0;

    copy_async_wait<1>();
    show_to_products();
    __syncthreads();
    warpgroup_fence();
    rows_by_rows<DIM, KEYS, QUERIES, KEYS>(scores, queries, row, keys);
    warpgroup_commit();
    warpgroup_wait<0>();
    soften(0);
    pack(weights, scores);

    // No branches between a product and the wait for it: they would make the compiler wait at once.
    for (int step = 0; step + 1 < steps; step++) {
        // Here are the values of this step and the keys of the next; nobody reads those before them any more.
        copy_async_wait<0>();
        show_to_products();
        __syncthreads();
        if (step + 2 < steps) bring_keys(step + 2);
        bring_values(step + 1);
        copy_async_commit();
        warpgroup_fence();
        rows_by_rows<DIM, KEYS, QUERIES, KEYS>(scores, queries, row, keys + (step + 1) % 2 * BYTES);
        warpgroup_commit();
        weights_by_rows<DIM, KEYS>(sums, weights, values + step % 2 * BYTES);
        warpgroup_commit();
        warpgroup_wait<1>();
        soften(step + 1);
        warpgroup_wait<0>();
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] *= keep[i / 2];
        pack(weights, scores);
    }
    copy_async_wait<0>();
    show_to_products();
    __syncthreads();
    warpgroup_fence();
    weights_by_rows<DIM, KEYS>(sums, weights, values + (steps - 1) % 2 * BYTES);
    warpgroup_commit();
    warpgroup_wait<0>();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float all = total[half];
        all += __shfl_xor_sync(ALL_LANES, all, 1);
        all += __shfl_xor_sync(ALL_LANES, all, 2);
        if (mine + 8 * half >= rows) continue;
        const long long token = (long long)tile.span + tile.first + mine + 8 * half;
        write_row(f.out + token * f.out_stride + (long long)head * f.dim, sums, half, 1.0f / all, f.dim);
        if (lane % 4 == 0) f.lse[head * f.tokens + token] = (most[half] * factor + log2f(all)) / LOG2_E;
    }
}

} // namespace

// The twin of attention_forward_bf16_dN for sm_90a, with the same arguments.
// tiles: of 128 positions. launch: grid (heads, tiles), block (256), dynamic shared bytes 2 * (128 + 4 * KEYS) * D.
//   alignment: 16 bytes for q, k, v and their strides, 4 bytes for out and its stride.
#define ATTENTION_FORWARD(NAME, D, KEYS)                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, 1)                                                                  \
        NAME(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const Tile *tiles, long long tokens,    \
             long long out_stride, long long q_stride, long long k_stride, long long v_stride, int group, int head_dim,  \
             int window, float scale, float softcap) {                                                                   \
        forward<D, KEYS>(Forward{out, lse, q, k, v, tiles, tokens, out_stride, q_stride, k_stride, v_stride, group,      \
                                 head_dim, Look{window, scale, softcap}});                                               \
    }
// KEYS = 128; 81,920 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d64_sm90a, 64, 128)
// KEYS = 128; 163,840 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d128_sm90a, 128, 128)
