// Attention's backward pass with warpgroups against loops in f64.
#include "../attention_passes.h"

#include "../../kernels/attention_backward_sm90a.cu"

using namespace harness;

int main() {
    Random random(12);
    const Pass queries64{attention_queries_bf16_d64_sm90a, 128, 256, 4 * (128 + 2 * 128) * 64};
    const Pass queries128{attention_queries_bf16_d128_sm90a, 128, 256, 4 * (128 + 2 * 64) * 128};
    const Pass keys64{attention_keys_bf16_d64_sm90a, 128, 256, 4 * (128 + 2 * 128) * 64 + 16 * 128};
    const Pass keys128{attention_keys_bf16_d128_sm90a, 128, 256, 4 * (128 + 2 * 64) * 128 + 16 * 64};
    for (const AttentionCase &c : {AttentionCase{2, 1, 64, {1, 130, 64}, 0, 0, 8}, AttentionCase{1, 1, 40, {300}, 70, 0, 0, 4}})
        run_backward("attention_backward_bf16_d64_sm90a", queries64, keys64, c, random);
    for (const AttentionCase &c : {AttentionCase{2, 1, 128, {129, 60}, 0, 0, 8, 3}, AttentionCase{1, 1, 96, {200}, 33}})
        run_backward("attention_backward_bf16_d128_sm90a", queries128, keys128, c, random);
    const Pass parts64{attention_keys_in_parts_d64_sm90a, 128, 256, keys64.shared};
    const Pass parts128{attention_keys_in_parts_d128_sm90a, 128, 256, keys128.shared};
    run_in_parts("attention_keys_in_parts_d64_sm90a", parts64, attention_join_keys_sm90a, 2, AttentionCase{4, 1, 64, {70, 9}, 0, 0, 8},
                 random);
    run_in_parts("attention_keys_in_parts_d128_sm90a", parts128, attention_join_keys_sm90a, 3,
                 AttentionCase{6, 2, 96, {130}, 40, 0, 8}, random);
    return report();
}
