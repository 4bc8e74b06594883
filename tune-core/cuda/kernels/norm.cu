// Root-mean-square normalization (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467), forward and backward.
//
// A row holds `heads` norms of `width` elements each, side by side (one for the norm of a whole row). The weight is
// `weight_from + weight[i]`: Gemma's counts from one. A thread keeps up to 32 elements of a norm in registers, so that memory
// is read once; only rows that are not aligned to 16 bytes are read again.
//
// launch: block (x, y): x threads for each of y norms, x = 8, 16 or a multiple of 32, x * y a multiple of 32 and at most 512,
//   x >= width / 32. Good: up to a width of 256 x = width / 8 rounded up to 8, 16 or 32, y = 256 / x; above it
//   x = width / 32 rounded up to a multiple of 32 (512 at most), y = max(1, 128 / x).
// alignment: any; 16-byte accesses if pointers, strides and width allow.
#include "common.cuh"

namespace {

constexpr int KEPT = 32; // elements of a norm that a thread has

// Calls f(chunk, i) for the thread's chunks of N elements from i on, those that are there.
template <int N, typename F> __device__ __forceinline__ void each_chunk(int width, F f) {
#pragma unroll
    for (int chunk = 0; chunk < KEPT / N; chunk++) {
        const int i = (chunk * blockDim.x + threadIdx.x) * N;
        if (i < width) f(chunk, i);
    }
}

template <typename T, int N>
__device__ __forceinline__ void forward_norm(T *y, T *sum, const T *x, const T *residual, const T *onto, const T *weight,
                                             bool live, int width, float eps, float weight_from, float *shared) {
    float a[KEPT / N][N], squares = 0;
    const int mine = live ? width : 0;
    each_chunk<N>(mine, [&](int chunk, int i) { load(x + i, a[chunk]); });
    if (residual) {
        each_chunk<N>(mine, [&](int chunk, int i) {
            float b[N];
            load(residual + i, b);
#pragma unroll
            for (int j = 0; j < N; j++) a[chunk][j] = to_f32(from_f32<T>(a[chunk][j] + b[j]));
            store(sum + i, a[chunk]);
        });
    }
    each_chunk<N>(mine, [&](int chunk, int) {
#pragma unroll
        for (int j = 0; j < N; j++) squares += a[chunk][j] * a[chunk][j];
    });
    const float r = rsqrtf(row_sum(squares, shared) / width + eps);
    each_chunk<N>(mine, [&](int chunk, int i) {
        float w[N];
        load(weight + i, w);
#pragma unroll
        for (int j = 0; j < N; j++) a[chunk][j] *= r * (w[j] + weight_from);
        if (onto) {
            load(onto + i, w);
#pragma unroll
            for (int j = 0; j < N; j++) a[chunk][j] += w[j];
        }
        store(y + i, a[chunk]);
    });
}

// One norm's gradient; `dw` is this thread's share of the weight's. All that is read is asked for before anything is summed.
template <typename T, int N, bool WEIGHT>
__device__ __forceinline__ void backward_norm(T *dx, float (&dw)[KEPT / N][N], const T *x, const T *g, const T *weight, bool live,
                                              int width, float eps, float weight_from, int accumulate, float2 *shared) {
    static_assert(N == WIDE<T>);
    // Of f32 there is no room for it.
    constexpr bool EARLY = sizeof(T) < 4;
    uint4 a[KEPT / N], b[KEPT / N], before[EARLY ? KEPT / N : 1];
    const int mine = live ? width : 0;
    each_chunk<N>(mine, [&](int chunk, int i) {
        a[chunk] = load_raw(x + i);
        b[chunk] = load_raw(g + i);
    });
    if constexpr (EARLY)
        if (accumulate) each_chunk<N>(mine, [&](int chunk, int i) { before[chunk] = load_raw(dx + i); });
    float2 sums = make_float2(0, 0);
    each_chunk<N>(mine, [&](int chunk, int i) {
        float w[N], of_x[N], of_g[N];
        load(weight + i, w);
        widen<T>(a[chunk], of_x);
        widen<T>(b[chunk], of_g);
#pragma unroll
        for (int j = 0; j < N; j++) {
            sums.x += of_x[j] * of_x[j];
            sums.y += of_x[j] * of_g[j] * (w[j] + weight_from);
        }
    });
    sums = row_sums(sums, shared);
    const float r = rsqrtf(sums.x / width + eps);
    const float c = sums.y * r * r / width;
    each_chunk<N>(mine, [&](int chunk, int i) {
        float w[N], d[N], of_x[N], of_g[N];
        load(weight + i, w);
        widen<T>(a[chunk], of_x);
        widen<T>(b[chunk], of_g);
        if (accumulate) {
            if constexpr (EARLY) widen<T>(before[chunk], d);
            else load(dx + i, d);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) d[j] = 0;
        }
#pragma unroll
        for (int j = 0; j < N; j++) {
            d[j] += r * (of_g[j] * (w[j] + weight_from) - of_x[j] * c);
            if constexpr (WEIGHT) dw[chunk][j] += of_g[j] * of_x[j] * r;
        }
        store(dx + i, d);
    });
}

