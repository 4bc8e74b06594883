// Attention's backward pass on tensor cores against loops in f64.
#include "../attention_passes.h"

#include "../../kernels/attention_backward.cu"

using namespace harness;

// Mine: positions of a tile; other: positions that pass by at a time.
template <typename Q> Pass<Q> queries(Q kernel, int dim, int mine, int other) {
    return {kernel, mine, 128, size_t(4 * (mine + 2 * other) * (dim + 8))};
}
template <typename K> Pass<K> keys(K kernel, int dim, int mine, int other, unsigned threads = 128) {
    return {kernel, mine, threads, size_t(4 * (mine + 2 * other) * (dim + 8) + 16 * other)};
}

int main() {
    Random random(10);
    for (const AttentionCase &c : {AttentionCase{2, 1, 64, {1, 130, 64}, 0, 0, 8}, AttentionCase{4, 2, 40, {63, 65, 5}, 20, 5, 0, 3},
                                   AttentionCase{1, 1, 64, {200}, 70, 0, 0, 4}})
        run_backward("attention_backward_bf16_d64", queries(attention_queries_bf16_d64, 64, 128, 32), keys(attention_keys_bf16_d64, 64, 64, 64), c,
            random);
    for (const AttentionCase &c : {AttentionCase{2, 1, 80, {129, 3}}, AttentionCase{1, 1, 96, {97}, 33, 0, 8}})
        run_backward("attention_backward_bf16_d96", queries(attention_queries_bf16_d96, 96, 128, 32), keys(attention_keys_bf16_d96, 96, 64, 32), c,
            random);
    run_backward("attention_backward_bf16_d128", queries(attention_queries_bf16_d128, 128, 64, 32), keys(attention_keys_bf16_d128, 128, 64, 32),
        {2, 1, 128, {1, 129, 60}, 0, 30, 8, 3}, random);
    run_backward("attention_backward_bf16_d256", queries(attention_queries_bf16_d256, 256, 64, 16), keys(attention_keys_bf16_d256, 256, 48, 16, 192),
        {1, 1, 200, {65, 1, 48, 32}, 40, 50}, random);
    return report();
}
