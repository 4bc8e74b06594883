// Dropout without a stored mask: an element's fate is a function of a key and its index.
#include "common.cuh"

namespace {

template <typename T, int N>
__device__ __forceinline__ void drop_rows(T *y, const T *x, const T *onto, const unsigned *indices, long long rows,
                                          long long cols, long long y_stride, long long x_stride, long long onto_stride,
                                          float factor, unsigned long long threshold, unsigned long long key) {
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        const unsigned long long first = (unsigned long long)(indices ? indices[row] : row) * cols;
        for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
             i += (long long)gridDim.x * blockDim.x * N) {
            float a[N];
            load(x + row * x_stride + i, a);
#pragma unroll
            for (int j = 0; j < N; j++) a[j] *= (mix(key, first + i + j) >> 11) < threshold ? 0.0f : factor;
            if (onto) {
                float b[N];
                load(onto + row * onto_stride + i, b);
#pragma unroll
                for (int j = 0; j < N; j++) a[j] += b[j];
            }
            store(y + row * y_stride + i, a);
        }
    }
}

template <typename T>
__device__ __forceinline__ void dropout(T *y, const T *x, const T *onto, const unsigned *indices, long long rows,
                                        long long cols, long long y_stride, long long x_stride, long long onto_stride,
                                        float factor, unsigned long long threshold, unsigned long long key) {
    if (is_wide(y, y_stride) && is_wide(x, x_stride) && is_wide(onto, onto_stride) && cols % WIDE<T> == 0)
        drop_rows<T, WIDE<T>>(y, x, onto, indices, rows, cols, y_stride, x_stride, onto_stride, factor, threshold, key);
    else drop_rows<T, 1>(y, x, onto, indices, rows, cols, y_stride, x_stride, onto_stride, factor, threshold, key);
}

} // namespace

// y = onto + dropped(x) for matrices [rows, cols]; onto and indices may be null, y may be x's or onto's memory. Element j of a
// row i counts as element indices[i] * cols + j. It is 0 if (mix(key, index) >> 11) < threshold, else times factor: for a
// probability p pass threshold = ceil(p * 2^53) and factor = (float)(1 / (1 - p)).
// launch: grid (ceil(cols / W / 256), min(rows, 65535)) with W = 8 (bf16) or 4 (f32), block (256), no shared memory.
//   alignment: any; 16-byte accesses if pointers, strides and cols allow.
#define DROPOUT(NAME, T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *x, const T *onto, const unsigned *indices, long long rows, long long cols,                   \
             long long y_stride, long long x_stride, long long onto_stride, float factor, unsigned long long threshold,  \
             unsigned long long key) {                                                                                   \
        dropout<T>(y, x, onto, indices, rows, cols, y_stride, x_stride, onto_stride, factor, threshold, key);             \
    }
DROPOUT(dropout_f32, float)
DROPOUT(dropout_bf16, bf16)
