// Logits that stay below a cap: softcap * tanh(x / softcap), if there is a cap (softcap > 0).
#pragma once

#include "common.cuh"

// A logit as the loss sees it.
__device__ __forceinline__ float capped(float x, float softcap) {
    return softcap > 0 ? softcap * tanhf(x / softcap) : x;
}

// The slope where the capped logit is `y`.
__device__ __forceinline__ float slope(float y, float softcap) {
    return softcap > 0 ? 1.0f - (y / softcap) * (y / softcap) : 1.0f;
}
