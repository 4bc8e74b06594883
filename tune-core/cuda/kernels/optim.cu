// Optimizers over all parameters in one launch, norms and scaling of gradients.
#include "optim.cuh"

namespace {

struct Sgd {
    float lr, scale, momentum, decay;

    __device__ __forceinline__ float step(float w, float g) const {
        return minus(w, times(lr, plus(times(g, scale), times(decay, w))));
    }
    __device__ __forceinline__ float step(float w, float &velocity, float g) const {
        velocity = plus(plus(times(velocity, momentum), times(g, scale)), times(decay, w));
        return minus(w, times(lr, velocity));
    }
};

struct Lion {
    float lr, scale, of_mean, of_gradient, keep_mean, toward_mean, keep;

    __device__ __forceinline__ float step(float w, float &mean, float g) const {
        g = times(g, scale);
        const float direction = plus(times(mean, of_mean), times(g, of_gradient));
        mean = plus(times(mean, keep_mean), times(g, toward_mean));
        // Zero has no sign.
        const float up = direction > 0 ? lr : 0.0f, down = direction < 0 ? lr : 0.0f;
        return plus(minus(times(w, keep), up), down);
    }
};

template <typename W, typename G, int N>
__device__ __forceinline__ void adamw_part(const Parameter &p, const Piece &piece, unsigned from, const AdamW &rule) {
    for (unsigned at = from + threadIdx.x * N; at + N <= piece.count; at += blockDim.x * N) {
        const unsigned long long i = piece.first + at;
        W *weight = static_cast<W *>(p.weight) + i;
        float w[N], m[N], v[N], g[N];
        load(weight, w);
        load(p.first + i, m);
        load(p.second + i, v);
        load(static_cast<const G *>(p.gradient) + i, g);
#pragma unroll
        for (int j = 0; j < N; j++) w[j] = rule.step(w[j], m[j], v[j], g[j]);
        store(p.first + i, m);
        store(p.second + i, v);
        store_weights(weight, p.copy, w, p.key, i);
    }
}

template <typename W, typename G, int N>
__device__ __forceinline__ void sgd_part(const Parameter &p, const Piece &piece, unsigned from, const Sgd &rule) {
    for (unsigned at = from + threadIdx.x * N; at + N <= piece.count; at += blockDim.x * N) {
        const unsigned long long i = piece.first + at;
        W *weight = static_cast<W *>(p.weight) + i;
        float w[N], velocity[N], g[N];
        load(weight, w);
        load(static_cast<const G *>(p.gradient) + i, g);
        if (p.first) {
            load(p.first + i, velocity);
#pragma unroll
            for (int j = 0; j < N; j++) w[j] = rule.step(w[j], velocity[j], g[j]);
            store(p.first + i, velocity);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++) w[j] = rule.step(w[j], g[j]);
        }
        store_weights(weight, p.copy, w, p.key, i);
    }
}

template <typename W, typename G, int N>
__device__ __forceinline__ void lion_part(const Parameter &p, const Piece &piece, unsigned from, const Lion &rule) {
    for (unsigned at = from + threadIdx.x * N; at + N <= piece.count; at += blockDim.x * N) {
        const unsigned long long i = piece.first + at;
        W *weight = static_cast<W *>(p.weight) + i;
        float w[N], mean[N], g[N];
        load(weight, w);
        load(p.first + i, mean);
        load(static_cast<const G *>(p.gradient) + i, g);
#pragma unroll
        for (int j = 0; j < N; j++) w[j] = rule.step(w[j], mean[j], g[j]);
        store(p.first + i, mean);
        store_weights(weight, p.copy, w, p.key, i);
    }
}

// The sum of `x` over the block, in f64.
__device__ __forceinline__ double block_sum(double x) {
    double *sums = reinterpret_cast<double *>(shared_memory());
    sums[threadIdx.x] = x;
    for (unsigned with = blockDim.x / 2; with > 0; with /= 2) {
        __syncthreads();
        if (threadIdx.x < with) sums[threadIdx.x] += sums[threadIdx.x + with];
    }
    __syncthreads();
    return sums[0];
}

} // namespace

// One step of AdamW (Loshchilov & Hutter 2017, https://arxiv.org/abs/1711.05101), in f32 in the order of PyTorch's:
// g *= scale * *device_scale (null: 1); m += (g - m) toward_first; v = v keep_second + toward_second g^2;
// w = w keep - size m / (sqrt(v) / root + eps). toward_first = 1 - beta1, keep_second = beta2, toward_second = 1 - beta2,
// size = lr / (1 - beta1^t), root = sqrt(1 - beta2^t), keep = 1 - lr * decay: computed in f64, then rounded.
// Names end in the type of the weight and that of the gradient. No shared memory.
#define ADAMW(NAME, W, G)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const Parameter *parameters, const Piece *pieces, const float *device_scale, float scale,                   \
             float toward_first, float keep_second, float toward_second, float size, float root, float keep,             \
             float eps) {                                                                                                \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const Parameter p = parameters[piece.parameter];                                                                  \
        if (device_scale) scale *= *device_scale;                                                                         \
        const AdamW rule{scale, toward_first, keep_second, toward_second, size, root, keep, eps};                         \
        const unsigned whole = all_wide(p) ? piece.count / 8 * 8 : 0;                                                     \
        if (whole) adamw_part<W, G, 8>(p, piece, 0, rule);                                                                \
        adamw_part<W, G, 1>(p, piece, whole, rule);                                                                       \
    }
