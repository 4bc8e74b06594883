// Optimizers by which a model has a mean of its weights between steps, and takes gradients elsewhere.
// launch, pieces and rounding: see optim.cuh.
#include "optim.cuh"

namespace {

struct ScheduleFree {
    float scale, lr, keep_second, toward_second, bias, eps, decay, share;

    __device__ __forceinline__ float step(float y, float &z, float &v, float &x, float g) const {
        g = times(g, scale);
        v = plus(times(v, keep_second), times(times(toward_second, g), g));
        const float way = plus(__fdiv_rn(g, plus(__fsqrt_rn(__fdiv_rn(v, bias)), eps)), times(decay, y));
        z = minus(z, times(lr, way));
        x = plus(x, times(minus(z, x), share));
        return x;
    }
};

template <typename W, int N>
__device__ __forceinline__ void between_part(const Parameter &p, const Piece &piece, unsigned from, float share) {
    for (unsigned at = from + threadIdx.x * N; at + N <= piece.count; at += blockDim.x * N) {
        const unsigned long long i = piece.first + at;
        float x[N] = {}, w[N];
        load(static_cast<const float *>(p.gradient) + i, w);
        if (p.first) load(p.first + i, x);
#pragma unroll
        for (int j = 0; j < N; j++) w[j] = p.first ? plus(x[j], times(minus(w[j], x[j]), share)) : w[j];
        store_weights(static_cast<W *>(p.weight) + i, p.copy, w, p.key, i);
    }
}

template <typename W, int N>
__device__ __forceinline__ void schedule_free_part(const Parameter &p, float *third, const Piece &piece, unsigned from,
                                                   const ScheduleFree &rule) {
    for (unsigned at = from + threadIdx.x * N; at + N <= piece.count; at += blockDim.x * N) {
        const unsigned long long i = piece.first + at;
        W *weight = static_cast<W *>(p.weight) + i;
        float w[N], z[N], v[N], x[N], g[N];
        load(weight, w);
        load(p.first + i, z);
        load(p.second + i, v);
        load(third + i, x);
        load(static_cast<const float *>(p.gradient) + i, g);
#pragma unroll
        for (int j = 0; j < N; j++) w[j] = rule.step(w[j], z[j], v[j], x[j], g[j]);
        store(p.first + i, z);
        store(p.second + i, v);
        store(third + i, x);
        store_weights(weight, p.copy, w, p.key, i);
    }
}

template <typename W, int N>
__device__ __forceinline__ void averaged_part(const Parameter &p, const Piece &piece, unsigned from, float share) {
    for (unsigned at = from + threadIdx.x * N; at + N <= piece.count; at += blockDim.x * N) {
        const unsigned long long i = piece.first + at;
        W *weight = static_cast<W *>(p.weight) + i;
        float w[N], mean[N];
        load(weight, w);
        load(p.second + i, mean);
        store(p.first + i, w);
#pragma unroll
        for (int j = 0; j < N; j++) w[j] = mean[j] = plus(mean[j], times(minus(w[j], mean[j]), share));
        store(p.second + i, mean);
        store_weights(weight, p.copy, w, p.key, i);
    }
}

} // namespace

// w = x + (z - x) share, of x in `first` and of z in the place of the gradient, in f32; w = z where there is no `first`.
// Names end in the type of the weight. No shared memory.
#define BETWEEN(NAME, W)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const Parameter *parameters, const Piece *pieces, float share) {                                            \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const Parameter p = parameters[piece.parameter];                                                                  \
        const unsigned whole = all_wide(p) ? piece.count / 8 * 8 : 0;                                                     \
        if (whole) between_part<W, 8>(p, piece, 0, share);                                                                \
        between_part<W, 1>(p, piece, whole, share);                                                                       \
    }
BETWEEN(between_f32, float)
BETWEEN(between_bf16, bf16)

// One step of schedule-free AdamW (Defazio et al. 2024, https://arxiv.org/abs/2405.15682) of the weights y, at which gradients of f32
// were taken: g *= scale; v = v keep_second + toward_second g^2; z -= lr (g / (sqrt(v / bias) + eps) + decay y);
// x += (z - x) share; y = x. z is `first`, v is `second`, and x is thirds[parameter]. keep_second = beta2,
// toward_second = 1 - beta2, bias = 1 - beta2^t: computed in f64, then rounded.
// Names end in the type of the weight. No shared memory.
#define SCHEDULE_FREE(NAME, W)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const Parameter *parameters, const Piece *pieces, float *const *thirds, float scale, float lr,              \
             float keep_second, float toward_second, float bias, float eps, float decay, float share) {                  \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const Parameter p = parameters[piece.parameter];                                                                  \
        float *third = thirds[piece.parameter];                                                                           \
        const ScheduleFree rule{scale, lr, keep_second, toward_second, bias, eps, decay, share};                          \
        const unsigned whole = all_wide(p) && is_wide(third, 0) ? piece.count / 8 * 8 : 0;                                \
        if (whole) schedule_free_part<W, 8>(p, third, piece, 0, rule);                                                    \
        schedule_free_part<W, 1>(p, third, piece, whole, rule);                                                           \
    }
SCHEDULE_FREE(schedule_free_f32, float)
SCHEDULE_FREE(schedule_free_bf16, bf16)

// Keeps the weights w in `first`, and puts their mean in their place: mean += (w - mean) share, in `second`.
// Names end in the type of the weight. No shared memory.
#define AVERAGED(NAME, W)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(const Parameter *parameters, const Piece *pieces, float share) {                                            \
        const Piece piece = pieces[blockIdx.x];                                                                           \
        const Parameter p = parameters[piece.parameter];                                                                  \
        const unsigned whole = all_wide(p) ? piece.count / 8 * 8 : 0;                                                     \
        if (whole) averaged_part<W, 8>(p, piece, 0, share);                                                               \
        averaged_part<W, 1>(p, piece, whole, share);                                                                      \
    }
AVERAGED(averaged_f32, float)
AVERAGED(averaged_bf16, bf16)
