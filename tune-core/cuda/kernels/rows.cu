// Rows of matrices: the embedding table and its gradient, gathering and scattering, sums and scaling in place.
//
// launch (unless said otherwise): grid (ceil(cols / W / 256), min(rows, 65535)) with W = 8 (bf16) or 4 (f32), block (256),
//   no shared memory. alignment: any; 16-byte accesses if pointers, strides and cols allow.
#include "common.cuh"

namespace {

// y[to[row]] (+)= scale * x[from[row]], where null stands for the row itself.
template <typename To, typename From, int N>
__device__ __forceinline__ void copy_rows(To *y, const From *x, const unsigned *to, const unsigned *from, long long rows,
                                          long long cols, long long y_stride, long long x_stride, float scale,
                                          int accumulate) {
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        To *target = y + (to ? (long long)to[row] : row) * y_stride;
        const From *source = x + (from ? (long long)from[row] : row) * x_stride;
        for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
             i += (long long)gridDim.x * blockDim.x * N) {
            float a[N];
            load(source + i, a);
#pragma unroll
            for (int j = 0; j < N; j++) a[j] *= scale;
            if (accumulate) {
                float b[N];
                load(target + i, b);
#pragma unroll
                for (int j = 0; j < N; j++) a[j] += b[j];
            }
            store(target + i, a);
        }
    }
}

template <typename To, typename From>
__device__ __forceinline__ void move_rows(To *y, const From *x, const unsigned *to, const unsigned *from, long long rows,
                                          long long cols, long long y_stride, long long x_stride, float scale,
                                          int accumulate) {
    constexpr int N = WIDE<To> > WIDE<From> ? WIDE<To> : WIDE<From>;
    if (is_wide(y, y_stride) && is_wide(x, x_stride) && cols % N == 0)
        copy_rows<To, From, N>(y, x, to, from, rows, cols, y_stride, x_stride, scale, accumulate);
    else copy_rows<To, From, 1>(y, x, to, from, rows, cols, y_stride, x_stride, scale, accumulate);
}

template <typename T, int N>
__device__ __forceinline__ void sum_rows(float *table, const T *g, const unsigned *ids, const unsigned *starts,
                                         const unsigned *positions, long long cols, long long table_stride,
                                         long long g_stride, float scale) {
    const unsigned first = starts[blockIdx.y], end = starts[blockIdx.y + 1];
    float *row = table + (long long)ids[blockIdx.y] * table_stride;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
         i += (long long)gridDim.x * blockDim.x * N) {
        float sum[N], a[N];
        load(row + i, sum);
        for (unsigned at = first; at < end; at++) {
            load(g + (long long)positions[at] * g_stride + i, a);
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += scale * a[j];
        }
        store(row + i, sum);
    }
}

template <typename T>
__device__ __forceinline__ void lookup_backward(float *table, const T *g, const unsigned *ids, const unsigned *starts,
                                                const unsigned *positions, long long cols, long long table_stride,
                                                long long g_stride, float scale) {
    if (is_wide(table, table_stride) && is_wide(g, g_stride) && cols % WIDE<T> == 0)
        sum_rows<T, WIDE<T>>(table, g, ids, starts, positions, cols, table_stride, g_stride, scale);
    else sum_rows<T, 1>(table, g, ids, starts, positions, cols, table_stride, g_stride, scale);
}

// The sums of a block's rows: each row of its threads has every eighth of them, which come together in shared memory.
template <typename T>
__device__ __forceinline__ void column_parts(float *partial, const T *x, long long rows, long long cols, long long stride,
                                             long long rows_of_part) {
    constexpr int N = WIDE<T>, WIDTH = 32 * N;
    float *shared = reinterpret_cast<float *>(shared_memory()), *mine = shared + threadIdx.y * WIDTH;
    const long long first = blockIdx.y * rows_of_part, end = min(rows, first + rows_of_part);
    const long long at = (long long)blockIdx.x * WIDTH, i = at + threadIdx.x * N;
    const bool wide = is_wide(x, stride) && cols % N == 0;
    float sums[N] = {};
    if (wide && i < cols) {
#pragma unroll 4
        for (long long row = first + threadIdx.y; row < end; row += blockDim.y) {
            float a[N];
            load(x + row * stride + i, a);
#pragma unroll
            for (int j = 0; j < N; j++) sums[j] += a[j];
        }
    } else if (i < cols) {
        for (long long row = first + threadIdx.y; row < end; row += blockDim.y)
#pragma unroll
            for (int j = 0; j < N; j++)
                if (i + j < cols) sums[j] += to_f32(x[row * stride + i + j]);
    }
    store(mine + threadIdx.x * N, sums);
    __syncthreads();
    for (int col = threadIdx.y * 32 + threadIdx.x; col < WIDTH && at + col < cols; col += blockDim.y * 32) {
        float sum = 0;
        for (unsigned y = 0; y < blockDim.y; y++) sum += shared[y * WIDTH + col];
        partial[blockIdx.y * cols + at + col] = sum;
    }
}

} // namespace

