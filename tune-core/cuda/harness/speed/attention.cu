// How fast attention is on a card, for several shapes of tiles; each result is compared with the plain kernels'.
#include "speed.h"

#include "../attention.h"

#include "../../kernels/attention_panels.cuh"
#include "../../kernels/attention_rows.cuh"

namespace plain {
#include "../../kernels/attention_plain.cu"
}
#include "../../kernels/attention_forward.cu"
#include "../../kernels/attention_backward.cu"
// Shapes of tiles that are not in the library.
ATTENTION_KEYS(keys_d128_w8_q64, 128, 8, 64, 1)
ATTENTION_FORWARD(forward_d128_k64, 128, 2, 64)
ATTENTION_FORWARD(forward_d64_k128, 64, 2, 128)
#undef ATTENTION_FORWARD
#undef ATTENTION_QUERIES
#undef ATTENTION_KEYS

namespace warpgroups {
#include "../../kernels/attention_forward_sm90a.cu"
ATTENTION_FORWARD(forward_d128_k64_sm90a, 128, 64)
} // namespace warpgroups
namespace warpgroups_backward {
#include "../../kernels/attention_backward_sm90a.cu"
ATTENTION_QUERIES(queries_d128_k128_sm90a, 128, 128)
ATTENTION_QUERIES(queries_d64_k64_sm90a, 64, 64)
ATTENTION_KEYS(keys_d64_q64_sm90a, 64, 64)
} // namespace warpgroups_backward

using namespace harness;

struct Bench {
    AttentionCase c;
    int tokens, q, k, group;
    OnCard<bf16> Q, K, V, G, out, dq, dk, dv;
    OnCard<float> lse, delta;
    std::vector<double> right_out, right_dq, right_dk, right_dv;
    double flops;

    explicit Bench(const AttentionCase &c)
        : c(c), tokens(c.tokens()), q(c.heads * c.head_dim), k(c.kv_heads * c.head_dim), group(c.heads / c.kv_heads),
          Q(size_t(tokens) * q, 1, 2), K(size_t(tokens) * k, 2, 2), V(size_t(tokens) * k, 3), G(size_t(tokens) * q, 4),
          out(Q.count), dq(Q.count), dk(K.count), dv(K.count), lse(size_t(c.heads) * tokens), delta(lse.count), flops(0) {
        for (int n : c.spans) flops += 2.0 * n * n * c.head_dim * c.heads; // two products, half of the square
        forward("plain", plain::attention_plain_forward_bf16, 8, 256, size_t(4 * (c.head_dim + 1) * 72));
        right_out = out.copy_out();
        start(plain::attention_delta_bf16, dim3((tokens * c.heads + 7) / 8), dim3(256), 0, delta.data, out.data, G.data, tokens, q, q,
              c.heads, c.head_dim);
        backward_queries("plain", plain::attention_plain_queries_bf16, 8, 256, size_t(4 * (c.head_dim + 1) * 80));
        backward_keys("plain", plain::attention_plain_keys_bf16, 8, 256, size_t(4 * (c.head_dim + 1) * 80));
        right_dq = dq.copy_out(), right_dk = dk.copy_out(), right_dv = dv.copy_out();
    }

    template <typename T> static void clear(const OnCard<T> &b) { check(cudaMemset(b.data, 0xff, b.count * sizeof(T)), "memset"); }

    void line(const char *pass, const char *name, double ms, double share, double error) const {
        printf("%-8s %-33s d%-3d %8.3f ms %6.1f TFLOP/s error %.1e\n", pass, name, c.head_dim, ms,
               share * flops / ms * 1e-9, error);
    }

