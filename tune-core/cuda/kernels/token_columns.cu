// Columns of a matrix that stand apart: the logits of tokens whose rows are trained beside a frozen table, and their gradients.
// launch of all kernels here: grid (ceil(count / 256), min(rows, 65535)), block (256), no shared memory. strides in elements.
//   alignment: any. No column may be named twice.
#include "common.cuh"

namespace {

template <typename T>
__device__ __forceinline__ void take(T *y, T *x, const unsigned *columns, long long rows, long long count, long long stride) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        T *from = x + row * stride + columns[i];
        y[row * count + i] = *from;
        *from = from_f32<T>(0.0f);
    }
}

} // namespace

// y[row, columns[i]] = x[row, i], of x without gaps.
extern "C" __global__ void __launch_bounds__(256) put_columns_f32(float *y, const float *x, const unsigned *columns, long long rows,
                                                                  long long count, long long stride) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) y[row * stride + columns[i]] = x[row * count + i];
}

// y[row, i] = x[row, columns[i]], of y without gaps; x is zero there then.
#define TAKE_COLUMNS(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, T *x, const unsigned *columns, long long rows, long long count, long long stride) {                   \
        take<T>(y, x, columns, rows, count, stride);                                                                      \
    }
TAKE_COLUMNS(take_columns_f32, float)
TAKE_COLUMNS(take_columns_bf16, bf16)
