// Attention's forward pass on tensor cores against loops in f64.
#include "../attention.h"

#include "../../kernels/attention_forward.cu"

using namespace harness;

template <typename K>
void run(const char *name, K kernel, int dim, int queries, int keys, const AttentionCase &c, Random &random) {
    AttentionData<bf16> a(c, random);
    Buffer<Tile> tiles = c.tiles(queries, false);
    in_every_order([&] {
        a.poison_results();
        LAUNCH(kernel, dim3(c.heads, unsigned(tiles.size())), dim3(128), 2 * (queries + 4 * keys) * (dim + 8), a.out.data(),
               a.lse.data(), a.q.data(), a.k.data(), a.v.data(), tiles.data(), a.tokens, a.q_stride, a.q_stride, a.k_stride,
               a.k_stride, c.heads / c.kv_heads, c.head_dim, c.window, c.scale(), c.softcap);
        a.note_forward(name, 6e-3);
    });
    const int fresh = *std::min_element(c.spans.begin(), c.spans.end());
    note_past(name, a, fresh, queries, 6e-3, [&](auto &out, auto &lse, auto &q, auto &k, auto &v, auto &tiles, int count) {
        LAUNCH(kernel, dim3(c.heads, unsigned(tiles.size())), dim3(128), 2 * (queries + 4 * keys) * (dim + 8), out.data(), lse.data(), q.data(), k.data(), v.data(),
               tiles.data(), count, a.q_stride, a.q_stride, a.k_stride, a.k_stride, c.heads / c.kv_heads, c.head_dim, c.window,
               c.scale(), c.softcap);
    });
}

int main() {
    Random random(9);
    run("attention_forward_bf16_d64", attention_forward_bf16_d64, 64, 128, 64, {2, 1, 64, {1, 130, 64}, 0, 0, 8}, random);
    run("attention_forward_bf16_d64", attention_forward_bf16_d64, 64, 128, 64, {2, 2, 40, {63, 65, 127, 5}, 20, 5, 0, 3}, random);
    run("attention_forward_bf16_d64", attention_forward_bf16_d64, 64, 128, 64, {1, 1, 64, {300}, 70, 0, 0, 4}, random);
    run("attention_forward_bf16_d96", attention_forward_bf16_d96, 96, 128, 32, {2, 1, 80, {129, 3}, 0, 0}, random);
    run("attention_forward_bf16_d96", attention_forward_bf16_d96, 96, 128, 32, {1, 1, 96, {97}, 33, 0, 8}, random);
    run("attention_forward_bf16_d128", attention_forward_bf16_d128, 128, 128, 32, {2, 1, 128, {1, 129, 60, 47}, 0, 30, 8, 3}, random);
    run("attention_forward_bf16_d256", attention_forward_bf16_d256, 256, 64, 32, {1, 1, 256, {65, 1, 32}, 40, 50}, random);
    return report();
}
