// Attention's forward pass on tensor cores: a block has a tile of queries, and keys and values pass by in two stages.
#include "attention_tiles.cuh"

namespace {

constexpr int WARPS = 4;

// The arguments of every kernel here.
struct Forward {
    bf16 *out;
    float *lse;
    const bf16 *q, *k, *v;
    const Tile *tiles;
    long long tokens, out_stride, q_stride, k_stride, v_stride;
    int group, dim;
    Look look;
};

// M * 16 queries for each warp, KEYS keys at a time.
template <int DIM, int M, int KEYS> __device__ __forceinline__ void forward(const Forward &f) {
    constexpr int QUERIES = WARPS * 16 * M, THREADS = WARPS * 32, N = KEYS / 8;
    bf16 *queries = reinterpret_cast<bf16 *>(shared_memory());
    bf16 *stages = queries + QUERIES * PITCH<DIM>;
    constexpr int STAGE = 2 * KEYS * PITCH<DIM>;
    const Tile tile = f.tiles[blockIdx.y];
    const int head = blockIdx.x, rows = min(QUERIES, tile.length - tile.first), end = tile.first + rows;
    const int begin = first_key(f.look, tile.first) / KEYS * KEYS;
    const bf16 *k = f.k + (tile.span + tile.keys) * f.k_stride + (long long)(head / f.group) * f.dim;
    const bf16 *v = f.v + (tile.span + tile.keys) * f.v_stride + (long long)(head / f.group) * f.dim;
    const auto bring_keys = [&](int start) {
        bf16 *stage = stages + (start - begin) / KEYS % 2 * STAGE;
        bring<KEYS, DIM, THREADS>(stage, k + start * f.k_stride, f.k_stride, end - start, f.dim);
        bring<KEYS, DIM, THREADS>(stage + KEYS * PITCH<DIM>, v + start * f.v_stride, f.v_stride, end - start, f.dim);
    };
    bring<QUERIES, DIM, THREADS>(queries, f.q + (tile.span + tile.first) * f.q_stride + (long long)head * f.dim, f.q_stride, rows,
                                 f.dim);
    bring_keys(begin);
    copy_async_commit();

    const int row = threadIdx.x / 32 * 16 * M, lane = threadIdx.x % 32;
    const int first = tile.first + row; // the warp's first query
    const bool caps = f.look.softcap > 0;
    const float factor = LOG2_E * (caps ? f.look.softcap : f.look.scale), uncapped = caps ? f.look.scale / f.look.softcap : 0.0f;
    float sums[M][DIM / 8][4], most[M][2], total[M][2];
    clear(sums);
#pragma unroll
    for (int m = 0; m < M; m++) most[m][0] = most[m][1] = -INFINITY, total[m][0] = total[m][1] = 0;

    for (int start = begin; start < end; start += KEYS) {
        copy_async_wait<0>();
        __syncthreads();
        if (start + KEYS < end) {
            bring_keys(start + KEYS);
            copy_async_commit();
        }
        if (start > first + 16 * M - 1) continue; // behind the diagonal
        const bf16 *keys = stages + (start - begin) / KEYS % 2 * STAGE;
        float scores[M][N][4];
        clear(scores);
        rows_by_rows<DIM>(scores, queries, row, keys);
        if (caps) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) scores[m][n][i] = fast_tanh(scores[m][n][i] * uncapped);
        }
        const bool all_seen = start + KEYS - 1 <= first &&
                              (f.look.window == 0 || first + 16 * M - 1 - start < f.look.window);
        uint32_t weights[M][N][2];
#pragma unroll
        for (int m = 0; m < M; m++) {
            float keep[2];
            if (!all_seen) hide(scores[m], f.look, first + 16 * m + lane / 4, start + lane % 4 * 2);
            online_softmax(scores[m], keep, most[m], total[m], factor);
            pack(weights[m], scores[m]);
#pragma unroll
            for (int n = 0; n < DIM / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) sums[m][n][i] *= keep[i / 2];
        }
        weights_by_rows<DIM, DIM>(sums, weights, keys + KEYS * PITCH<DIM>);
    }

#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float all = total[m][half];
            all += __shfl_xor_sync(ALL_LANES, all, 1);
            all += __shfl_xor_sync(ALL_LANES, all, 2);
            const int mine = row + 16 * m + lane / 4 + 8 * half;
            if (mine >= rows) continue;
            const long long token = (long long)tile.span + tile.first + mine;
            write_row(f.out + token * f.out_stride + (long long)head * f.dim, sums[m], half, 1.0f / all, f.dim);
            if (lane % 4 == 0) f.lse[head * f.tokens + token] = (most[m][half] * factor + log2f(all)) / LOG2_E;
        }
    }
}

} // namespace

// As attention_plain_forward, for bf16 and head_dim a multiple of 8, at most the number in the name.
// tiles: of QUERIES positions. launch: grid (heads, tiles), block (128), dynamic shared bytes
//   2 * (QUERIES + 4 * KEYS) * (D + 8). alignment: 16 bytes for q, k, v and their strides, 4 bytes for out and its stride.
#define ATTENTION_FORWARD(NAME, D, M, KEYS)                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                                     \
        NAME(bf16 *out, float *lse, const bf16 *q, const bf16 *k, const bf16 *v, const Tile *tiles, long long tokens,    \
             long long out_stride, long long q_stride, long long k_stride, long long v_stride, int group, int head_dim,  \
             int window, float scale, float softcap) {                                                                   \
        forward<D, M, KEYS>(Forward{out, lse, q, k, v, tiles, tokens, out_stride, q_stride, k_stride, v_stride, group,   \
                                    head_dim, Look{window, scale, softcap}});                                            \
    }
// QUERIES = 128, KEYS = 64; 55,296 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d64, 64, 2, 64)
// QUERIES = 128, KEYS = 32; 53,248 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d96, 96, 2, 32)
// QUERIES = 128, KEYS = 32; 69,632 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d128, 128, 2, 32)
// QUERIES = 64, KEYS = 32; 101,376 bytes.
ATTENTION_FORWARD(attention_forward_bf16_d256, 256, 1, 32)
