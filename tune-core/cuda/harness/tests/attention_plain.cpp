// Attention without tensor cores against loops in f64.
#include "../attention.h"

#include "../../kernels/attention_plain.cu"

using namespace harness;

template <typename T, typename F, typename D, typename Q, typename K>
void run(const AttentionCase &c, F forward, D delta, Q queries, K keys, Random &random) {
    AttentionData<T> a(c, random);
    Buffer<Tile> of_queries = c.tiles(8, false), of_keys = c.tiles(8, true);
    const unsigned tiles = unsigned(of_queries.size());
    const int group = c.heads / c.kv_heads, q = a.q_stride, k = a.k_stride;
    const size_t row = 4 * (c.head_dim + 1);
    in_every_order([&] {
        a.poison_results();
        LAUNCH(forward, dim3(c.heads, tiles), dim3(256), 72 * row, a.out.data(), a.lse.data(), a.q.data(), a.k.data(), a.v.data(),
               of_queries.data(), a.tokens, q, q, k, k, group, c.head_dim, c.window, c.scale(), c.softcap);
        LAUNCH(delta, dim3((a.tokens * c.heads + 7) / 8), dim3(256), 0, a.delta.data(), a.out.data(), a.g.data(), a.tokens, q, q,
               c.heads, c.head_dim);
        LAUNCH(queries, dim3(c.heads, tiles), dim3(256), 80 * row, a.dq.data(), a.q.data(), a.k.data(), a.v.data(), a.g.data(),
               a.lse.data(), a.delta.data(), of_queries.data(), a.tokens, q, q, k, k, q, group, c.head_dim, c.window, c.scale(),
               c.softcap);
        LAUNCH(keys, dim3(c.kv_heads, tiles), dim3(256), 80 * row, a.dk.data(), a.dv.data(), a.q.data(), a.k.data(), a.v.data(),
               a.g.data(), a.lse.data(), a.delta.data(), of_keys.data(), a.tokens, k, k, q, k, k, q, group, c.head_dim, c.window,
               c.scale(), c.softcap);
        const std::string name = std::string("attention_plain_") + type_name<T>();
        a.note_forward(name, tolerance<T>());
        a.note_backward(name, sizeof(T) == 4 ? 4e-6 : 1e-2);
    });
    const int fresh = *std::min_element(c.spans.begin(), c.spans.end());
    note_past(std::string("attention_plain_") + type_name<T>(), a, fresh, 8, tolerance<T>(),
              [&](auto &out, auto &lse, auto &q, auto &k, auto &v, auto &tiles, int count) {
                  LAUNCH(forward, dim3(c.heads, unsigned(tiles.size())), dim3(256), 72 * row, out.data(), lse.data(), q.data(), k.data(),
                         v.data(), tiles.data(), count, a.q_stride, a.q_stride, a.k_stride, a.k_stride, group, c.head_dim, c.window,
                         c.scale(), c.softcap);
              });
}

int main() {
    Random random(8);
    const AttentionCase cases[] = {
        {1, 1, 4, {1}},          {2, 1, 64, {7, 1, 33}, 0, 0, 8}, {4, 2, 33, {8, 9}, 5},
        {3, 3, 128, {40}, 0, 20}, {6, 2, 16, {31, 32, 33, 2}, 17, 5, 3},  {1, 1, 256, {35}},
    };
    for (const AttentionCase &c : cases) {
        run<float>(c, attention_plain_forward_f32, attention_delta_f32, attention_plain_queries_f32, attention_plain_keys_f32, random);
        run<bf16>(c, attention_plain_forward_bf16, attention_delta_bf16, attention_plain_queries_bf16, attention_plain_keys_bf16,
                  random);
    }
    return report();
}
