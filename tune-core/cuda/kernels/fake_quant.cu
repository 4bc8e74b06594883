// Numbers rounded to the few levels that a quantized model has, and the gradients that pass through such rounding (Jacob et al. 2018,
// https://arxiv.org/abs/1712.05877). Levels and numbers have the processor's bits (tune-core/src/kernels/fake_quant.rs): no
// product is joined with a sum. Comparisons with what is no number are false: it is neither the least nor the largest of its
// group, is rounded to no number, and gets no gradient.
#include "common.cuh"

namespace {

// The least and the largest of some numbers.
struct Extremes {
    float least = INFINITY, largest = -INFINITY;

    template <int N> __device__ __forceinline__ void see(const float (&x)[N]) {
#pragma unroll
        for (int j = 0; j < N; j++) least = x[j] < least ? x[j] : least, largest = x[j] > largest ? x[j] : largest;
    }
};

// x = s q with s two fifteenths of the largest magnitude.
struct Int4 {
    static constexpr float FIRST = -8, LAST = 7;
    float scale, inverse;

    __device__ __forceinline__ explicit Int4(Extremes of) {
        // The least normal number.
        scale = fmaxf(__fdiv_rn(fmaxf(-fminf(of.least, 0.0f), fmaxf(of.largest, 0.0f)), 7.5f), __uint_as_float(0x00800000u));
        inverse = __fdiv_rn(1.0f, scale);
    }
    __device__ __forceinline__ float integer(float x) const { return rintf(__fmul_rn(x, inverse)); }
    __device__ __forceinline__ float number(float q) const { return __fmul_rn(q, scale); }
};

// x = s (q - 8) + z from the least to the largest number; s and z are rounded to bf16.
struct Int4Affine {
    static constexpr float FIRST = 0, LAST = 15;
    float scale, zero, least;

    static __device__ __forceinline__ float to_bf16(float x) { return to_f32(from_f32<bf16>(x)); }
    __device__ __forceinline__ explicit Int4Affine(Extremes of) {
        const float exact = fmaxf(__fdiv_rn(__fsub_rn(of.largest, of.least), 15.0f), 1e-6f);
        scale = to_bf16(exact), zero = to_bf16(__fadd_rn(of.least, __fmul_rn(exact, 8.0f)));
        least = to_bf16(__fsub_rn(zero, __fmul_rn(scale, 8.0f)));
    }
    __device__ __forceinline__ float integer(float x) const { return rintf(__fdiv_rn(__fsub_rn(x, least), scale)); }
    __device__ __forceinline__ float number(float q) const { return __fadd_rn(__fmul_rn(__fsub_rn(q, 8.0f), scale), zero); }
};

__device__ __forceinline__ float within(float q, float first, float last) { return q < first ? first : q > last ? last : q; }

// x = s (q - z) such that zero is exact.
struct Int8 {
    static constexpr float FIRST = -128, LAST = 127;
    float scale, inverse, zero;

