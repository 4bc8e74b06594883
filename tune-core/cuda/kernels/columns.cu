// Results that are scaled column by column: a trained magnitude over the norm of a weight's row with its adapter (DoRA).
//
// alignment: any; 16-byte accesses if pointers, strides and cols allow.
#include "common.cuh"

namespace {

template <typename T>
__device__ __forceinline__ void factors_of_rows(float *factors, const float *magnitudes, const float *squares, const T *b,
                                                const float *with_weight, const float *with_itself, long long out, int rank,
                                                float scale) {
    const long long row = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= out) return;
    const T *mine = b + row * rank;
    double sum = 0;
    for (int i = threadIdx.x % 32; i < rank; i += 32) {
        float own = 0;
        // The matrix is symmetric: neighbours read neighbours.
        for (int k = 0; k < rank; k++) own += with_itself[(long long)k * rank + i] * to_f32(mine[k]);
        sum += (double)scale * to_f32(mine[i]) * (2.0 * with_weight[i * out + row] + (double)scale * own);
    }
#pragma unroll
    for (int with = 16; with > 0; with /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, with);
    if (threadIdx.x % 32 != 0) return;
    const double square = squares[row] + sum;
    // A row of zeros has no direction, and stays as it is.
    const double inverse = square > 0 ? 1.0 / sqrt(square) : 0.0;
    factors[row] = square > 0 ? (float)(magnitudes[row] * inverse) : 1.0f;
    factors[out + row] = (float)inverse;
}

template <typename T, int N>
__device__ __forceinline__ void scale(T *y, const T *x, const T *onto, const float *factors, long long rows, long long cols,
                                      long long y_stride, long long x_stride, long long onto_stride) {
    for (long long row = blockIdx.y; row < rows; row += gridDim.y)
        for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
             i += (long long)gridDim.x * blockDim.x * N) {
            float a[N], f[N], before[N];
            load(x + row * x_stride + i, a), load(factors + i, f);
#pragma unroll
            for (int j = 0; j < N; j++) before[j] = 0;
            if (onto) load(onto + row * onto_stride + i, before);
#pragma unroll
            for (int j = 0; j < N; j++) a[j] = a[j] * f[j] + before[j];
            store(y + row * y_stride + i, a);
        }
}

template <typename T, int N>
__device__ __forceinline__ void dots(float *partial, const T *a, const T *b, const float *factors, long long rows,
                                     long long cols, long long a_stride, long long b_stride) {
    const long long each = (rows + gridDim.y - 1) / gridDim.y, first = blockIdx.y * each, end = min(first + each, rows);
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
         i += (long long)gridDim.x * blockDim.x * N) {
        float sum[N], p[N], q[N];
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] = 0;
        for (long long row = first; row < end; row++) {
            load(a + row * a_stride + i, p), load(b + row * b_stride + i, q);
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += p[j] * q[j];
        }
#pragma unroll
        for (int j = 0; j < N; j++) partial[blockIdx.y * cols + i + j] = factors[i + j] * sum[j];
    }
}

} // namespace

// factors [2, out]: magnitudes over norms, and one over norms. norms are those of the rows of W + scale * B A, of which
// squares [out] has the squares of the norms of W alone; with_weight [rank, out] is A W^T, with_itself [rank, rank] A A^T, and b
// [out, rank]. For a norm of zero: 1 and 0.
// launch: grid (ceil(out / 8)), block (256), no shared memory.
#define COLUMNS_FACTORS(NAME, T)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(float *factors, const float *magnitudes, const float *squares, const T *b, const float *with_weight,        \
             const float *with_itself, long long out, int rank, float scale) {                                           \
        factors_of_rows<T>(factors, magnitudes, squares, b, with_weight, with_itself, out, rank, scale);                 \
    }
COLUMNS_FACTORS(columns_factors_f32, float)
COLUMNS_FACTORS(columns_factors_bf16, bf16)

// y = x * factors [cols] + onto (null: 0), column by column; y may be x's or onto's memory.
// launch: grid (ceil(cols / W / 256), min(rows, 65535)) with W = 8 (bf16) or 4 (f32), block (256), no shared memory.
#define COLUMNS_SCALE(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *x, const T *onto, const float *factors, long long rows, long long cols, long long y_stride,  \
             long long x_stride, long long onto_stride) {                                                                \
        if (is_wide(y, y_stride) && is_wide(x, x_stride) && is_wide(onto, onto_stride) && is_wide(factors, 0) &&         \
            cols % WIDE<T> == 0)                                                                                         \
            scale<T, WIDE<T>>(y, x, onto, factors, rows, cols, y_stride, x_stride, onto_stride);                         \
        else scale<T, 1>(y, x, onto, factors, rows, cols, y_stride, x_stride, onto_stride);                              \
    }
COLUMNS_SCALE(columns_scale_f32, float)
COLUMNS_SCALE(columns_scale_bf16, bf16)

// partial [parts, cols] = factors [cols] times the products of the columns of a with those of b, over a part of the rows each;
// column_sums sums the parts.
// launch: grid (ceil(cols / W / 128), parts) with W as above, block (128), no shared memory. parts decides the order of the sums.
#define COLUMNS_DOTS(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128)                                                                     \
        NAME(float *partial, const T *a, const T *b, const float *factors, long long rows, long long cols,               \
             long long a_stride, long long b_stride) {                                                                   \
        if (is_wide(a, a_stride) && is_wide(b, b_stride) && cols % WIDE<T> == 0)                                         \
            dots<T, WIDE<T>>(partial, a, b, factors, rows, cols, a_stride, b_stride);                                    \
        else dots<T, 1>(partial, a, b, factors, rows, cols, a_stride, b_stride);                                         \
    }
COLUMNS_DOTS(columns_dots_f32, float)
COLUMNS_DOTS(columns_dots_bf16, bf16)