// y[row] = scale * table[ids[row]].
#define ROWS_LOOKUP(NAME, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *table, const unsigned *ids, long long rows, long long cols, long long y_stride,              \
             long long table_stride, float scale) {                                                                      \
        move_rows<T, T>(y, table, nullptr, ids, rows, cols, y_stride, table_stride, scale, 0);                            \
    }
ROWS_LOOKUP(rows_lookup_f32, float)
ROWS_LOOKUP(rows_lookup_bf16, bf16)

// table[ids[i]] += scale * the sum of g's rows positions[starts[i] .. starts[i + 1]], in that order; table is f32. The ids
// are distinct: sort the rows by id, ids with their rows in ascending order.
// launch: grid (ceil(cols / W / 256), number of distinct ids, at most 65535: call it for parts of ids and starts), block (256).
#define ROWS_LOOKUP_BACKWARD(NAME, T)                                                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(float *table, const T *g, const unsigned *ids, const unsigned *starts, const unsigned *positions,           \
             long long cols, long long table_stride, long long g_stride, float scale) {                                  \
        lookup_backward<T>(table, g, ids, starts, positions, cols, table_stride, g_stride, scale);                        \
    }
ROWS_LOOKUP_BACKWARD(rows_lookup_backward_f32, float)
ROWS_LOOKUP_BACKWARD(rows_lookup_backward_bf16, bf16)

// y[row] = x[from[row]].
#define ROWS_GATHER(NAME, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *x, const unsigned *from, long long rows, long long cols, long long y_stride,                 \
             long long x_stride) {                                                                                       \
        move_rows<T, T>(y, x, nullptr, from, rows, cols, y_stride, x_stride, 1.0f, 0);                                    \
    }
ROWS_GATHER(rows_gather_f32, float)
ROWS_GATHER(rows_gather_bf16, bf16)

// y[to[row]] (+)= x[row], added if `accumulate`; no row of y is named twice.
#define ROWS_SCATTER(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *x, const unsigned *to, long long rows, long long cols, long long y_stride,                   \
             long long x_stride, int accumulate) {                                                                       \
        move_rows<T, T>(y, x, to, nullptr, rows, cols, y_stride, x_stride, 1.0f, accumulate);                             \
    }
ROWS_SCATTER(rows_scatter_f32, float)
ROWS_SCATTER(rows_scatter_bf16, bf16)

// y = scale * x, or y += scale * x if `accumulate`; between f32 and bf16, too: a copy, a conversion, a sum.
#define ROWS_COPY(NAME, TO, FROM)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(TO *y, const FROM *x, long long rows, long long cols, long long y_stride, long long x_stride, float scale,  \
             int accumulate) {                                                                                           \
        move_rows<TO, FROM>(y, x, nullptr, nullptr, rows, cols, y_stride, x_stride, scale, accumulate);                   \
    }
ROWS_COPY(rows_copy_f32_f32, float, float)
ROWS_COPY(rows_copy_bf16_bf16, bf16, bf16)
ROWS_COPY(rows_copy_f32_bf16, float, bf16)
ROWS_COPY(rows_copy_bf16_f32, bf16, float)

// partial[part, i] = the sum of x's column i over rows part * rows_of_part and the following, as many as a part has; to be summed by
// column_sums.
// launch: grid (ceil(cols / W / 32), ceil(rows / rows_of_part)), block (32, 8), dynamic shared bytes 32 * W * 8 * 4.
#define ROWS_COLUMN_PARTS(NAME, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(float *partial, const T *x, long long rows, long long cols, long long stride, long long rows_of_part) {     \
        column_parts<T>(partial, x, rows, cols, stride, rows_of_part);                                                    \
    }
ROWS_COLUMN_PARTS(rows_column_parts_f32, float)
ROWS_COLUMN_PARTS(rows_column_parts_bf16, bf16)