    template <typename F> void forward(const char *name, F kernel, int mine, int threads, size_t shared) {
        Buffer<Tile> tiles = c.tiles(mine, false);
        clear(out), clear(lse);
        const double ms = time_of([&] {
            start(kernel, dim3(c.heads, unsigned(tiles.size())), dim3(threads), shared, out.data, lse.data, Q.data, K.data, V.data,
                  tiles.data(), tokens, q, q, k, k, group, c.head_dim, c.window, c.scale(), c.softcap);
        }, right_out.empty() ? 1 : 15);
        if (!right_out.empty()) line("forward", name, ms, 1, relative_error(out.copy_out(), right_out));
    }
    template <typename F> void backward_queries(const char *name, F kernel, int mine, int threads, size_t shared) {
        Buffer<Tile> tiles = c.tiles(mine, false);
        clear(dq);
        const double ms = time_of([&] {
            start(kernel, dim3(c.heads, unsigned(tiles.size())), dim3(threads), shared, dq.data, Q.data, K.data, V.data, G.data, lse.data,
                  delta.data, tiles.data(), tokens, q, q, k, k, q, group, c.head_dim, c.window, c.scale(), c.softcap);
        }, right_dq.empty() ? 1 : 15);
        if (!right_dq.empty()) line("queries", name, ms, 1.5, relative_error(dq.copy_out(), right_dq));
    }
    template <typename F> void backward_keys(const char *name, F kernel, int mine, int threads, size_t shared) {
        Buffer<Tile> tiles = c.tiles(mine, true);
        clear(dk), clear(dv);
        const double ms = time_of([&] {
            start(kernel, dim3(c.kv_heads, unsigned(tiles.size())), dim3(threads), shared, dk.data, dv.data, Q.data, K.data, V.data, G.data,
                  lse.data, delta.data, tiles.data(), tokens, k, k, q, k, k, q, group, c.head_dim, c.window, c.scale(), c.softcap);
        }, right_dk.empty() ? 1 : 15);
        if (!right_dk.empty())
            line("keys", name, ms, 2,
              std::max(relative_error(dk.copy_out(), right_dk), relative_error(dv.copy_out(), right_dv)));
    }
    void with_delta() {
        const double ms = time_of([&] {
            start(plain::attention_delta_bf16, dim3((tokens * c.heads + 7) / 8), dim3(256), 0, delta.data, out.data, G.data, tokens, q, q,
                  c.heads, c.head_dim);
        });
        line("delta", "", ms, 0, 0);
    }
};

#define FORWARD(KERNEL, D, M, KEYS) b.forward(#KERNEL, KERNEL, 64 * M, 128, 2 * (64 * M + 4 * KEYS) * (D + 8))
#define WARPGROUPS(KERNEL, D, KEYS) b.forward(#KERNEL, warpgroups::KERNEL, 128, 384, 2 * (128 + 4 * KEYS) * D + 128)
#define WARPGROUPS_QUERIES(KERNEL, D, KEYS) \
    b.backward_queries(#KERNEL, warpgroups_backward::KERNEL, 128, 256, 4 * (128 + 2 * KEYS) * D)
#define WARPGROUPS_KEYS(KERNEL, D, N) \
    b.backward_keys(#KERNEL, warpgroups_backward::KERNEL, 128, 256, 4 * (128 + 2 * N) * D + 16 * N)
#define QUERIES(KERNEL, D, WARPS, M, KEYS) \
    b.backward_queries(#KERNEL, KERNEL, 16 * WARPS * M, 32 * WARPS, 4 * (16 * WARPS * M + 2 * KEYS) * (D + 8))
#define KEYS(KERNEL, D, WARPS, N) b.backward_keys(#KERNEL, KERNEL, 16 * WARPS, 32 * WARPS, 4 * (16 * WARPS + 2 * N) * (D + 8) + 16 * N)

int main() {
    {
        Bench b({16, 16, 128, {4096, 4096, 4096, 4096}});
        b.with_delta();
        FORWARD(attention_forward_bf16_d128, 128, 2, 32);
        FORWARD(forward_d128_k64, 128, 2, 64);
        WARPGROUPS(attention_forward_bf16_d128_sm90a, 128, 128);
        WARPGROUPS(forward_d128_k64_sm90a, 128, 64);
        QUERIES(attention_queries_bf16_d128, 128, 4, 1, 32);
        WARPGROUPS_QUERIES(attention_queries_bf16_d128_sm90a, 128, 64);
        WARPGROUPS_QUERIES(queries_d128_k128_sm90a, 128, 128);
        KEYS(attention_keys_bf16_d128, 128, 4, 32);
        KEYS(keys_d128_w8_q64, 128, 8, 64);
        WARPGROUPS_KEYS(attention_keys_bf16_d128_sm90a, 128, 64);
    }
    {
        Bench b({32, 8, 64, {4096, 4096, 4096, 4096}});
        FORWARD(attention_forward_bf16_d64, 64, 2, 64);
        FORWARD(forward_d64_k128, 64, 2, 128);
        WARPGROUPS(attention_forward_bf16_d64_sm90a, 64, 128);
        QUERIES(attention_queries_bf16_d64, 64, 4, 2, 32);
        WARPGROUPS_QUERIES(attention_queries_bf16_d64_sm90a, 64, 128);
        WARPGROUPS_QUERIES(queries_d64_k64_sm90a, 64, 64);
        KEYS(attention_keys_bf16_d64, 64, 4, 64);
        WARPGROUPS_KEYS(attention_keys_bf16_d64_sm90a, 64, 128);
        WARPGROUPS_KEYS(keys_d64_q64_sm90a, 64, 64);
    }
    return 0;
}