    __device__ __forceinline__ explicit Int8(Extremes of) {
        const float least = fminf(of.least, 0.0f), largest = fmaxf(of.largest, 0.0f);
        // What is between one and the next number above it.
        scale = fmaxf(__fdiv_rn(__fsub_rn(largest, least), 255.0f), __uint_as_float(0x34000000u));
        zero = within(__fsub_rn(FIRST, rintf(__fdiv_rn(least, scale))), FIRST, LAST);
        inverse = __fdiv_rn(1.0f, scale);
    }
    __device__ __forceinline__ float integer(float x) const { return __fadd_rn(rintf(__fmul_rn(x, inverse)), zero); }
    __device__ __forceinline__ float number(float q) const { return __fmul_rn(__fsub_rn(q, zero), scale); }
};

// The number that a number is rounded to.
template <typename Grid> __device__ __forceinline__ float rounded(const Grid &grid, float x) {
    return grid.number(within(grid.integer(x), Grid::FIRST, Grid::LAST));
}

// Its gradient, for that of the rounded one.
template <typename Grid> __device__ __forceinline__ float limited(const Grid &grid, float x, float g) {
    const float q = grid.integer(x);
    return q >= Grid::FIRST && q <= Grid::LAST ? g : 0.0f;
}

// Numbers of a group, by a warp: rounded into y, or the gradients g limited.
template <typename Grid, typename T, int N>
__device__ __forceinline__ void group_of(const T *x, T *y, float *g, long long size) {
    const long long begin = static_cast<long long>(threadIdx.x % 32) * N;
    Extremes of;
    for (long long i = begin; i < size; i += 32 * N) {
        float own[N];
        load(x + i, own);
        of.see(own);
    }
    of.least = -warp_max(-of.least), of.largest = warp_max(of.largest);
    const Grid grid(of);
    for (long long i = begin; i < size; i += 32 * N) {
        float own[N];
        load(x + i, own);
        if (y) {
#pragma unroll
            for (int j = 0; j < N; j++) own[j] = rounded(grid, own[j]);
            store(y + i, own);
        } else {
            float gradients[N];
            load(g + i, gradients);
#pragma unroll
            for (int j = 0; j < N; j++) gradients[j] = limited(grid, own[j], gradients[j]);
            store(g + i, gradients);
        }
    }
}

template <typename T> __device__ __forceinline__ void in_groups(const T *x, T *y, float *g, long long groups, long long size, bool affine) {
    constexpr int N = WIDE<T>;
    const bool wide = is_wide(x, 0) && is_wide(y, 0) && is_wide(g, 0) && size % N == 0;
    const long long warps = blockDim.x / 32;
    for (long long group = blockIdx.x * warps + threadIdx.x / 32; group < groups; group += gridDim.x * warps) {
        const long long at = group * size;
        T *of_y = y ? y + at : nullptr;
        float *of_g = g ? g + at : nullptr;
        if (affine && wide) group_of<Int4Affine, T, N>(x + at, of_y, of_g, size);
        else if (affine) group_of<Int4Affine, T, 1>(x + at, of_y, of_g, size);
        else if (wide) group_of<Int4, T, N>(x + at, of_y, of_g, size);
        else group_of<Int4, T, 1>(x + at, of_y, of_g, size);
    }
}

// The same of a token, by a block. What is in `onto` is added to the gradients of the token's type.
template <typename T, int N>
__device__ __forceinline__ void token_of(const T *x, T *y, T *g, const T *onto, long long cols, float *shared) {
    const long long begin = static_cast<long long>(threadIdx.x) * N, step = static_cast<long long>(blockDim.x) * N;
    Extremes of;
    for (long long i = begin; i < cols; i += step) {
        float own[N];
        load(x + i, own);
        of.see(own);
    }
    of.least = -row_max(-of.least, shared), of.largest = row_max(of.largest, shared);
    const Int8 grid(of);
    for (long long i = begin; i < cols; i += step) {
        float own[N];
        load(x + i, own);
        if (y) {
#pragma unroll
            for (int j = 0; j < N; j++) own[j] = rounded(grid, own[j]);
            store(y + i, own);
        } else {
            float gradients[N], more[N];
            load(g + i, gradients);
            if (onto) load(onto + i, more);
#pragma unroll
            for (int j = 0; j < N; j++) {
                gradients[j] = limited(grid, own[j], gradients[j]);
                if (onto) gradients[j] = __fadd_rn(gradients[j], more[j]);
            }
            store(g + i, gradients);
        }
    }
}

template <typename T>
__device__ __forceinline__ void tokens(const T *x, T *y, T *g, const T *onto, long long rows, long long cols, long long x_stride,
                                       long long stride, long long onto_stride) {
    constexpr int N = WIDE<T>;
    float *shared = reinterpret_cast<float *>(shared_memory());
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *of_x = x + row * x_stride, *of_onto = onto ? onto + row * onto_stride : nullptr;
        T *of_y = y ? y + row * stride : nullptr, *of_g = g ? g + row * stride : nullptr;
        if (cols % N == 0 && is_wide(of_x, 0) && is_wide(of_y, 0) && is_wide(of_g, 0) && is_wide(of_onto, 0))
            token_of<T, N>(of_x, of_y, of_g, of_onto, cols, shared);
        else
            token_of<T, 1>(of_x, of_y, of_g, of_onto, cols, shared);
    }
}

} // namespace

// y = x in groups of `size` neighbours, each number rounded to the nearest of sixteen levels of its group: `affine` from its least to its
// largest number, else about zero.
// launch: grid (ceil(groups / (block / 32)) or fewer), block (a multiple of 32, 256 is good), no shared memory. alignment: any;
//   16-byte accesses where pointers and size allow.
#define WEIGHT(NAME, T)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *x, long long groups, long long size, int affine) {                                            \
        in_groups<T>(x, y, nullptr, groups, size, affine != 0);                                                           \
    }
WEIGHT(fake_quant_weight_f32, float)
WEIGHT(fake_quant_weight_bf16, bf16)

// g, the gradient of such a y, becomes that of x: zero where a number is beyond the outermost level.
#define WEIGHT_BACKWARD(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(float *g, const T *x, long long groups, long long size, int affine) {                                        \
        in_groups<T>(x, nullptr, g, groups, size, affine != 0);                                                           \
    }
WEIGHT_BACKWARD(fake_quant_weight_backward_f32, float)
WEIGHT_BACKWARD(fake_quant_weight_backward_bf16, bf16)

// y = x, the numbers of each row rounded to the nearest of 256 levels from its least to its largest, zero among them.
// launch: grid (min(rows, 65535) or fewer), block (a multiple of 32, at most 256), dynamic shared bytes 4 * block / 32. strides in
//   elements. alignment: any; 16-byte accesses where rows allow.
#define TOKENS(NAME, T)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *x, long long rows, long long cols, long long y_stride, long long x_stride) {                  \
        tokens<T>(x, y, nullptr, nullptr, rows, cols, x_stride, y_stride, 0);                                             \
    }
TOKENS(fake_quant_tokens_f32, float)
TOKENS(fake_quant_tokens_bf16, bf16)

// g, the gradient of such a y, becomes that of x, and what is in onto (null: nothing) is added.
#define TOKENS_BACKWARD(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) NAME(T *g, const T *x, const T *onto, long long rows, long long cols, \
                                                           long long g_stride, long long x_stride, long long onto_stride) { \
        tokens<T>(x, nullptr, g, onto, rows, cols, x_stride, g_stride, onto_stride);                                      \
    }
TOKENS_BACKWARD(fake_quant_tokens_backward_f32, float)
TOKENS_BACKWARD(fake_quant_tokens_backward_bf16, bf16)
