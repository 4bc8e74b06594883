// A student's cross-entropy, its divergence from a teacher, of which all logits or the likeliest tokens are known, and the
// gradient of their mixture, in place over rows of the student's logits; and logits that are capped.
#include "softcap.cuh"

namespace {

// Of logits x and those of the other model, y: the largest x, and the sums of e^(x - it) and of e^(x - it) (x - y).
struct Sums {
    float most = -INFINITY, sum = 0, apart = 0;

    template <int N> __device__ __forceinline__ void add(const float (&x)[N], const float (&y)[N]) {
        float larger = most;
#pragma unroll
        for (int j = 0; j < N; j++) larger = fmaxf(larger, x[j]);
        if (larger > most) {
            const float keep = __expf(most - larger);
            sum *= keep, apart *= keep, most = larger;
        }
        const float shift = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float e = __expf(x[j] - shift);
            sum += e, apart += e * (x[j] - y[j]);
        }
    }

    // Those of a row, in every thread.
    __device__ __forceinline__ void join(float *shared) {
        const float all = row_max(most, shared);
        const float keep = most == -INFINITY ? 1.0f : __expf(most - all);
        sum = row_sum(sum * keep, shared), apart = row_sum(apart * keep, shared), most = all;
    }
};

struct Mixture {
    // The share of the divergence, and that of the forward one in it.
    float ratio, forward;
};

// N logits of both models from element i on, the student's capped.
template <int N>
__device__ __forceinline__ void load_both(const float *student, const float *teacher, float softcap, float (&s)[N],
                                          float (&t)[N]) {
    load(student, s), load(teacher, t);
#pragma unroll
    for (int j = 0; j < N; j++) s[j] = capped(s[j], softcap);
}

template <typename Out, int N>
__device__ __forceinline__ void distill_row(float *loss, float *divergence, float *student, const float *teacher,
                                            long long cols, unsigned target, Mixture mixture, float softcap, bool gradient,
                                            float scale, float *shared) {
    Sums of_student, of_teacher;
    for (long long i = (long long)threadIdx.x * N; i < cols; i += (long long)blockDim.x * N) {
        float s[N], t[N];
        load_both(student + i, teacher + i, softcap, s, t);
        of_student.add(s, t), of_teacher.add(t, s);
    }
    of_student.join(shared), of_teacher.join(shared);
    // What logarithms of probabilities differ by where logits do not.
    const float normalizer = of_student.most + logf(of_student.sum);
    const float further = of_teacher.most + logf(of_teacher.sum) - normalizer;
    const float to_teacher = of_teacher.apart / of_teacher.sum - further;
    const float to_student = of_student.apart / of_student.sum + further;
    if (threadIdx.x == 0) {
        *loss = normalizer - capped(student[target], softcap);
        *divergence = mixture.forward * to_teacher + (1.0f - mixture.forward) * to_student;
    }
    if (!gradient) return;
    __syncthreads();
    const float of_target = 1.0f - mixture.ratio;
    const float forward = mixture.ratio * mixture.forward, reverse = mixture.ratio * (1.0f - mixture.forward);
    const float over_student = 1.0f / of_student.sum, over_teacher = 1.0f / of_teacher.sum;
    Out *out = reinterpret_cast<Out *>(student);
    // Element i of the gradient is at or before element i of the logits: a stretch is written when all of it is read.
    for (long long start = 0; start < cols; start += (long long)blockDim.x * N) {
        const long long i = start + (long long)threadIdx.x * N;
        float s[N], t[N];
        if (i < cols) {
            load_both(student + i, teacher + i, softcap, s, t);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float p = __expf(s[j] - of_student.most) * over_student;
                const float q = __expf(t[j] - of_teacher.most) * over_teacher;
                float g = of_target * (p - (i + j == target ? 1.0f : 0.0f)) + forward * (p - q);
                g += reverse * p * (s[j] - t[j] + further - to_student);
                t[j] = scale * g * slope(s[j], softcap);
            }
        }
        if constexpr (sizeof(Out) < sizeof(float)) __syncthreads();
        if (i < cols) store(out + i, t);
    }
}

template <typename Out>
__device__ __forceinline__ void distill(float *losses, float *divergences, float *student, const float *teacher,
                                        const unsigned *targets, const float *scales, long long rows, long long cols,
                                        long long student_stride, long long teacher_stride, int gradient, Mixture mixture,
                                        float softcap) {
    constexpr int N = WIDE<Out>;
    float *shared = reinterpret_cast<float *>(shared_memory());
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        float *s = student + row * student_stride;
        const float *t = teacher + row * teacher_stride;
        const float scale = gradient ? scales[row] : 0.0f;
        if (is_wide(s, 0) && is_wide(t, 0) && cols % N == 0)
            distill_row<Out, N>(losses + row, divergences + row, s, t, cols, targets[row], mixture, softcap, gradient, scale,
                                shared);
        else
            distill_row<Out, 1>(losses + row, divergences + row, s, t, cols, targets[row], mixture, softcap, gradient, scale,
                                shared);
        __syncthreads();
    }
}

