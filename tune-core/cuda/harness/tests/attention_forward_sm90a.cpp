// Attention's forward pass with warpgroups against loops in f64.
#include "../attention.h"

#include "../../kernels/attention_forward_sm90a.cu"

using namespace harness;

template <typename K> void run(const char *name, K kernel, int dim, int keys, const AttentionCase &c, Random &random) {
    AttentionData<bf16> a(c, random);
    Buffer<Tile> tiles = c.tiles(128, false);
    in_every_order([&] {
        a.poison_results();
        LAUNCH(kernel, dim3(c.heads, unsigned(tiles.size())), dim3(384), 2 * (128 + 4 * keys) * dim + 128, a.out.data(), a.lse.data(),
               a.q.data(), a.k.data(), a.v.data(), tiles.data(), a.tokens, a.q_stride, a.q_stride, a.k_stride, a.k_stride,
               c.heads / c.kv_heads, c.head_dim, c.window, c.scale(), c.softcap);
        a.note_forward(name, 6e-3);
    });
    const int fresh = *std::min_element(c.spans.begin(), c.spans.end());
    note_past(name, a, fresh, 128, 6e-3, [&](auto &out, auto &lse, auto &q, auto &k, auto &v, auto &tiles, int count) {
        LAUNCH(kernel, dim3(c.heads, unsigned(tiles.size())), dim3(384), 2 * (128 + 4 * keys) * dim + 128, out.data(), lse.data(), q.data(), k.data(), v.data(),
               tiles.data(), count, a.q_stride, a.q_stride, a.k_stride, a.k_stride, c.heads / c.kv_heads, c.head_dim, c.window,
               c.scale(), c.softcap);
    });
}

int main() {
    Random random(11);
    run("attention_forward_bf16_d64_sm90a", attention_forward_bf16_d64_sm90a, 64, 128, {2, 1, 64, {1, 130, 64}, 0, 0, 8}, random);
    run("attention_forward_bf16_d64_sm90a", attention_forward_bf16_d64_sm90a, 64, 128, {1, 1, 40, {300}, 70, 5, 0, 4}, random);
    run("attention_forward_bf16_d128_sm90a", attention_forward_bf16_d128_sm90a, 128, 128, {2, 1, 128, {1, 129, 60}, 0, 30, 8, 3}, random);
    run("attention_forward_bf16_d128_sm90a", attention_forward_bf16_d128_sm90a, 128, 128, {1, 1, 80, {620}, 0, 0, 0, 3}, random);
    return report();
}
