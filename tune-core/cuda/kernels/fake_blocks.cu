// Weights rounded to what a GGUF file would store of them, and read again: the blocks of llama.cpp's reference functions. The bits are the
// processor's (tune-core/src/checkpoint/gguf/quantize, tune-core/src/kernels/quantized): no product is joined with a sum, and each
// sum has the order that it has there.
#include "common.cuh"

namespace {

__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float minus(float a, float b) { return __fsub_rn(a, b); }
__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float over(float a, float b) { return __fdiv_rn(a, b); }

// Formats by their numbers in files.
enum Format { F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, BF16 = 30 };

// x as half precision has it, to the nearest, ties to even.
__device__ __forceinline__ float through_half(float x) {
    const unsigned bits = __float_as_uint(x), sign = bits & 0x80000000u, size = bits & 0x7fffffffu;
    unsigned rounded;
    if (size >= 0x7f800000u) rounded = size;
    // From halfway between the largest number and the next power of two on.
    else if (size >= 0x477ff000u) rounded = 0x7f800000u;
    // Below the least normal number all are multiples of 2^-24, as those next to one half are here.
    else if (size < 0x38800000u) rounded = __float_as_uint(minus(plus(__uint_as_float(size), 0.5f), 0.5f));
    else rounded = (size + 0xfffu + ((size >> 13) & 1u)) & ~0x1fffu;
    return __uint_as_float(sign | rounded);
}

// A number without its fraction, at most what the ends allow; zero for what is no number.
__device__ __forceinline__ int whole_within(float x, int first, int last) {
    if (x != x) return 0;
    return x <= static_cast<float>(first) ? first : x >= static_cast<float>(last) ? last : static_cast<int>(x);
}

// The nearest whole number, the even one of two; zero for what is no number.
__device__ __forceinline__ int nearest(float x) { return whole_within(rintf(x), -4194303, 4194303); }

__device__ __forceinline__ int clamped(int q, int first, int last) { return q < first ? first : q > last ? last : q; }

// The number of a warp that is farthest from zero, the first of several.
__device__ __forceinline__ float farthest(float x) {
    const float size = warp_max(fabsf(x));
    const unsigned those = __ballot_sync(ALL_LANES, fabsf(x) == size);
    const float far = __shfl_sync(ALL_LANES, x, __ffs(static_cast<int>(those)) - 1);
    return size > 0 ? far : 0.0f;
}

// Blocks of 32 numbers, each by a warp of which every thread has one; and numbers that are stored each by itself.
__device__ __forceinline__ float in_block(float x, int format) {
    if (format == F16) return through_half(x);
    if (format == BF16) return to_f32(from_f32<bf16>(x));
    const bool has_fifth = format == Q5_0 || format == Q5_1;
    if (format == Q4_1 || format == Q5_1) {
        constexpr float MOST = 3.402823466e38f;
        const float least = -warp_max(x == x ? -x : -MOST), most = warp_max(x == x ? x : -MOST);
        const float scale = over(minus(most, least), has_fifth ? 31.0f : 15.0f);
        const float inverse = scale == 0 ? 0.0f : over(1.0f, scale);
        const int q = whole_within(plus(times(minus(x, least), inverse), 0.5f), 0, has_fifth ? 31 : 15);
        return plus(times(through_half(scale), static_cast<float>(q)), through_half(least));
    }
    const float far = farthest(x);
    const float scale = format == Q8_0 ? over(fabsf(far), 127.0f) : over(far, has_fifth ? -16.0f : -8.0f);
    const float inverse = scale == 0 ? 0.0f : over(1.0f, scale), stored = through_half(scale);
    if (format == Q8_0) return times(static_cast<float>(whole_within(roundf(times(x, inverse)), -128, 127)), stored);
    const int zero = has_fifth ? 16 : 8;
    const int q = whole_within(plus(times(x, inverse), static_cast<float>(zero) + 0.5f), 0, 2 * zero - 1);
    return times(stored, static_cast<float>(q - zero));
}

template <typename T> __device__ __forceinline__ void short_blocks(T *y, const T *x, long long n, int format) {
    const unsigned lane = threadIdx.x % 32;
    for (long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x - lane; first < n;
         first += static_cast<long long>(gridDim.x) * blockDim.x) {
        const bool there = first + lane < n;
        const float value = in_block(there ? to_f32(x[first + lane]) : 0.0f, format);
        if (there) y[first + lane] = from_f32<T>(value);
    }
}

// The numbers of a part, or zeros where there is none.
template <typename T, int N> __device__ __forceinline__ void read_part(const T *from, bool there, float (&x)[N]) {
    if (there) load(from, x);
    else
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = 0;
}

constexpr int WIDTH = 32;

// x = scale q - offset.
struct Fit {
    float scale, offset;
};

// How whole numbers come to be of a part's.
struct Trial {
    float inverse, least;
    int top;

