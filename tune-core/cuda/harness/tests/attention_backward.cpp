// Attention's backward pass on tensor cores against loops in f64.
#include "../attention.h"

#include "../../kernels/attention_backward.cu"

using namespace harness;

// A kernel for a tile of `mine` positions, that `other` pass by at a time, with so many threads.
template <typename K> struct Pass {
    K kernel;
    int mine, other;
    unsigned threads;
};
template <typename K> Pass(K, int, int, unsigned) -> Pass<K>;

template <typename Q, typename K>
void run(const std::string &name, int dim, Pass<Q> of_queries, Pass<K> of_keys, const AttentionCase &c, Random &random) {
    AttentionData<bf16> a(c, random);
    Buffer<Tile> query_tiles = c.tiles(of_queries.mine, false), key_tiles = c.tiles(of_keys.mine, true);
    const int group = c.heads / c.kv_heads, q = a.q_stride, k = a.k_stride;
    in_every_order([&] {
        a.poison_results();
        for (size_t i = 0; i < a.lse.size(); i++) a.lse[i] = float(a.right_lse[i]);
        for (int h = 0; h < c.heads; h++)
            for (int t = 0; t < a.tokens; t++) {
                double sum = 0;
                for (int e = 0; e < c.head_dim; e++) {
                    const size_t at = size_t(t) * q + h * c.head_dim + e;
                    sum += a.right_out[at] * widened(a.g[at]);
                }
                a.delta[size_t(h) * a.tokens + t] = float(sum);
            }
        LAUNCH(of_queries.kernel, dim3(c.heads, unsigned(query_tiles.size())), dim3(of_queries.threads),
               4 * (of_queries.mine + 2 * of_queries.other) * (dim + 8), a.dq.data(), a.q.data(), a.k.data(), a.v.data(), a.g.data(),
               a.lse.data(), a.delta.data(), query_tiles.data(), a.tokens, q, q, k, k, q, group, c.head_dim, c.window, c.scale(),
               c.softcap);
        LAUNCH(of_keys.kernel, dim3(c.kv_heads, unsigned(key_tiles.size())), dim3(of_keys.threads),
               4 * (of_keys.mine + 2 * of_keys.other) * (dim + 8) + 16 * of_keys.other, a.dk.data(), a.dv.data(), a.q.data(),
               a.k.data(), a.v.data(), a.g.data(), a.lse.data(), a.delta.data(), key_tiles.data(), a.tokens, k, k, q, k, k, q, group,
               c.head_dim, c.window, c.scale(), c.softcap);
        a.note_backward(name, 8e-3);
    });
}

int main() {
    Random random(10);
    for (const AttentionCase &c : {AttentionCase{2, 1, 64, {1, 130, 64}, 0, 0, 8}, AttentionCase{4, 2, 40, {63, 65, 5}, 20, 5, 0, 3},
                                   AttentionCase{1, 1, 64, {200}, 70, 0, 0, 4}})
        run("attention_backward_bf16_d64", 64, Pass{attention_queries_bf16_d64, 128, 32, 128}, Pass{attention_keys_bf16_d64, 64, 64, 128}, c,
            random);
    for (const AttentionCase &c : {AttentionCase{2, 1, 80, {129, 3}}, AttentionCase{1, 1, 96, {97}, 33, 0, 8}})
        run("attention_backward_bf16_d96", 96, Pass{attention_queries_bf16_d96, 128, 32, 128}, Pass{attention_keys_bf16_d96, 64, 32, 128}, c,
            random);
    run("attention_backward_bf16_d128", 128, Pass{attention_queries_bf16_d128, 64, 32, 128}, Pass{attention_keys_bf16_d128, 64, 32, 128},
        {2, 1, 128, {1, 129, 60}, 0, 30, 8, 3}, random);
    run("attention_backward_bf16_d256", 256, Pass{attention_queries_bf16_d256, 64, 16, 128}, Pass{attention_keys_bf16_d256, 64, 16, 128},
        {1, 1, 256, {65, 1, 32}, 40, 50}, random);
    return report();
}