// The same for rows that are not aligned: one element at a time, read twice. What is kept between the two is `sum`, if any.
template <typename T>
__device__ __forceinline__ void forward_unaligned(T *y, T *sum, const T *x, const T *residual, const T *onto, const T *weight,
                                                  bool live, int width, float eps, float weight_from, float *shared) {
    const int end = live ? width : 0;
    float squares = 0;
    for (int i = threadIdx.x; i < end; i += blockDim.x) {
        T a = x[i];
        if (residual) a = sum[i] = from_f32<T>(to_f32(a) + to_f32(residual[i]));
        squares += to_f32(a) * to_f32(a);
    }
    const float r = rsqrtf(row_sum(squares, shared) / width + eps);
    for (int i = threadIdx.x; i < end; i += blockDim.x) {
        const float a = to_f32(residual ? sum[i] : x[i]) * r * (to_f32(weight[i]) + weight_from);
        y[i] = from_f32<T>(onto ? a + to_f32(onto[i]) : a);
    }
}

// `dw` is in shared memory here; an element's sum belongs to one thread, so no barrier is needed.
template <typename T>
__device__ __forceinline__ void backward_unaligned(T *dx, float *dw, const T *x, const T *g, const T *weight, bool live, int width,
                                                   float eps, float weight_from, int accumulate, float2 *shared) {
    const int end = live ? width : 0;
    float2 sums = make_float2(0, 0);
    for (int i = threadIdx.x; i < end; i += blockDim.x) {
        sums.x += to_f32(x[i]) * to_f32(x[i]);
        sums.y += to_f32(x[i]) * to_f32(g[i]) * (to_f32(weight[i]) + weight_from);
    }
    sums = row_sums(sums, shared);
    const float r = rsqrtf(sums.x / width + eps);
    const float c = sums.y * r * r / width;
    for (int i = threadIdx.x; i < end; i += blockDim.x) {
        const float d = r * (to_f32(g[i]) * (to_f32(weight[i]) + weight_from) - to_f32(x[i]) * c);
        if (dw) dw[i] += to_f32(g[i]) * to_f32(x[i]) * r;
        dx[i] = from_f32<T>(accumulate ? to_f32(dx[i]) + d : d);
    }
}

// The places of norm `number`, row by row.
struct Place {
    long long row;
    int head;
    __device__ __forceinline__ Place(long long number, int heads, int width)
        : row(heads == 1 ? number : number / heads), head(heads == 1 ? 0 : int(number - row * heads) * width) {}
};

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
    const Place at(live ? norm : 0, heads, width);
    y += at.row * y_stride + at.head;
    x += at.row * x_stride + at.head;
    if (residual) {
        sum += at.row * sum_stride + at.head;
        residual += at.row * residual_stride + at.head;
    }
    if (onto) onto += at.row * onto_stride + at.head;
    if (wide) forward_norm<T, WIDE<T>>(y, sum, x, residual, onto, weight, live, width, eps, weight_from, shared);
    else forward_unaligned(y, sum, x, residual, onto, weight, live, width, eps, weight_from, shared);
}

// Adds the parts of the weight's gradient that the block's norms have in shared memory.
__device__ __forceinline__ void write_partial(float *partial, const float *sums, int width) {
    __syncthreads();
    for (int i = threadIdx.y * blockDim.x + threadIdx.x; i < width; i += blockDim.x * blockDim.y) {
        float sum = 0;
        for (unsigned part = 0; part < blockDim.y; part++) sum += sums[(long long)part * width + i];
        partial[(long long)blockIdx.x * width + i] = sum;
    }
}

