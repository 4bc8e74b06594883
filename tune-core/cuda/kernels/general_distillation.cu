// What distillation.cu computes, at a temperature, or where student and teacher are compared with what lies between them.
#include "softcap.cuh"

namespace {

// Of logits: the largest, the sum of e^(logit - it), and that of e^(factor (logit - it)).
struct Totals {
    float most = -INFINITY, sum = 0, tempered = 0;

    template <int N> __device__ __forceinline__ void add(const float (&x)[N], float factor) {
        float larger = most;
#pragma unroll
        for (int j = 0; j < N; j++) larger = fmaxf(larger, x[j]);
        if (larger > most) sum *= __expf(most - larger), tempered *= __expf(factor * (most - larger)), most = larger;
        const float shift = most == -INFINITY ? 0.0f : most;
#pragma unroll
        for (int j = 0; j < N; j++) sum += __expf(x[j] - shift), tempered += __expf(factor * (x[j] - shift));
    }

    // Those of a row, in every thread.
    __device__ __forceinline__ void join(float factor, float *shared) {
        const float all = row_max(most, shared), further = most == -INFINITY ? 0.0f : most - all;
        sum = row_sum(sum * __expf(further), shared), tempered = row_sum(tempered * __expf(factor * further), shared), most = all;
    }
};

struct General {
    // The share of the divergence, and that of the teacher's part in it.
    float ratio, of_teacher;
    // One over the temperature.
    float factor;
    // Whether both parts are from what lies between the two, the teacher's share in which is `of_teacher`, and not from each other.
    bool from_middle;
};

// How far the logarithms of probabilities are above what they are compared with.
struct Above {
    float student, teacher;
};

// Of a student's logarithm that is `apart` above its teacher's. What lies between them is 1 + x times one of both: x is what counts
// where they are near each other.
__device__ __forceinline__ Above above(float apart, const General &of) {
    if (!of.from_middle) return {apart, -apart};
    if (apart >= 0) {
        const float student = -log1pf(of.of_teacher * expm1f(-apart));
        return {student, student - apart};
    }
    const float teacher = -log1pf((1.0f - of.of_teacher) * expm1f(apart));
    return {teacher + apart, teacher};
}

// A row of both models: what its probabilities are.
struct Row {
    Totals student, teacher;
    // What tempered logarithms of probabilities differ by where logits do not.
    float further;

    __device__ __forceinline__ float of_student(float s, float factor) const {
        return __expf(factor * (s - student.most)) * (1.0f / student.tempered);
    }
    __device__ __forceinline__ float of_teacher(float t, float factor) const {
        return __expf(factor * (t - teacher.most)) * (1.0f / teacher.tempered);
    }
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
__device__ __forceinline__ void general_row(float *loss, float *divergence, float *student, const float *teacher,
                                            long long cols, unsigned target, const General &of, float softcap,
                                            bool gradient, float scale, float *shared) {
    Row row;
    for (long long i = (long long)threadIdx.x * N; i < cols; i += (long long)blockDim.x * N) {
        float s[N], t[N];
        load_both(student + i, teacher + i, softcap, s, t);
        row.student.add(s, of.factor), row.teacher.add(t, of.factor);
    }
    row.student.join(of.factor, shared), row.teacher.join(of.factor, shared);
    row.further = of.factor * (row.teacher.most - row.student.most) + logf(row.teacher.tempered) - logf(row.student.tempered);
    float both = 0, of_student = 0;
    for (long long i = (long long)threadIdx.x * N; i < cols; i += (long long)blockDim.x * N) {
        float s[N], t[N];
        load_both(student + i, teacher + i, softcap, s, t);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float p = row.of_student(s[j], of.factor), q = row.of_teacher(t[j], of.factor);
            const Above by = above(of.factor * (s[j] - t[j]) + row.further, of);
            of_student += p * by.student;
            both += of.of_teacher * q * by.teacher + (1.0f - of.of_teacher) * p * by.student;
        }
    }
    both = row_sum(both, shared), of_student = row_sum(of_student, shared);
    if (threadIdx.x == 0) {
        *loss = row.student.most + logf(row.student.sum) - capped(student[target], softcap);
        *divergence = both;
    }
    if (!gradient) return;
    __syncthreads();
    const float of_target = 1.0f - of.ratio, over_sum = 1.0f / row.student.sum;
    // What moves the middle cancels out.
    const float forward = of.from_middle ? 0.0f : of.factor * of.ratio * of.of_teacher;
    const float reverse = of.factor * of.ratio * (1.0f - of.of_teacher);
    Out *out = reinterpret_cast<Out *>(student);
    // Element i of the gradient is at or before element i of the logits: a stretch is written when all of it is read.
    for (long long start = 0; start < cols; start += (long long)blockDim.x * N) {
        const long long i = start + (long long)threadIdx.x * N;
        float s[N], t[N];
        if (i < cols) {
            load_both(student + i, teacher + i, softcap, s, t);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float p = row.of_student(s[j], of.factor), q = row.of_teacher(t[j], of.factor);
                const Above by = above(of.factor * (s[j] - t[j]) + row.further, of);
                float g = of_target * (__expf(s[j] - row.student.most) * over_sum - (i + j == target ? 1.0f : 0.0f));
                g += forward * (p - q) + reverse * p * (by.student - of_student);
                t[j] = scale * g * slope(s[j], softcap);
            }
        }
        if constexpr (sizeof(Out) < sizeof(float)) __syncthreads();
        if (i < cols) store(out + i, t);
    }
}

