// Softmax, cross-entropy and its gradient, in place over rows of logits.
#include "softcap.cuh"

namespace {

constexpr unsigned IGNORE = 0xffffffffu;

// The largest of some numbers and the sum of e^(x - it).
struct Softmax {
    float most = -INFINITY, sum = 0;

    // A number that is none makes the sum one that is none, too.
    template <int N> __device__ __forceinline__ void add(const float (&x)[N]) {
        float larger = most;
#pragma unroll
        for (int j = 0; j < N; j++) larger = fmaxf(larger, x[j]);
        if (larger > most) sum *= __expf(most - larger), most = larger;
        const float shift = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int j = 0; j < N; j++) sum += __expf(x[j] - shift);
    }
};

// What a token's loss has beside its cross-entropy: the share that asks for all tokens alike, and the factor of the square of
// what softmax divides by, as a logarithm.
struct Beside {
    float smoothing = 0, z = 0;
};

template <typename In, typename Out, bool BESIDE, int N>
__device__ __forceinline__ void loss_of_row(float *losses, In *logits, long long cols, unsigned target, float weight,
                                            float scale, float softcap, Beside beside, bool gradient, float *shared) {
    [[maybe_unused]] float total = 0;
    // From the end to the beginning: what was read last is in the cache still when the gradient is made from the beginning on.
    Softmax mine;
    const long long stretch = (long long)blockDim.x * N, stretches = (cols + stretch - 1) / stretch;
#pragma unroll 2
    for (long long i = (stretches - 1) * stretch + (long long)threadIdx.x * N; i >= 0; i -= stretch) {
        if (i >= cols) continue;
        float x[N];
        load(logits + i, x);
#pragma unroll
        for (int j = 0; j < N; j++) x[j] = capped(x[j], softcap);
        mine.add(x);
        if constexpr (BESIDE) {
#pragma unroll
            for (int j = 0; j < N; j++) total += x[j];
        }
    }
    const float most = row_max(mine.most, shared);
    const float sum = row_sum(mine.most == -INFINITY ? mine.sum : mine.sum * __expf(mine.most - most), shared);
    if constexpr (BESIDE) {
        const float mean = row_sum(total, shared) / float(cols);
        if (threadIdx.x == 0) {
            const float normalizer = logf(sum) + most, right = capped(to_f32(logits[target]), softcap);
            losses[0] = weight * (normalizer - right + beside.smoothing * (right - mean) + beside.z * normalizer * normalizer);
        }
    } else {
        if (threadIdx.x == 0) losses[0] = weight * (logf(sum) + most - capped(to_f32(logits[target]), softcap));
    }
    if (!gradient) return;
    __syncthreads();
    const float inverse = 1.0f / sum, factor = scale * weight;
    // The derivatives by the normalizer, by minus the target's logit, and by minus each logit on top.
    [[maybe_unused]] const float of_normalizer = BESIDE ? 1.0f + 2.0f * beside.z * (logf(sum) + most) : 1.0f;
    [[maybe_unused]] const float of_target = 1.0f - beside.smoothing, of_all = beside.smoothing / float(cols);
    Out *out = reinterpret_cast<Out *>(logits);
    // Element i of the gradient is at or before element i of the logits. Where it is half as large, stretch s of the gradient is
    // where stretch s / 2 of the logits was: once all threads have read stretch s, all of them may write up to stretch 2 s + 1.
    for (long long s = 0; s < stretches; s++) {
        const long long i = s * stretch + (long long)threadIdx.x * N;
        float x[N];
        if (i < cols) {
            load(logits + i, x);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float y = capped(x[j], softcap);
                float p = __expf(y - most) * inverse;
                if constexpr (BESIDE)
                    p = of_normalizer * p - (i + j == target ? of_target : 0.0f) - of_all;
                else
                    p -= i + j == target ? 1.0f : 0.0f;
                x[j] = factor * p * slope(y, softcap);
            }
        }
        if constexpr (sizeof(Out) < sizeof(In))
            if (((s + 2) & (s + 1)) == 0) __syncthreads();
        if (i < cols) store(out + i, x);
    }
}

