// What the attention kernels share: causal attention over packed spans with grouped heads, with an optional window and
// soft cap (FlashAttention-2, Dao 2023, https://arxiv.org/abs/2307.08691).
#pragma once

#include "common.cuh"

// Consecutive positions of a span: what one block handles. 16 bytes.
struct Tile {
    int span;   // the row of queries where position 0 of the span is; negative if the first positions have no queries any more
    int length; // the span's, those included
    int first;  // the tile's first position in the span
    int keys;   // how many rows further on its keys and values are: 0, or somewhere in a cache (forward passes alone)
};

// The arguments of attention that all kernels take.
struct Look {
    int window;    // how many positions a query sees, itself included; 0: all earlier ones
    float scale;   // factor on the scores
    float softcap; // scores count as softcap * tanh(score / softcap); 0: as they are
};

constexpr float LOG2_E = 1.4426950409f;

__device__ __forceinline__ bool sees(const Look &look, int query, int key) {
    return key <= query && (look.window == 0 || query - key < look.window);
}

// The first key that a query sees.
__device__ __forceinline__ int first_key(const Look &look, int query) {
    return look.window == 0 ? 0 : max(0, query + 1 - look.window);
}

// The end of the queries that see a key.
__device__ __forceinline__ int end_query(const Look &look, int key, int length) {
    return look.window == 0 || key >= length - look.window ? length : key + look.window;
}