ADAMW(adamw_f32_f32, float, float)
ADAMW(adamw_bf16_f32, bf16, float)
ADAMW(adamw_bf16_bf16, bf16, bf16)
ADAMW(adamw_f32_bf16, float, bf16)

// One step of SGD: v = v momentum + g scale + decay w; w -= lr v. Without a velocity (null) v is g scale + decay w.
// Names end in the type of the weight and that of the gradient. No shared memory.
#define SGD(NAME, W, G)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const Parameter *parameters, const Piece *pieces, const float *device_scale, float lr, float scale,         \
             float momentum, float decay) {                                                                              \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const Parameter p = parameters[piece.parameter];                                                                  \
        if (device_scale) scale *= *device_scale;                                                                         \
        const Sgd rule{lr, scale, momentum, decay};                                                                       \
        const unsigned whole = all_wide(p) ? piece.count / 8 * 8 : 0;                                                     \
        if (whole) sgd_part<W, G, 8>(p, piece, 0, rule);                                                                  \
        sgd_part<W, G, 1>(p, piece, whole, rule);                                                                         \
    }
SGD(sgd_f32_f32, float, float)
SGD(sgd_bf16_f32, bf16, float)
SGD(sgd_bf16_bf16, bf16, bf16)
SGD(sgd_f32_bf16, float, bf16)

// One step of Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675): g *= scale * *device_scale (null: 1);
// d = mean of_mean + g of_gradient; mean = mean keep_mean + g toward_mean; w = w keep - lr sign(d). of_gradient = 1 - of_mean,
// toward_mean = 1 - keep_mean, keep = 1 - lr * decay: computed in f64, then rounded.
// Names end in the type of the weight and that of the gradient. No shared memory.
#define LION(NAME, W, G)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const Parameter *parameters, const Piece *pieces, const float *device_scale, float lr, float scale,         \
             float of_mean, float of_gradient, float keep_mean, float toward_mean, float keep) {                         \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const Parameter p = parameters[piece.parameter];                                                                  \
        if (device_scale) scale *= *device_scale;                                                                         \
        const Lion rule{lr, scale, of_mean, of_gradient, keep_mean, toward_mean, keep};                                   \
        const unsigned whole = all_wide(p) ? piece.count / 8 * 8 : 0;                                                     \
        if (whole) lion_part<W, G, 8>(p, piece, 0, rule);                                                                 \
        lion_part<W, G, 1>(p, piece, whole, rule);                                                                        \
    }
LION(lion_f32_f32, float, float)
LION(lion_bf16_f32, bf16, float)
LION(lion_bf16_bf16, bf16, bf16)
LION(lion_f32_bf16, float, bf16)

// partial[piece] = the sum of the squares of the piece's gradient, f64. Dynamic shared bytes 8 * 256.
#define SQUARED_NORMS(NAME, G)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(double *partial, const Parameter *parameters, const Piece *pieces) {                                        \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const G *g = static_cast<const G *>(parameters[piece.parameter].gradient) + piece.first;                          \
        const unsigned whole = is_wide(g, 0) ? piece.count / WIDE<G> * WIDE<G> : 0;                                       \
        double sum = 0;                                                                                                   \
        for (unsigned i = threadIdx.x * WIDE<G>; i < whole; i += blockDim.x * WIDE<G>) {                                  \
            float x[WIDE<G>], squares = 0;                                                                                \
            load(g + i, x);                                                                                               \
            for (int j = 0; j < WIDE<G>; j++) squares += x[j] * x[j];                                                     \
            sum += squares;                                                                                               \
        }                                                                                                                 \
        for (unsigned i = whole + threadIdx.x; i < piece.count; i += blockDim.x) sum += to_f32(g[i]) * to_f32(g[i]);      \
        sum = block_sum(sum);                                                                                             \
        if (threadIdx.x == 0) partial[blockIdx.x] = sum;                                                                  \
    }
SQUARED_NORMS(squared_norms_f32, float)
SQUARED_NORMS(squared_norms_bf16, bf16)

// norm[0] = scale * sqrt(the sum of partial), and factor[0] = min(1, max_norm / (norm + 1e-6)), as PyTorch clips; max_norm
// <= 0: 1. A norm that is not finite gives a factor that is none. launch: grid (1), block (256), dynamic shared bytes 8 * 256.
extern "C" __global__ void __launch_bounds__(256)
    clip_factor(float *norm, float *factor, const double *partial, long long count, float scale, float max_norm) {
    double sum = 0;
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x != 0) return;
    const double whole = fabs(scale) * sqrt(sum);
    const double clip = max_norm / (whole + 1e-6);
    norm[0] = float(whole);
    factor[0] = max_norm <= 0 || clip >= 1 ? 1.0f : float(clip);
}