template <typename Out>
__device__ __forceinline__ void general(float *losses, float *divergences, float *student, const float *teacher,
                                        const unsigned *targets, const float *scales, long long rows, long long cols,
                                        long long student_stride, long long teacher_stride, int gradient, const General &of,
                                        float softcap) {
    constexpr int N = WIDE<Out>;
    float *shared = reinterpret_cast<float *>(shared_memory());
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        float *s = student + row * student_stride;
        const float *t = teacher + row * teacher_stride;
        const float scale = gradient ? scales[row] : 0.0f;
        if (is_wide(s, 0) && is_wide(t, 0) && cols % N == 0)
            general_row<Out, N>(losses + row, divergences + row, s, t, cols, targets[row], of, softcap, gradient, scale, shared);
        else
            general_row<Out, 1>(losses + row, divergences + row, s, t, cols, targets[row], of, softcap, gradient, scale, shared);
        __syncthreads();
    }
}

} // namespace

// With p the probabilities of the student, whose logits count as softcap * tanh(logit / softcap) where softcap > 0, p' and q' those
// of the student and of the teacher with logits times factor, and m = of_teacher q' + (1 - of_teacher) p' where from_middle:
// losses[row] = -log p[target], and divergences[row] = of_teacher * sum q' (log q' - log p') + (1 - of_teacher) *
// sum p' (log p' - log q'), with m in the place of p' and of q' in both brackets' second terms where from_middle (Agarwal et al.
// 2024, https://arxiv.org/abs/2306.13649; 0 < of_teacher < 1 there). With `gradient` the row's student logits become the gradient of
// scales[row] * ((1 - ratio) * loss + ratio * divergence), numbers of the named type from the row's beginning on. Every target is
// below cols; scales is read with `gradient` alone.
// launch: grid (min(rows, 65535) or fewer), block (1024; fewer threads for cols < 8192, a multiple of 32), dynamic shared
//   bytes 4 * block / 32. strides in elements. alignment: any; rows that begin at 16 bytes are fast.
#define DISTILL_GENERAL(NAME, OUT)                                                                                        \
    extern "C" __global__ void __launch_bounds__(1024)                                                                    \
        NAME(float *losses, float *divergences, float *student, const float *teacher, const unsigned *targets,           \
             const float *scales, long long rows, long long cols, long long student_stride, long long teacher_stride,    \
             int gradient, int from_middle, float ratio, float of_teacher, float factor, float softcap) {                \
        general<OUT>(losses, divergences, student, teacher, targets, scales, rows, cols, student_stride, teacher_stride, \
                     gradient, General{ratio, of_teacher, factor, from_middle != 0}, softcap);                           \
    }
DISTILL_GENERAL(distill_general_f32, float)
DISTILL_GENERAL(distill_general_bf16, bf16)
