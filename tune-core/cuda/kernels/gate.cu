// The gated activations of MLPs (Shazeer 2020, https://arxiv.org/abs/2002.05202): act(gate) * up, with SiLU or the
// approximation of GELU by tanh.
#include "common.cuh"

namespace {

constexpr int SILU = 0;

// The activation's value and its derivative.
__device__ __forceinline__ float2 activation(int which, float x) {
    if (which == SILU) {
        const float s = __fdividef(1.0f, 1.0f + __expf(-x));
        return make_float2(x * s, s + x * s * (1.0f - s));
    }
    constexpr float ROOT = 0.7978845608f, CUBE = 0.044715f; // the root of 2 / pi
    const float t = fast_tanh(ROOT * (x + CUBE * x * x * x));
    const float slope = ROOT * (1.0f + 3.0f * CUBE * x * x);
    return make_float2(0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * slope);
}

template <typename T, int N>
__device__ __forceinline__ void forward_rows(T *y, const T *gate, const T *up, long long rows, long long cols,
                                             long long y_stride, long long gate_stride, long long up_stride, int which) {
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
             i += (long long)gridDim.x * blockDim.x * N) {
            float g[N], u[N];
            load(gate + row * gate_stride + i, g);
            load(up + row * up_stride + i, u);
#pragma unroll
            for (int j = 0; j < N; j++) u[j] *= activation(which, g[j]).x;
            store(y + row * y_stride + i, u);
        }
    }
}

template <typename T, int N>
__device__ __forceinline__ void backward_rows(T *gate, T *up, T *grad, long long rows, long long cols, long long gate_stride,
                                              long long up_stride, long long grad_stride, int which) {
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < cols;
             i += (long long)gridDim.x * blockDim.x * N) {
            float g[N], u[N], d[N];
            load(gate + row * gate_stride + i, g);
            load(up + row * up_stride + i, u);
            load(grad + row * grad_stride + i, d);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float2 a = activation(which, g[j]);
                const float of_gate = d[j] * u[j] * a.y, of_up = d[j] * a.x, y = a.x * u[j];
                g[j] = of_gate, u[j] = of_up, d[j] = y;
            }
            store(gate + row * gate_stride + i, g);
            store(up + row * up_stride + i, u);
            store(grad + row * grad_stride + i, d);
        }
    }
}

template <typename T>
__device__ __forceinline__ void forward(T *y, const T *gate, const T *up, long long rows, long long cols, long long y_stride,
                                        long long gate_stride, long long up_stride, int which) {
    const bool wide = is_wide(y, y_stride) && is_wide(gate, gate_stride) && is_wide(up, up_stride) && cols % WIDE<T> == 0;
    if (wide) forward_rows<T, WIDE<T>>(y, gate, up, rows, cols, y_stride, gate_stride, up_stride, which);
    else forward_rows<T, 1>(y, gate, up, rows, cols, y_stride, gate_stride, up_stride, which);
}

template <typename T>
__device__ __forceinline__ void backward(T *gate, T *up, T *grad, long long rows, long long cols, long long gate_stride,
                                         long long up_stride, long long grad_stride, int which) {
    const bool wide =
        is_wide(gate, gate_stride) && is_wide(up, up_stride) && is_wide(grad, grad_stride) && cols % WIDE<T> == 0;
    if (wide) backward_rows<T, WIDE<T>>(gate, up, grad, rows, cols, gate_stride, up_stride, grad_stride, which);
    else backward_rows<T, 1>(gate, up, grad, rows, cols, gate_stride, up_stride, grad_stride, which);
}

} // namespace

// y = act(gate) * up for matrices [rows, cols]; which is 0 for SiLU, 1 for GELU by tanh.
// launch: grid (ceil(cols / W / 256), min(rows, 65535)) with W = 8 (bf16) or 4 (f32), block (256), no shared memory.
//   alignment: any; 16-byte accesses if pointers, strides and cols allow. y may be gate's or up's memory.
#define GATE_FORWARD(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const T *gate, const T *up, long long rows, long long cols, long long y_stride, long long gate_stride, \
             long long up_stride, int which) {                                                                            \
        forward<T>(y, gate, up, rows, cols, y_stride, gate_stride, up_stride, which);                                     \
    }
GATE_FORWARD(gate_forward_f32, float)
GATE_FORWARD(gate_forward_bf16, bf16)

// Replaces gate and up by their gradients, for the gradient grad of y, and grad by y itself. Launched as gate_forward.
#define GATE_BACKWARD(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *gate, T *up, T *grad, long long rows, long long cols, long long gate_stride, long long up_stride,        \
             long long grad_stride, int which) {                                                                          \
        backward<T>(gate, up, grad, rows, cols, gate_stride, up_stride, grad_stride, which);                              \
    }
GATE_BACKWARD(gate_backward_f32, float)
GATE_BACKWARD(gate_backward_bf16, bf16)
