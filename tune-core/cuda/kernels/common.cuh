// What several kernels share: 16-byte accesses, sums over a block, and the gates' functions.
#pragma once

#include <primitives.cuh>

constexpr unsigned ALL_LANES = 0xffffffffu;

// Elements of 16 bytes.
template <typename T> constexpr int WIDE = 16 / sizeof(T);

// `N` numbers from `from` on, widened; 16 bytes at a time if they are so many, which are aligned then.
template <typename T, int N> __device__ __forceinline__ void load(const T *from, float (&x)[N]) {
    if constexpr (N * sizeof(T) % 16 == 0) {
#pragma unroll
        for (int start = 0; start < N; start += WIDE<T>) {
            union {
                uint4 all;
                T each[WIDE<T>];
            } raw;
            raw.all = *reinterpret_cast<const uint4 *>(from + start);
#pragma unroll
            for (int i = 0; i < WIDE<T>; i++) x[start + i] = to_f32(raw.each[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = to_f32(from[i]);
    }
}

// 16 bytes as they are, and their numbers: what is kept for later takes half of the registers where it is bf16.
template <typename T> __device__ __forceinline__ uint4 load_raw(const T *from) { return *reinterpret_cast<const uint4 *>(from); }

template <typename T> __device__ __forceinline__ void widen(uint4 raw, float (&x)[WIDE<T>]) {
    union {
        uint4 all;
        T each[WIDE<T>];
    } of;
    of.all = raw;
#pragma unroll
    for (int i = 0; i < WIDE<T>; i++) x[i] = to_f32(of.each[i]);
}

// The other way, rounded to the nearest.
template <typename T, int N> __device__ __forceinline__ void store(T *to, const float (&x)[N]) {
    if constexpr (N * sizeof(T) % 16 == 0) {
#pragma unroll
        for (int start = 0; start < N; start += WIDE<T>) {
            union {
                uint4 all;
                T each[WIDE<T>];
            } raw;
#pragma unroll
            for (int i = 0; i < WIDE<T>; i++) raw.each[i] = from_f32<T>(x[start + i]);
            *reinterpret_cast<uint4 *>(to + start) = raw.all;
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = from_f32<T>(x[i]);
    }
}

// Whether rows that start here, `stride` elements apart, can be read 16 bytes at a time; null is read by nobody.
template <typename T> __device__ __forceinline__ bool is_wide(const T *p, long long stride) {
    return p == nullptr || ((reinterpret_cast<uintptr_t>(p) | static_cast<uintptr_t>(stride * sizeof(T))) & 15) == 0;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int with = 16; with > 0; with /= 2) x += __shfl_xor_sync(ALL_LANES, x, with);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int with = 16; with > 0; with /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, with));
    return x;
}

// `shared` holds a number of each warp; brings together those of a row, threadIdx.y of blockDim.x / 32 warps.
template <typename Join> __device__ __forceinline__ float join_warps(float x, float *shared, Join join) {
    const unsigned warps = blockDim.x / 32;
    if (warps <= 1) return x;
    float *mine = shared + threadIdx.y * warps;
    if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = x;
    __syncthreads();
    x = mine[0];
    for (unsigned i = 1; i < warps; i++) x = join(x, mine[i]);
    __syncthreads();
    return x;
}

// The sum of `x` over threadIdx.x (8, 16 or a multiple of 32 threads), in the same order whatever happens. `shared` has
// blockDim.x / 32 floats for each threadIdx.y; all of the block calls this together.
__device__ __forceinline__ float row_sum(float x, float *shared) {
    for (unsigned with = min(32u, blockDim.x) / 2; with > 0; with /= 2) x += __shfl_xor_sync(ALL_LANES, x, with);
    return join_warps(x, shared, [](float a, float b) { return a + b; });
}

// The sums of both parts of `x`, in the same order as one; `shared` has as many pairs.
__device__ __forceinline__ float2 row_sums(float2 x, float2 *shared) {
    for (unsigned with = min(32u, blockDim.x) / 2; with > 0; with /= 2)
        x.x += __shfl_xor_sync(ALL_LANES, x.x, with), x.y += __shfl_xor_sync(ALL_LANES, x.y, with);
    const unsigned warps = blockDim.x / 32;
    if (warps <= 1) return x;
    float2 *mine = shared + threadIdx.y * warps;
    if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = x;
    __syncthreads();
    x = mine[0];
    for (unsigned i = 1; i < warps; i++) x.x += mine[i].x, x.y += mine[i].y;
    __syncthreads();
    return x;
}

__device__ __forceinline__ float row_max(float x, float *shared) {
    return join_warps(warp_max(x), shared, [](float a, float b) { return fmaxf(a, b); });
}

// SplitMix64's finalizer over a key and a number: the random bits of dropout.
__device__ __forceinline__ unsigned long long mix(unsigned long long key, unsigned long long part) {
    unsigned long long z = key ^ (part * 0x9e3779b97f4a7c15ull + 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
