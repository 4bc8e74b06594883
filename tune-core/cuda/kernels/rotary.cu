// Rotary position embeddings in place (Su et al. 2021, https://arxiv.org/abs/2104.09864): element i of a head turns with
// element i + rotated / 2; the elements of a head from `rotated` on stay.
#include "common.cuh"

namespace {

template <typename T, int N>
__device__ __forceinline__ void turn_pairs(T *low, T *high, const float *cosines, const float *sines, float sign) {
    float a[N], b[N], c[N], s[N];
    load(low, a);
    load(high, b);
    load(cosines, c);
    load(sines, s);
#pragma unroll
    for (int i = 0; i < N; i++) {
        const float x = a[i], y = b[i], turned = sign * s[i];
        a[i] = x * c[i] - y * turned;
        b[i] = y * c[i] + x * turned;
    }
    store(low, a);
    store(high, b);
}

template <typename T, int N>
__device__ __forceinline__ void turn_heads(T *x, const float *cosines, const float *sines, long long rows, long long stride,
                                           int heads, int head_dim, int half, float sign) {
    const int pieces = half / N, in_row = heads * pieces;
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < in_row; i += gridDim.x * blockDim.x) {
            const int pair = i % pieces * N;
            T *low = x + row * stride + (long long)(i / pieces) * head_dim + pair;
            turn_pairs<T, N>(low, low + half, cosines + row * half + pair, sines + row * half + pair, sign);
        }
    }
}

template <typename T>
__device__ __forceinline__ void rotary(T *x, const float *cosines, const float *sines, long long rows, long long stride,
                                       int heads, int head_dim, int rotated, float sign) {
    const int half = rotated / 2;
    const bool wide = is_wide(x, stride) && is_wide(cosines, half) && is_wide(sines, half) && half % WIDE<T> == 0 &&
                      head_dim % WIDE<T> == 0;
    if (wide) turn_heads<T, WIDE<T>>(x, cosines, sines, rows, stride, heads, head_dim, half, sign);
    else turn_heads<T, 1>(x, cosines, sines, rows, stride, heads, head_dim, half, sign);
}

} // namespace

// Turns x [rows, heads * head_dim] by the angles of each row: cos, sin [rows, rotated / 2] f32. sign is 1 forward and -1
// backward (the transpose of a rotation is its inverse).
// launch: grid (ceil(heads * rotated / 2 / W / 128), min(rows, 65535)) with W = 8 (bf16) or 4 (f32), block (128), no shared
//   memory. alignment: any; 16-byte accesses if pointers, stride, rotated / 2 and head_dim allow.
extern "C" __global__ void __launch_bounds__(128)
    rotary_f32(float *x, const float *cosines, const float *sines, long long rows, long long stride, int heads, int head_dim,
               int rotated, float sign) {
    rotary<float>(x, cosines, sines, rows, stride, heads, head_dim, rotated, sign);
}
extern "C" __global__ void __launch_bounds__(128)
    rotary_bf16(bf16 *x, const float *cosines, const float *sines, long long rows, long long stride, int heads, int head_dim,
                int rotated, float sign) {
    rotary<bf16>(x, cosines, sines, rows, stride, heads, head_dim, rotated, sign);
}
