// Attention's forward pass with the products of warpgroups (as in FlashAttention-3, Shah et al. 2024,
// https://arxiv.org/abs/2407.08608): two warpgroups have 64 queries each, and a third brings keys and values. While a warpgroup
// makes the sum of one tile of values, it makes the softmax of the next tile's scores; and the two take turns at products, so
// that one's softmax runs beside the other's products.
#include "attention_panels.cuh"
#include "attention_rows.cuh"

namespace {

constexpr int QUERIES = 128, CONSUMERS = 256;

struct Forward {
    bf16 *out;
    float *lse;
    const bf16 *q, *k, *v;
    const Tile *tiles;
    long long tokens, out_stride, q_stride, k_stride, v_stride;
    int group, dim;
    Look look;
};

// Two places for tiles, filled and emptied in turn: a barrier for each place that is full, and for each that is free.
struct Ring {
    uint64_t full[2], free[2];

    __device__ __forceinline__ void init(uint32_t producers, uint32_t consumers) {
        for (int i = 0; i < 2; i++) barrier_init(&full[i], producers), barrier_init(&free[i], consumers);
    }
    __device__ __forceinline__ void wait_full(int step) { barrier_wait(&full[step % 2], step / 2 % 2); }
    __device__ __forceinline__ void wait_free(int step) { barrier_wait(&free[step % 2], (step / 2 + 1) % 2); }
};

// What 64 threads do: they bring all tiles of keys, or of values.
template <int DIM, int KEYS>
__device__ __forceinline__ void produce(Ring &ring, unsigned char *places, const bf16 *from, long long stride, int rows, int dim,
                                        int steps) {
    const int thread = threadIdx.x % 64;
    for (int step = 0; step < steps; step++) {
        ring.wait_free(step);
        bring_panels<KEYS, DIM, 64>(places + step % 2 * 2 * KEYS * DIM, from, stride, rows - step * KEYS, dim, thread);
        from += KEYS * stride;
        copy_async_commit();
        copy_async_wait<0>();
        show_to_products();
        barrier_arrive(&ring.full[step % 2]);
    }
}

template <int DIM, int KEYS> __device__ __forceinline__ void forward(const Forward &f) {
    constexpr int BYTES = 2 * KEYS * DIM;
    unsigned char *queries = shared_memory(), *keys = queries + 2 * QUERIES * DIM, *values = keys + 2 * BYTES;
    Ring *rings = reinterpret_cast<Ring *>(values + 2 * BYTES); // of keys and of values
    const Tile tile = f.tiles[blockIdx.y];
    const int head = blockIdx.x, rows = min(QUERIES, tile.length - tile.first), end = tile.first + rows;
    const int begin = first_key(f.look, tile.first) / KEYS * KEYS, steps = (end - begin + KEYS - 1) / KEYS;
    if (threadIdx.x < 2) rings[threadIdx.x].init(64, CONSUMERS / 32);
    __syncthreads();

    if (threadIdx.x >= CONSUMERS) {
        fewer_registers<40>();
        const bool of_values = threadIdx.x >= CONSUMERS + 64;
        const long long stride = of_values ? f.v_stride : f.k_stride;
        const bf16 *from = (of_values ? f.v : f.k) + (tile.span + tile.keys + begin) * stride + (long long)(head / f.group) * f.dim;
        produce<DIM, KEYS>(rings[of_values], of_values ? values : keys, from, stride, end - begin, f.dim, steps);
        return;
    }
    more_registers<232>();
    const int row = threadIdx.x / 128 * 64, lane = threadIdx.x % 32;
    // The warpgroup's queries are its own: no other reads them.
    const int my_turn = 1 + threadIdx.x / 128, next_turn = 3 - my_turn;
    bring_panels<QUERIES, DIM, CONSUMERS>(queries, f.q + (tile.span + tile.first) * f.q_stride + (long long)head * f.dim,
                                          f.q_stride, rows, f.dim, threadIdx.x);
    copy_async_commit();
    copy_async_wait<0>();
    show_to_products();
    numbered_barrier_wait(3, CONSUMERS);
    if (my_turn == 2) numbered_barrier_arrive(1, CONSUMERS);

    const int first = tile.first + row;                            // the warpgroup's first query
    const int mine = row + threadIdx.x % 128 / 32 * 16 + lane / 4; // the thread's first row
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

    rings[0].wait_full(0);
    numbered_barrier_wait(my_turn, CONSUMERS);
    warpgroup_fence();
    rows_by_rows<DIM, KEYS, QUERIES, KEYS>(scores, queries, row, keys);
    warpgroup_commit();
    numbered_barrier_arrive(next_turn, CONSUMERS);
    warpgroup_wait<0>();
    barrier_arrive(&rings[0].free[0], lane == 0);
    soften(0);
    pack(weights, scores);

    // No branches between a product and the wait for it: they would make the compiler wait at once.
    for (int step = 0; step + 1 < steps; step++) {
        rings[0].wait_full(step + 1);
        rings[1].wait_full(step);
        numbered_barrier_wait(my_turn, CONSUMERS);
        warpgroup_fence();
        rows_by_rows<DIM, KEYS, QUERIES, KEYS>(scores, queries, row, keys + (step + 1) % 2 * BYTES);
        warpgroup_commit();
        weights_by_rows<DIM, KEYS>(sums, weights, values + step % 2 * BYTES);
        warpgroup_commit();
        numbered_barrier_arrive(next_turn, CONSUMERS);
        warpgroup_wait<1>();
        barrier_arrive(&rings[0].free[(step + 1) % 2], lane == 0);
        soften(step + 1);
        warpgroup_wait<0>();
        barrier_arrive(&rings[1].free[step % 2], lane == 0);
#pragma unroll
        for (int n = 0; n < DIM / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] *= keep[i / 2];
        pack(weights, scores);
    }
    rings[1].wait_full(steps - 1);
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
// tiles: of 128 positions. launch: grid (heads, tiles), block (384), dynamic shared bytes 2 * (128 + 4 * KEYS) * D + 128.
//   alignment: 16 bytes for q, k, v and their strides, 4 bytes for out and its stride.
#define ATTENTION_FORWARD(NAME, D, KEYS)                                                                                  \
    extern "C" __global__ void __launch_bounds__(384, 1)                                                                  \
        NAME(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const Tile *tiles, long long tokens,    \
             long long out_stride, long long q_stride, long long k_stride, long long v_stride, int group, int head_dim,  \
             int window, float scale, float softcap) {                                                                   \
        forward<D, KEYS>(Forward{out, lse, q, k, v, tiles, tokens, out_stride, q_stride, k_stride, v_stride, group,      \
                                 head_dim, Look{window, scale, softcap}});                                               \
    }
// KEYS = 128; 82,048 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d64_sm90a, 64, 128)
// KEYS = 128; 163,968 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d128_sm90a, 128, 128)