    __device__ __forceinline__ float whole(float x) const {
        return static_cast<float>(clamped(nearest(times(inverse, minus(x, least))), 0, top));
    }
};

// What the squares of errors add up to, where the error of a number counts as much as `spread` and its size.
__device__ __forceinline__ float error_of(const float (&x)[WIDTH], float spread, const Trial &trial, float scale, float least) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        const float difference = minus(plus(times(scale, trial.whole(x[i])), least), x[i]);
        sum = plus(sum, times(plus(spread, fabsf(x[i])), times(difference, difference)));
    }
    return sum;
}

// The scale and the offset of a part, both not below zero, that leave the least errors of those that are tried: whole numbers up to about
// top + first, top + first + 0.1 and so on.
__device__ __forceinline__ Fit scale_and_offset(const float (&x)[WIDTH], int top, float first, int steps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < WIDTH; i++) squares = plus(squares, times(x[i], x[i]));
    const float spread = __fsqrt_rn(over(squares, WIDTH));
    float least = x[0], most = x[0], weight = plus(spread, fabsf(x[0])), weighted = times(weight, x[0]);
#pragma unroll
    for (int i = 1; i < WIDTH; i++) {
        const float w = plus(spread, fabsf(x[i]));
        least = x[i] < least ? x[i] : least, most = x[i] > most ? x[i] : most;
        weight = plus(weight, w), weighted = plus(weighted, times(w, x[i]));
    }
    if (least > 0) least = 0;
    if (most == least) return {0, -least};
    const float largest = static_cast<float>(top);
    const Trial plain{over(largest, minus(most, least)), least, top};
    float scale = over(1.0f, plain.inverse), best = error_of(x, spread, plain, scale, least);
    for (int step = 0; step <= steps; step++) {
        // From the offset that is best so far.
        const float whole = plus(plus(first, times(0.1f, static_cast<float>(step))), largest);
        const Trial trial{over(whole, minus(most, least)), least, top};
        float sum_q = 0, sum_qq = 0, sum_xq = 0;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            const float q = trial.whole(x[i]), wq = times(plus(spread, fabsf(x[i])), q);
            sum_q = plus(sum_q, wq), sum_qq = plus(sum_qq, times(wq, q)), sum_xq = plus(sum_xq, times(wq, x[i]));
        }
        const float determinant = minus(times(weight, sum_qq), times(sum_q, sum_q));
        if (!(determinant > 0)) continue;
        float of_trial = over(minus(times(weight, sum_xq), times(weighted, sum_q)), determinant);
        float offset = over(minus(times(sum_qq, weighted), times(sum_q, sum_xq)), determinant);
        if (offset > 0) offset = 0, of_trial = over(sum_xq, sum_qq);
        const float left = error_of(x, spread, trial, of_trial, offset);
        if (left < best) best = left, scale = of_trial, least = offset;
    }
    return {scale, -least};
}

// The largest of eight neighbours' numbers, and none below zero.
__device__ __forceinline__ float largest_of_eight(float x) {
    x = x > 0 ? x : 0.0f;
#pragma unroll
    for (int with = 4; with > 0; with /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, with));
    return x;
}

// A part's scale or offset as a block stores it: 6 bits, and the scale of the eight of a block in half precision.
__device__ __forceinline__ float in_six_bits(float x) {
    const float largest = largest_of_eight(x), inverse = largest > 0 ? over(63.0f, largest) : 0.0f;
    const int bits = min(nearest(times(inverse, x)) & 255, 63);
    return times(through_half(over(largest, 63.0f)), static_cast<float>(bits));
}

// A part by a thread; eight of them are a block.
template <typename T>
__device__ __forceinline__ void eighths(T *y, const T *x, long long n, int top, float first, int steps) {
    const unsigned lane = threadIdx.x % 32;
    const long long parts = n / WIDTH;
    for (long long begin = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x - lane; begin < parts;
         begin += static_cast<long long>(gridDim.x) * blockDim.x) {
        const long long part = begin + lane;
        float own[WIDTH];
        read_part(x + part * WIDTH, part < parts, own);
        const Fit fit = scale_and_offset(own, top, first, steps);
        const float scale = in_six_bits(fit.scale), offset = in_six_bits(fit.offset);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            const int q = scale == 0 ? 0 : clamped(nearest(over(plus(own[i], offset), scale)), 0, top);
            own[i] = minus(times(scale, static_cast<float>(q)), offset);
        }
        if (part < parts) store(y + part * WIDTH, own);
    }
}

constexpr int HALF = 16;

// Below this, all numbers of a part are zero.
constexpr float NOTHING = 1e-15f;