// What is known of a teacher in a row: `k` tokens, each once, with the logarithms of their probabilities, and that of all others
// together, which is not read where there are none. `own` has room for the student's logits of these tokens.
struct Known {
    const unsigned *ids;
    const float *log_probs;
    float rest, *own;
    long long k;
};

// A logit that was taken out of its row stays out.
template <int N> __device__ __forceinline__ void load_others(const float *student, float softcap, float (&s)[N]) {
    load(student, s);
#pragma unroll
    for (int j = 0; j < N; j++) s[j] = s[j] == -INFINITY ? s[j] : capped(s[j], softcap);
}

// The gradient of an outcome's numerator, by the logarithms of both probabilities of it.
__device__ __forceinline__ float of_outcome(float log_p, float log_q, Mixture mixture, float to_student) {
    const float p = __expf(log_p), q = __expf(log_q);
    const float forward = mixture.ratio * mixture.forward, reverse = mixture.ratio * (1.0f - mixture.forward);
    return (1.0f - mixture.ratio) * p + forward * (p - q) + reverse * p * (log_p - log_q - to_student);
}

template <typename Out, int N>
__device__ __forceinline__ void distill_top_row(float *loss, float *divergence, float *student, const Known &known,
                                                long long cols, unsigned target, Mixture mixture, float softcap,
                                                bool gradient, float scale, float *shared) {
    const float right = capped(student[target], softcap);
    float most = -INFINITY;
    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) {
        known.own[i] = capped(student[known.ids[i]], softcap);
        most = fmaxf(most, known.own[i]);
    }
    // The others are added up by themselves: as one less the sum of the known they would be lost to rounding.
    __syncthreads();
    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) student[known.ids[i]] = -INFINITY;
    __syncthreads();
    float largest = -INFINITY, sum = 0;
    for (long long i = (long long)threadIdx.x * N; i < cols; i += (long long)blockDim.x * N) {
        float s[N], larger = largest;
        load_others(student + i, softcap, s);
#pragma unroll
        for (int j = 0; j < N; j++) larger = fmaxf(larger, s[j]);
        if (larger > largest) sum *= __expf(largest - larger), largest = larger;
        const float shift = largest == -INFINITY ? 0.0f : largest;
#pragma unroll
        for (int j = 0; j < N; j++) sum += __expf(s[j] - shift);
    }
    const float of_all = row_max(largest, shared);
    sum = row_sum(largest == -INFINITY ? sum : sum * __expf(largest - of_all), shared);
    const bool has_rest = known.k < cols;
    const float others = has_rest ? of_all + logf(sum) : -INFINITY;

    most = fmaxf(row_max(most, shared), others);
    float total = 0;
    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) total += __expf(known.own[i] - most);
    total = row_sum(total, shared) + (has_rest ? __expf(others - most) : 0.0f);
    const float normalizer = most + logf(total), log_rest = others - normalizer;
    float to_teacher = 0, to_student = 0;
    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) {
        const float log_p = known.own[i] - normalizer, log_q = known.log_probs[i];
        to_teacher += __expf(log_q) * (log_q - log_p), to_student += __expf(log_p) * (log_p - log_q);
    }
    to_teacher = row_sum(to_teacher, shared), to_student = row_sum(to_student, shared);
    if (has_rest) {
        to_teacher += __expf(known.rest) * (known.rest - log_rest);
        to_student += __expf(log_rest) * (log_rest - known.rest);
    }
    if (threadIdx.x == 0) {
        *loss = normalizer - right;
        *divergence = mixture.forward * to_teacher + (1.0f - mixture.forward) * to_student;
    }
    if (!gradient) return;
    const float of_target = 1.0f - mixture.ratio;
    const float of_rest = has_rest ? of_outcome(log_rest, known.rest, mixture, to_student) : 0.0f;
    Out *out = reinterpret_cast<Out *>(student);
    // Element i of the gradient is at or before element i of the logits: a stretch is written when all of it is read.
    for (long long start = 0; start < cols; start += (long long)blockDim.x * N) {
        const long long i = start + (long long)threadIdx.x * N;
        float s[N];
        if (i < cols) {
            load_others(student + i, softcap, s);
#pragma unroll
            for (int j = 0; j < N; j++) {
                // Each has a share of what is the others' together.
                float g = s[j] == -INFINITY ? 0.0f : of_rest * __expf(s[j] - others);
                if (i + j == target) g -= of_target;
                s[j] = s[j] == -INFINITY ? 0.0f : scale * g * slope(s[j], softcap);
            }
        }
        if constexpr (sizeof(Out) < sizeof(float)) __syncthreads();
        if (i < cols) store(out + i, s);
    }
    __syncthreads();
    for (long long i = threadIdx.x; i < known.k; i += blockDim.x) {
        const float z = known.own[i];
        float g = of_outcome(z - normalizer, known.log_probs[i], mixture, to_student);
        if (known.ids[i] == target) g -= of_target;
        out[known.ids[i]] = from_f32<Out>(scale * g * slope(z, softcap));
    }
}