template <typename T>
__device__ __forceinline__ void backward(T *dx, float *partial, const T *x, const T *g, const T *weight, long long rows,
                                         long long dx_stride, long long x_stride, long long g_stride, int heads, int width,
                                         float eps, float weight_from, int accumulate) {
    constexpr int N = WIDE<T>;
    float2 *shared = reinterpret_cast<float2 *>(shared_memory());
    float *sums = reinterpret_cast<float *>(shared + blockDim.x / 32 * blockDim.y), *mine = sums + (long long)threadIdx.y * width;
    const bool wide =
        is_wide(dx, dx_stride) && is_wide(x, x_stride) && is_wide(g, g_stride) && is_wide(weight, width) && width % N == 0;
    // Calls f(live, dx, x, g) for each of the thread's norms; all of the block as often.
    const auto each_norm = [&](auto f) {
        const long long norms = rows * heads;
        for (long long first = (long long)blockIdx.x * blockDim.y; first < norms; first += (long long)gridDim.x * blockDim.y) {
            const bool live = first + threadIdx.y < norms;
            const Place at(live ? first + threadIdx.y : 0, heads, width);
            f(live, dx + at.row * dx_stride + at.head, x + at.row * x_stride + at.head, g + at.row * g_stride + at.head);
        }
    };
    if (wide && partial) {
        float dw[KEPT / N][N] = {};
        each_norm([&](bool live, T *dx, const T *x, const T *g) {
            backward_norm<T, N, true>(dx, dw, x, g, weight, live, width, eps, weight_from, accumulate, shared);
        });
        each_chunk<N>(width, [&](int chunk, int i) {
#pragma unroll
            for (int j = 0; j < N; j++) mine[i + j] = dw[chunk][j];
        });
    } else if (wide) {
        float none[KEPT / N][N];
        each_norm([&](bool live, T *dx, const T *x, const T *g) {
            backward_norm<T, N, false>(dx, none, x, g, weight, live, width, eps, weight_from, accumulate, shared);
        });
    } else {
        if (partial)
            for (int i = threadIdx.x; i < width; i += blockDim.x) mine[i] = 0;
        each_norm([&](bool live, T *dx, const T *x, const T *g) {
            backward_unaligned(dx, partial ? mine : nullptr, x, g, weight, live, width, eps, weight_from, accumulate, shared);
        });
    }
    if (partial) write_partial(partial, sums, width);
}

} // namespace

// y = (x + residual) / rms(x + residual) * weight + onto, and sum = x + residual as it was rounded; residual (with sum)
// and onto may be null. sum may be residual's or x's memory, y may be x's or onto's.
// launch: grid (ceil(rows * heads / block.y)), dynamic shared bytes 4 * (block.x / 32) * block.y.
#define NORM_FORWARD(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(512)                                                                     \
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
// launch: grid (G) with G = min(ceil(rows * heads / block.y), 528 or so: it decides the order of
//   the sums; without partial any number), dynamic shared bytes 8 * (block.x / 32) * block.y, and with partial
//   4 * block.y * width more.
#define NORM_BACKWARD(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(512)                                                                     \
        NAME(T *dx, float *partial, const T *x, const T *g, const T *weight, long long rows, long long dx_stride,        \
             long long x_stride, long long g_stride, int heads, int width, float eps, float weight_from,                 \
             int accumulate) {                                                                                            \
        backward<T>(dx, partial, x, g, weight, rows, dx_stride, x_stride, g_stride, heads, width, eps, weight_from,      \
                    accumulate);                                                                                          \
    }
NORM_BACKWARD(norm_backward_f32, float)
NORM_BACKWARD(norm_backward_bf16, bf16)

// out[i] (+)= the sum over parts of partial [parts, width], always in the same order.
// launch: grid (ceil(width / 32)), block (32, 32), dynamic shared bytes 4096.
extern "C" __global__ void __launch_bounds__(1024)
    column_sums(float *out, const float *partial, long long parts, long long width, int accumulate) {
    float *sums = reinterpret_cast<float *>(shared_memory());
    const long long i = (long long)blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    if (i < width)
        for (long long part = threadIdx.y; part < parts; part += 32) sum += partial[part * width + i];
    sums[threadIdx.y * 32 + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y != 0 || i >= width) return;
    sum = accumulate ? out[i] : 0.0f;
    for (int y = 0; y < 32; y++) sum += sums[y * 32 + threadIdx.x];
    out[i] = sum;
}
