// What goes by the routes of a mixture of experts: sums over the places of a token, factors of rows, products of rows.
//
// alignment: any; 16-byte accesses if pointers, strides and cols allow.
#include "common.cuh"

namespace {

template <typename T, int N>
__device__ __forceinline__ void combine(T *y, const T *x, const T *onto, const unsigned *places, const float *weights,
                                        long long tokens, long long cols, long long y_stride, long long x_stride,
                                        long long onto_stride, int chosen) {
    for (long long token = blockIdx.y; token < tokens; token += gridDim.y)
        for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
             i += (long long)gridDim.x * blockDim.x * N) {
            float sum[N], a[N];
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] = 0;
            if (onto) load(onto + token * onto_stride + i, sum);
            for (int k = 0; k < chosen; k++) {
                const long long at = token * chosen + k;
                const float weight = weights ? weights[at] : 1.0f;
                load(x + (long long)places[at] * x_stride + i, a);
#pragma unroll
                for (int j = 0; j < N; j++) sum[j] += weight * a[j];
            }
            store(y + token * y_stride + i, sum);
        }
}

template <typename T, int N>
__device__ __forceinline__ void scale(T *x, const float *factors, long long rows, long long cols, long long stride) {
    for (long long row = blockIdx.y; row < rows; row += gridDim.y)
        for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
             i += (long long)gridDim.x * blockDim.x * N) {
            float a[N];
            load(x + row * stride + i, a);
#pragma unroll
            for (int j = 0; j < N; j++) a[j] *= factors[row];
            store(x + row * stride + i, a);
        }
}

template <typename T, int N>
__device__ __forceinline__ void dots(float *y, const T *a, const T *b, long long rows, long long cols, long long a_stride,
                                     long long b_stride) {
    float *shared = reinterpret_cast<float *>(shared_memory());
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        float sum = 0;
        for (long long i = (long long)threadIdx.x * N; i < cols; i += (long long)blockDim.x * N) {
            float p[N], q[N];
            load(a + row * a_stride + i, p);
            load(b + row * b_stride + i, q);
#pragma unroll
            for (int j = 0; j < N; j++) sum += p[j] * q[j];
        }
        sum = row_sum(sum, shared);
        if (threadIdx.x == 0) y[row] = sum;
    }
}

} // namespace

// y[token] = onto[token] (null: 0) + the sum of weights[i] (null: 1) x[places[i]] over the token's `chosen` places, in that order.
// launch: grid (ceil(cols / W / 256), min(tokens, 65535)) with W = 8 (bf16) or 4 (f32), block (256), no shared memory.
#define EXPERTS_COMBINE(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *x, const T *onto, const unsigned *places, const float *weights, long long tokens,            \
             long long cols, long long y_stride, long long x_stride, long long onto_stride, int chosen) {                \
        if (is_wide(y, y_stride) && is_wide(x, x_stride) && is_wide(onto, onto_stride) && cols % WIDE<T> == 0)           \
            combine<T, WIDE<T>>(y, x, onto, places, weights, tokens, cols, y_stride, x_stride, onto_stride, chosen);     \
        else combine<T, 1>(y, x, onto, places, weights, tokens, cols, y_stride, x_stride, onto_stride, chosen);          \
    }
EXPERTS_COMBINE(experts_combine_f32, float)
EXPERTS_COMBINE(experts_combine_bf16, bf16)

// x[row] *= factors[row]. launch: as above, with rows for tokens.
#define EXPERTS_SCALE(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *x, const float *factors, long long rows, long long cols, long long stride) {                             \
        if (is_wide(x, stride) && cols % WIDE<T> == 0) scale<T, WIDE<T>>(x, factors, rows, cols, stride);                \
        else scale<T, 1>(x, factors, rows, cols, stride);                                                                \
    }
EXPERTS_SCALE(experts_scale_f32, float)
EXPERTS_SCALE(experts_scale_bf16, bf16)

// y[row] = the sum of a[row] b[row]. launch: grid (min(rows, 65535)), block (128), dynamic shared bytes 4 * 4.
#define EXPERTS_DOTS(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128)                                                                     \
        NAME(float *y, const T *a, const T *b, long long rows, long long cols, long long a_stride, long long b_stride) { \
        if (is_wide(a, a_stride) && is_wide(b, b_stride) && cols % WIDE<T> == 0)                                         \
            dots<T, WIDE<T>>(y, a, b, rows, cols, a_stride, b_stride);                                                   \
        else dots<T, 1>(y, a, b, rows, cols, a_stride, b_stride);                                                        \
    }
EXPERTS_DOTS(experts_dots_f32, float)
EXPERTS_DOTS(experts_dots_bf16, bf16)
