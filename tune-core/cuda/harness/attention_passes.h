// The two passes of attention's backward, run and compared.
#pragma once

#include "attention.h"

namespace harness {

// A kernel for a tile of `mine` positions.
template <typename K> struct Pass {
    K kernel;
    int mine;
    unsigned threads;
    size_t shared;
};
template <typename K> Pass(K, int, unsigned, size_t) -> Pass<K>;

template <typename Q, typename K>
void run_backward(const std::string &name, Pass<Q> of_queries, Pass<K> of_keys, const AttentionCase &c, Random &random) {
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
        LAUNCH(of_queries.kernel, dim3(c.heads, unsigned(query_tiles.size())), dim3(of_queries.threads), of_queries.shared,
               a.dq.data(), a.q.data(), a.k.data(), a.v.data(), a.g.data(), a.lse.data(), a.delta.data(), query_tiles.data(),
               a.tokens, q, q, k, k, q, group, c.head_dim, c.window, c.scale(), c.softcap);
        LAUNCH(of_keys.kernel, dim3(c.kv_heads, unsigned(key_tiles.size())), dim3(of_keys.threads), of_keys.shared, a.dk.data(),
               a.dv.data(), a.q.data(), a.k.data(), a.v.data(), a.g.data(), a.lse.data(), a.delta.data(), key_tiles.data(), a.tokens,
               k, k, q, k, k, q, group, c.head_dim, c.window, c.scale(), c.softcap);
        a.note_backward(name, 8e-3);
    });
}

// Gradients of keys and values in parts of a head's query heads, and their sum.
template <typename K, typename J>
void run_in_parts(const std::string &name, Pass<K> of_keys, J join, int parts, const AttentionCase &c, Random &random) {
    AttentionData<bf16> a(c, random);
    Buffer<Tile> tiles = c.tiles(of_keys.mine, true);
    const int group = c.heads / c.kv_heads, q = a.q_stride, k = a.k_stride, wide = c.kv_heads * parts * c.head_dim;
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
    in_every_order([&] {
        poison(a.dk), poison(a.dv);
        Buffer<float> dk(size_t(a.tokens) * wide), dv(dk.size());
        LAUNCH(of_keys.kernel, dim3(c.kv_heads * parts, unsigned(tiles.size())), dim3(of_keys.threads), of_keys.shared, dk.data(),
               dv.data(), a.q.data(), a.k.data(), a.v.data(), a.g.data(), a.lse.data(), a.delta.data(), tiles.data(), a.tokens, wide,
               wide, q, k, k, q, group / parts, c.head_dim, c.window, c.scale(), c.softcap, parts);
        const unsigned blocks = unsigned((size_t(a.tokens) * c.kv_heads * c.head_dim / 8 + 255) / 256);
        LAUNCH(join, dim3(blocks), dim3(256), 0, a.dk.data(), dk.data(), a.tokens, k, c.kv_heads, parts, c.head_dim);
        LAUNCH(join, dim3(blocks), dim3(256), 0, a.dv.data(), dv.data(), a.tokens, k, c.kv_heads, parts, c.head_dim);
        note(name + " dk", c.text(), a.error(a.dk, a.right_dk, k), 8e-3);
        note(name + " dv", c.text(), a.error(a.dv, a.right_dv, k), 8e-3);
    });
}

} // namespace harness
