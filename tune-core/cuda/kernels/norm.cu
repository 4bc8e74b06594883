// Root-mean-square normalization (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467), forward and backward.
//
// A row holds `heads` norms of `width` elements each, side by side (one for the norm of a whole row). The weight is
// `weight_from + weight[i]`: Gemma's counts from one.
//
// launch: block (x, y) with x a multiple of 32 and x * y <= 1024; y norms are handled at once by x threads each.
//   Good: x = 32, y = 8 for width <= 512 (bf16) or 256 (f32); else x = min(1024, width / 8 (f32: / 4) rounded up to 32), y = 1.
// alignment: any; 16-byte accesses if pointers, strides and width allow.
#include "common.cuh"

namespace {

template <typename T, int N>
__device__ __forceinline__ void forward_norm(T *y, T *sum, const T *x, const T *residual, const T *onto, const T *weight,
                                             bool live, int width, float eps, float weight_from, float *shared) {
    float squares = 0;
    if (live) {
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
            float a[N];
            load(x + i, a);
            if (residual) {
                float b[N];
                load(residual + i, b);
#pragma unroll
                for (int j = 0; j < N; j++) a[j] = to_f32(from_f32<T>(a[j] + b[j]));
                store(sum + i, a);
            }
#pragma unroll
            for (int j = 0; j < N; j++) squares += a[j] * a[j];
        }
    }
    const float r = rsqrtf(row_sum(squares, shared) / width + eps);
    if (!live) return;
    // Each thread reads back what it has written itself.
    const T *from = residual ? sum : x;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        float a[N], w[N];
        load(from + i, a);
        load(weight + i, w);
#pragma unroll
        for (int j = 0; j < N; j++) a[j] *= r * (w[j] + weight_from);
        if (onto) {
            float b[N];
            load(onto + i, b);
#pragma unroll
            for (int j = 0; j < N; j++) a[j] += b[j];
        }
        store(y + i, a);
    }
}

// One norm's gradient; `dw` is this thread's share of the weight's, over the elements that it handles.
template <typename T, int N>
__device__ __forceinline__ void backward_norm(T *dx, float *dw, const T *x, const T *g, const T *weight, bool live,
                                              int width, float eps, float weight_from, int accumulate, float *shared) {
    float squares = 0, dot = 0;
    if (live) {
        for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
            float a[N], b[N], w[N];
            load(x + i, a);
            load(g + i, b);
            load(weight + i, w);
#pragma unroll
            for (int j = 0; j < N; j++) {
                squares += a[j] * a[j];
                dot += a[j] * b[j] * (w[j] + weight_from);
            }
        }
    }
    const float r = rsqrtf(row_sum(squares, shared) / width + eps);
    const float c = row_sum(dot, shared) * r * r / width;
    if (!live) return;
    for (int i = threadIdx.x * N; i < width; i += blockDim.x * N) {
        float a[N], b[N], w[N], d[N];
        load(x + i, a);
        load(g + i, b);
        load(weight + i, w);
        if (accumulate) {
            load(dx + i, d);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) d[j] = 0;
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            d[j] += r * (b[j] * (w[j] + weight_from) - a[j] * c);
            if (dw) dw[i + j] += b[j] * a[j] * r;
        }
        store(dx + i, d);
    }
}

template <typename T>
__device__ __forceinline__ void forward(T *y, T *sum, const T *x, const T *residual, const T *onto, const T *weight,
                                        long long rows, long long y_stride, long long sum_stride, long long x_stride,
                                        long long residual_stride, long long onto_stride, int heads, int width, float eps,
                                        float weight_from) {
    float *shared = reinterpret_cast<float *>(shared_memory());
    const bool wide = is_wide(y, y_stride) && is_wide(sum, sum_stride) && is_wide(x, x_stride) &&
                      is_wide(residual, residual_stride) && is_wide(onto, onto_stride) && is_wide(weight, width) &&
                      width % WIDE<T> == 0;
    const long long norm = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    const bool live = norm < rows * heads;
    const long long row = live ? norm / heads : 0, head = live ? norm % heads * width : 0;
    y += row * y_stride + head;
    x += row * x_stride + head;
    if (residual) {
        sum += row * sum_stride + head;
        residual += row * residual_stride + head;
    }
    if (onto) onto += row * onto_stride + head;
    if (wide) forward_norm<T, WIDE<T>>(y, sum, x, residual, onto, weight, live, width, eps, weight_from, shared);
    else forward_norm<T, 1>(y, sum, x, residual, onto, weight, live, width, eps, weight_from, shared);
}