__device__ __forceinline__ float whole_six(float x, float inverse) {
    return static_cast<float>(clamped(nearest(times(inverse, x)), -32, 31));
}

// The scale of a part that leaves the least errors, x = scale q, of those that are tried, and what the whole numbers were found by; both are
// zero where there is nothing.
struct Alone {
    float scale, inverse;
};

__device__ __forceinline__ Alone scale_alone(const float (&x)[HALF]) {
    float far = 0;
#pragma unroll
    for (int i = 0; i < HALF; i++) far = fabsf(x[i]) > fabsf(far) ? x[i] : far;
    if (fabsf(far) < NOTHING) return {0, 0};
    Alone best{};
    float best_left = 0;
    // The scale that the largest number asks for first, then those about it.
    for (int i = 0; i < 19; i++) {
        const int trial = i == 0 ? 0 : i <= 9 ? i - 10 : i - 9;
        const float inverse = over(-plus(32.0f, times(0.1f, static_cast<float>(trial))), far);
        float products = 0, squares = 0;
#pragma unroll
        for (int j = 0; j < HALF; j++) {
            const float w = times(x[j], x[j]), q = whole_six(x[j], inverse);
            products = plus(products, times(times(w, x[j]), q)), squares = plus(squares, times(times(w, q), q));
        }
        const bool better = squares > 0 && times(products, products) > times(best_left, squares);
        if (i != 0 && !better) continue;
        best = {squares == 0 ? 0.0f : over(products, squares), inverse}, best_left = times(best.scale, products);
    }
    return best;
}

// A part of sixteen by a thread; sixteen of them are a block.
template <typename T> __device__ __forceinline__ void sixteenths(T *y, const T *x, long long n) {
    const unsigned lane = threadIdx.x % 32;
    const long long parts = n / HALF;
    for (long long begin = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x - lane; begin < parts;
         begin += static_cast<long long>(gridDim.x) * blockDim.x) {
        const long long part = begin + lane;
        float own[HALF];
        read_part(x + part * HALF, part < parts, own);
        const Alone of = scale_alone(own);
        // The farthest from zero of the block's scales, the first of several.
        float far = 0;
        for (int i = 0; i < HALF; i++) {
            const float other = __shfl_sync(ALL_LANES, of.scale, static_cast<int>(lane & 16u) + i);
            far = fabsf(other) > fabsf(far) ? other : far;
        }
        const bool is_empty = fabsf(far) < NOTHING;
        const float inverse = is_empty ? 0.0f : over(-128.0f, far);
        const int bits = min(nearest(times(inverse, of.scale)), 127);
        const float scale = is_empty ? 0.0f : times(through_half(over(1.0f, inverse)), static_cast<float>(bits));
#pragma unroll
        for (int i = 0; i < HALF; i++) {
            float q = -32;
            if (scale != 0) q = static_cast<float>(clamped(nearest(over(own[i], scale)), -32, 31));
            else if (!is_empty && of.inverse != 0) q = whole_six(own[i], of.inverse);
            own[i] = times(scale, q);
        }
        if (part < parts) store(y + part * HALF, own);
    }
}

} // namespace

// y = x as a file has it in blocks of 32 numbers, of which n is a multiple, or in numbers of sixteen bits.
// launch: grid (ceil(n / block) or fewer), block (a multiple of 32), no shared memory. alignment: any.
#define SHORT_BLOCKS(NAME, T)                                                                                             \
    extern "C" __global__ void __launch_bounds__(256) NAME(T *y, const T *x, long long n, int format) {                  \
        short_blocks<T>(y, x, n, format);                                                                                 \
    }
SHORT_BLOCKS(fake_short_blocks_f32, float)
SHORT_BLOCKS(fake_short_blocks_bf16, bf16)

// The same in blocks of 256 numbers: Q4_K, or with `fifth` Q5_K.
// launch: grid (ceil(n / 32 / block) or fewer), block (a multiple of 32), no shared memory. alignment: 16 bytes.
#define EIGHTHS(NAME, T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) NAME(T *y, const T *x, long long n, int fifth) {                   \
        eighths<T>(y, x, n, fifth ? 31 : 15, fifth ? -0.5f : -1.0f, fifth ? 15 : 20);                                     \
    }
EIGHTHS(fake_eighths_f32, float)
EIGHTHS(fake_eighths_bf16, bf16)

// The same: Q6_K.
// launch: grid (ceil(n / 16 / block) or fewer), block (a multiple of 32), no shared memory. alignment: 16 bytes.
#define SIXTEENTHS(NAME, T)                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) NAME(T *y, const T *x, long long n) { sixteenths<T>(y, x, n); }
SIXTEENTHS(fake_sixteenths_f32, float)
SIXTEENTHS(fake_sixteenths_bf16, bf16)