template <typename In, typename Out, bool BESIDE>
__device__ __forceinline__ void loss(float *losses, In *logits, const unsigned *targets, const float *weights, long long rows,
                                     long long cols, long long stride, int gradient, float scale, const float *device_scale,
                                     float softcap, Beside beside) {
    constexpr int N = WIDE<Out> > WIDE<In> ? WIDE<Out> : WIDE<In>;
    float *shared = reinterpret_cast<float *>(shared_memory());
    if (device_scale) scale *= *device_scale;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        In *mine = logits + row * stride;
        const unsigned target = targets[row];
        const float weight = weights ? weights[row] : 1.0f;
        const bool wide = is_wide(mine, 0) && cols % N == 0;
        if (target == IGNORE || weight == 0.0f) {
            if (threadIdx.x == 0) losses[row] = 0;
            if (gradient)
                for (long long i = threadIdx.x; i < cols; i += blockDim.x) reinterpret_cast<Out *>(mine)[i] = from_f32<Out>(0.0f);
        } else if (wide) {
            loss_of_row<In, Out, BESIDE, N>(losses + row, mine, cols, target, weight, scale, softcap, beside, gradient, shared);
        } else {
            loss_of_row<In, Out, BESIDE, 1>(losses + row, mine, cols, target, weight, scale, softcap, beside, gradient, shared);
        }
        __syncthreads();
    }
}

} // namespace

// losses[row] = weight * -log softmax(logits)[target], and with `gradient` the row's logits become
// scale * weight * (softmax - one at the target), numbers of the second type from the row's beginning on. targets are u32:
// 0xffffffff, or a weight of 0, gives a loss and a gradient of 0. weights may be null: 1. The factor is scale times
// *device_scale, if that is not null. softcap > 0: logits count as softcap * tanh(logit / softcap). Without `gradient` and
// with null weights, -losses are log-probabilities.
// launch: grid (min(rows, 65535) or fewer), block (1024; fewer threads for cols < 8192, a multiple of 32), dynamic shared
//   bytes 4 * block / 32. stride in elements of the logits' type. alignment: any; rows that begin at 16 bytes are fast.
#define LOSS(NAME, IN, OUT)                                                                                               \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(float *losses, IN *logits, const unsigned *targets, const float *weights, const float *device_scale,        \
             long long rows, long long cols, long long stride, int gradient, float scale, float softcap) {               \
        loss<IN, OUT, false>(losses, logits, targets, weights, rows, cols, stride, gradient, scale, device_scale,        \
                             softcap, Beside{});                                                                          \
    }
LOSS(loss_f32_f32, float, float)
LOSS(loss_f32_bf16, float, bf16)
LOSS(loss_bf16_bf16, bf16, bf16)

// The same of a loss that has more: (1 - smoothing) * -log softmax(logits)[target] - smoothing * the mean of log softmax(logits)
// + z * (log sum e^logits)^2 is in the place of -log softmax(logits)[target].
// launch and alignment: as above.
#define TOKEN_LOSS(NAME, IN, OUT)                                                                                         \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(float *losses, IN *logits, const unsigned *targets, const float *weights, const float *device_scale,        \
             long long rows, long long cols, long long stride, int gradient, float scale, float softcap,                 \
             float smoothing, float z) {                                                                                 \
        loss<IN, OUT, true>(losses, logits, targets, weights, rows, cols, stride, gradient, scale, device_scale,         \
                            softcap, Beside{smoothing, z});                                                              \
    }
TOKEN_LOSS(token_loss_f32_f32, float, float)
TOKEN_LOSS(token_loss_f32_bf16, float, bf16)
TOKEN_LOSS(token_loss_bf16_bf16, bf16, bf16)

// out[0] (+)= the sum of x[0 .. n], in f64 and always in the same order.
// launch: grid (1), block (1024), dynamic shared bytes 8 * 1024.
extern "C" __global__ void __launch_bounds__(1024) sum_f32(double *out, const float *x, long long n, int accumulate) {
    double *sums = reinterpret_cast<double *>(shared_memory());
    double sum = 0;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) sum += x[i];
    sums[threadIdx.x] = sum;
    for (unsigned with = blockDim.x / 2; with > 0; with /= 2) {
        __syncthreads();
        if (threadIdx.x < with) sums[threadIdx.x] += sums[threadIdx.x + with];
    }
    if (threadIdx.x == 0) out[0] = accumulate ? out[0] + sums[0] : sums[0];
}