template <typename Out>
__device__ __forceinline__ void distill_top(float *losses, float *divergences, float *student, const unsigned *ids,
                                            const float *log_probs, const float *rest, float *own, const unsigned *targets,
                                            const float *scales, long long rows, long long cols, long long stride,
                                            long long k, int gradient, Mixture mixture, float softcap) {
    constexpr int N = WIDE<Out>;
    float *shared = reinterpret_cast<float *>(shared_memory());
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        float *s = student + row * stride;
        const Known known{ids + row * k, log_probs + row * k, rest[row], own + row * k, k};
        const float scale = gradient ? scales[row] : 0.0f;
        if (is_wide(s, 0) && cols % N == 0)
            distill_top_row<Out, N>(losses + row, divergences + row, s, known, cols, targets[row], mixture, softcap, gradient,
                                    scale, shared);
        else
            distill_top_row<Out, 1>(losses + row, divergences + row, s, known, cols, targets[row], mixture, softcap, gradient,
                                    scale, shared);
        __syncthreads();
    }
}

} // namespace

// With p the probabilities of the student, whose logits count as softcap * tanh(logit / softcap) where softcap > 0, and q those
// of the teacher: losses[row] = -log p[target], and divergences[row] = forward * sum q (log q - log p) + (1 - forward) *
// sum p (log p - log q). With `gradient` the row's student logits become the gradient of scales[row] * ((1 - ratio) * loss +
// ratio * divergence), numbers of the named type from the row's beginning on. Every target is below cols; scales is read with
// `gradient` alone.
// launch: grid (min(rows, 65535) or fewer), block (1024; fewer threads for cols < 8192, a multiple of 32), dynamic shared
//   bytes 4 * block / 32. strides in elements. alignment: any; rows that begin at 16 bytes are fast.
#define DISTILL(NAME, OUT)                                                                                                \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(float *losses, float *divergences, float *student, const float *teacher, const unsigned *targets,           \
             const float *scales, long long rows, long long cols, long long student_stride, long long teacher_stride,    \
             int gradient, float ratio, float forward, float softcap) {                                                  \
        distill<OUT>(losses, divergences, student, teacher, targets, scales, rows, cols, student_stride, teacher_stride, \
                     gradient, Mixture{ratio, forward}, softcap);                                                        \
    }
DISTILL(distill_f32, float)
DISTILL(distill_bf16, bf16)

// The same where of the teacher k tokens of each row are known: ids and log_probs are [rows, k], and rest, [rows], is the logarithm
// of what all other tokens have together, which count as one outcome, of the student, too. Tokens of a row differ. own, [rows, k],
// is memory to work in. Without `gradient` the row's logits are lost, too.
// launch and alignment: as above, with one stride.
#define DISTILL_TOP(NAME, OUT)                                                                                            \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(float *losses, float *divergences, float *student, const unsigned *ids, const float *log_probs,             \
             const float *rest, float *own, const unsigned *targets, const float *scales, long long rows,                \
             long long cols, long long stride, long long k, int gradient, float ratio, float forward, float softcap) {   \
        distill_top<OUT>(losses, divergences, student, ids, log_probs, rest, own, targets, scales, rows, cols, stride, k, \
                         gradient, Mixture{ratio, forward}, softcap);                                                     \
    }
DISTILL_TOP(distill_top_f32, float)
DISTILL_TOP(distill_top_bf16, bf16)

// x = softcap * tanh(x / softcap) in place, for softcap > 0.
// launch: grid (ceil(n / 4 / 256) or fewer), block (256), no shared memory. alignment: any.
extern "C" __global__ void __launch_bounds__(256) softcap_f32(float *x, long long n, float softcap) {
    constexpr int N = WIDE<float>;
    const bool wide = is_wide(x, 0);
    const long long step = (long long)gridDim.x * blockDim.x * N;
    for (long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * N; i < n; i += step) {
        if (wide && i + N <= n) {
            float a[N];
            load(x + i, a);
#pragma unroll
            for (int j = 0; j < N; j++) a[j] = capped(a[j], softcap);
            store(x + i, a);
        } else {
            for (long long j = i; j < min(i + N, n); j++) x[j] = capped(x[j], softcap);
        }
    }
}
