// What distillation.cu computes by a teacher's likeliest tokens, where student and teacher are compared with what lies between them.
// What is the same is here once more: taken out of there, that file would give other instructions, and losses other bits.
#include "softcap.cuh"

namespace {

// How far the logarithms of probabilities are above that of what lies between them.
struct Above {
    float student, teacher;
};

struct Middle {
    // The share of the divergence, and that of the teacher in what lies between and in the divergence.
    float ratio, forward;

    // Of a student's logarithm that is `apart` above its teacher's. What lies between them is 1 + x times one of both: x is what counts
    // where they are near each other.
    __device__ __forceinline__ Above above(float apart) const {
        if (apart >= 0) {
            const float student = -log1pf(forward * expm1f(-apart));
            return {student, student - apart};
        }
        const float teacher = -log1pf((1.0f - forward) * expm1f(apart));
        return {teacher + apart, teacher};
    }

    // Adds what an outcome has in both parts of the divergence.
    __device__ __forceinline__ void add(float log_p, float log_q, float &to_teacher, float &to_student) const {
        const Above by = above(log_p - log_q);
        to_teacher += __expf(log_q) * by.teacher, to_student += __expf(log_p) * by.student;
    }

    // The gradient of its numerator: what moves the middle cancels out.
    __device__ __forceinline__ float of_outcome(float log_p, float log_q, float to_student) const {
        const float p = __expf(log_p), reverse = ratio * (1.0f - forward);
        return (1.0f - ratio) * p + reverse * p * (above(log_p - log_q).student - to_student);
    }
};

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

template <typename Out, int N>
__device__ __forceinline__ void distill_top_row(float *loss, float *divergence, float *student, const Known &known,
                                                long long cols, unsigned target, const Middle &mixture, float softcap,
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
        mixture.add(log_p, log_q, to_teacher, to_student);
    }
    to_teacher = row_sum(to_teacher, shared), to_student = row_sum(to_student, shared);
    if (has_rest) mixture.add(log_rest, known.rest, to_teacher, to_student);
    if (threadIdx.x == 0) {
        *loss = normalizer - right;
        *divergence = mixture.forward * to_teacher + (1.0f - mixture.forward) * to_student;
    }
    if (!gradient) return;
    const float of_target = 1.0f - mixture.ratio;
    const float of_rest = has_rest ? mixture.of_outcome(log_rest, known.rest, to_student) : 0.0f;
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
        float g = mixture.of_outcome(z - normalizer, known.log_probs[i], to_student);
        if (known.ids[i] == target) g -= of_target;
        out[known.ids[i]] = from_f32<Out>(scale * g * slope(z, softcap));
    }
}

template <typename Out>
__device__ __forceinline__ void distill_top(float *losses, float *divergences, float *student, const unsigned *ids,
                                            const float *log_probs, const float *rest, float *own, const unsigned *targets,
                                            const float *scales, long long rows, long long cols, long long stride,
                                            long long k, int gradient, const Middle &mixture, float softcap) {
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

// With p the probabilities of the student, whose logits count as softcap * tanh(logit / softcap) where softcap > 0, over k tokens of each row
// and one outcome more, any other token; q those of the teacher, whose logarithms are log_probs, [rows, k], and rest, [rows]; and
// m = forward q + (1 - forward) p, 0 < forward < 1: losses[row] = -log p[target], and divergences[row] = forward * sum q (log q - log m)
// + (1 - forward) * sum p (log p - log m) (Agarwal et al. 2024, https://arxiv.org/abs/2306.13649). With `gradient` the row's logits
// become the gradient of scales[row] * ((1 - ratio) * loss + ratio * divergence), numbers of the named type from the row's
// beginning on; without it they are lost, too. Tokens of a row differ, and every target is below cols. own, [rows, k], is memory to
// work in; scales is read with `gradient` alone.
// launch: grid (min(rows, 65535) or fewer), block (1024; fewer threads for cols < 8192, a multiple of 32), dynamic shared
//   bytes 4 * block / 32. stride in elements. alignment: any; rows that begin at 16 bytes are fast.
#define DISTILL_TOP_MIDDLE(NAME, OUT)                                                                                     \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(float *losses, float *divergences, float *student, const unsigned *ids, const float *log_probs,             \
             const float *rest, float *own, const unsigned *targets, const float *scales, long long rows,                \
             long long cols, long long stride, long long k, int gradient, float ratio, float forward, float softcap) {   \
        distill_top<OUT>(losses, divergences, student, ids, log_probs, rest, own, targets, scales, rows, cols, stride, k, \
                         gradient, Middle{ratio, forward}, softcap);                                                      \
    }
DISTILL_TOP_MIDDLE(distill_top_middle_f32, float)
DISTILL_TOP_MIDDLE(distill_top_middle_bf16, bf16)