template <typename T>
__device__ __forceinline__ void backward(T *dx, float *partial, const T *x, const T *g, const T *weight, long long rows,
                                         long long dx_stride, long long x_stride, long long g_stride, int heads, int width,
                                         float eps, float weight_from, int accumulate) {
    float *shared = reinterpret_cast<float *>(shared_memory());
    float *sums = shared + blockDim.x / 32 * blockDim.y;
    float *dw = partial ? sums + (long long)threadIdx.y * width : nullptr;
    const bool wide = is_wide(dx, dx_stride) && is_wide(x, x_stride) && is_wide(g, g_stride) && is_wide(weight, width) &&
                      width % WIDE<T> == 0;
    // An element's sum belongs to one thread for as long as the accesses are of one width: no barrier is needed.
    const int step = wide ? WIDE<T> : 1;
    if (dw)
        for (int i = threadIdx.x * step; i < width; i += blockDim.x * step)
            for (int j = 0; j < step; j++) dw[i + j] = 0;
    const long long norms = rows * heads;
    for (long long first = (long long)blockIdx.x * blockDim.y; first < norms; first += (long long)gridDim.x * blockDim.y) {
        const long long norm = first + threadIdx.y;
        const bool live = norm < norms;
        const long long row = live ? norm / heads : 0, head = live ? norm % heads * width : 0;
        T *to = dx + row * dx_stride + head;
        const T *a = x + row * x_stride + head, *b = g + row * g_stride + head;
        if (wide) backward_norm<T, WIDE<T>>(to, dw, a, b, weight, live, width, eps, weight_from, accumulate, shared);
        else backward_norm<T, 1>(to, dw, a, b, weight, live, width, eps, weight_from, accumulate, shared);
    }
    if (!partial) return;
    __syncthreads();
    const int threads = blockDim.x * blockDim.y;
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width; i += threads) {
        float sum = 0;
        for (unsigned part = 0; part < blockDim.y; part++) sum += sums[(long long)part * width + i];
        partial[(long long)blockIdx.x * width + i] = sum;
    }
}

} // namespace

// y = (x + residual) / rms(x + residual) * weight + onto, and sum = x + residual as it was rounded; residual (with sum)
// and onto may be null. sum may be residual's or x's memory, y may be x's or onto's.
// launch: grid (ceil(rows * heads / block.y)), dynamic shared bytes 4 * block.x / 32 * block.y.
#define NORM_FORWARD(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(T *y, T *sum, const T *x, const T *residual, const T *onto, const T *weight, long long rows,                \
             long long y_stride, long long sum_stride, long long x_stride, long long residual_stride,                    \
             long long onto_stride, int heads, int width, float eps, float weight_from) {                                \
        forward<T>(y, sum, x, residual, onto, weight, rows, y_stride, sum_stride, x_stride, residual_stride, onto_stride, \
                   heads, width, eps, weight_from);                                                                       \
    }
NORM_FORWARD(norm_forward_f32, float)
NORM_FORWARD(norm_forward_bf16, bf16)

// dx (+)= r (g w - x r^2 mean(g w x)), with r = 1 / rms(x): added if `accumulate`. partial [grid, width] f32 gets each
// block's share of the weight's gradient, to be summed by column_sums; null if nobody wants it.
// launch: grid (G) with G = min(ceil(rows * heads / block.y), 264 or so: it decides the order of the sums), dynamic
//   shared bytes 4 * block.x / 32 * block.y, and with partial 4 * block.y * width more (at most 227 KiB in all).
#define NORM_BACKWARD(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(T *dx, float *partial, const T *x, const T *g, const T *weight, long long rows, long long dx_stride,        \
             long long x_stride, long long g_stride, int heads, int width, float eps, float weight_from,                 \
             int accumulate) {                                                                                            \
        backward<T>(dx, partial, x, g, weight, rows, dx_stride, x_stride, g_stride, heads, width, eps, weight_from,      \
                    accumulate);                                                                                          \
    }
NORM_BACKWARD(norm_backward_f32, float)
NORM_BACKWARD(norm_backward_bf16, bf16)

// out[i] (+)= the sum over parts of partial [parts, width], in their order.
// launch: grid (ceil(width / 256)), block (256), no shared memory.
extern "C" __global__ void column_sums(float *out, const float *partial, long long parts, long long width, int accumulate) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= width) return;
    float sum = 0;
    for (long long part = 0; part < parts; part++) sum += partial[part * width + i];
    out[i] = accumulate ? out[i] + sum : sum;
}
