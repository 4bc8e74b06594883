// Weights in blocks of few bits as numbers: the formats of GGUF files, and NF4 with scales that are quantized themselves. The values
// are those of the processor (tune-core/src/kernels/quantized), to the last bit: no product is fused with a sum.
#include "common.cuh"

namespace {

// A matrix in blocks, its elements counted row by row. `scales`, `factors` and `mean` belong to NF4.
struct Blocks {
    const unsigned char *bytes;
    const signed char *scales;
    const float *factors;
    float mean;
    // What codes name, in shared memory, where they do.
    const float *values;
};

// Elements that a thread dequantizes at a time: a half of what shares a scale in every format.
constexpr int PIECE = 8;

// Sixteen bits of a half-precision number as f32, exactly.
__device__ __forceinline__ float f32_of_half(unsigned bits) {
    const unsigned sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
    // The exponent counts from another number, in subnormal numbers too.
    const unsigned scaled = __float_as_uint(__fmul_rn(__uint_as_float(rest), __uint_as_float(0x77800000u)));
    return __uint_as_float(sign | ((bits & 0x7c00u) == 0x7c00u ? rest | 0x7f800000u : scaled));
}

__device__ __forceinline__ unsigned two_bytes(const unsigned char *at) { return *reinterpret_cast<const uint16_t *>(at); }

__device__ __forceinline__ float half_at(const unsigned char *at) { return f32_of_half(two_bytes(at)); }

// Eight bytes at a multiple of ALIGNED.
template <int ALIGNED> __device__ __forceinline__ uint2 eight_bytes(const unsigned char *at) {
    if constexpr (ALIGNED % 8 == 0) {
        return *reinterpret_cast<const uint2 *>(at);
    } else if constexpr (ALIGNED % 4 == 0) {
        const unsigned *words = reinterpret_cast<const unsigned *>(at);
        return uint2{words[0], words[1]};
    } else {
        return uint2{two_bytes(at) | two_bytes(at + 2) << 16, two_bytes(at + 4) | two_bytes(at + 6) << 16};
    }
}

// Byte `i` of eight.
__device__ __forceinline__ unsigned byte_of(uint2 bytes, int i) { return ((i < 4 ? bytes.x : bytes.y) >> (8 * (i % 4))) & 255u; }

// Some bits of each of eight bytes: those under `mask` (repeated four times), after a shift.
__device__ __forceinline__ uint2 bits_of(uint2 bytes, int shift, unsigned mask) {
    return uint2{(bytes.x >> shift) & mask, (bytes.y >> shift) & mask};
}

__device__ __forceinline__ uint2 joined(uint2 low, uint2 high, int shift) {
    return uint2{low.x | high.x << shift, low.y | high.y << shift};
}

// scale * (code - zero).
__device__ __forceinline__ void scaled(float scale, uint2 codes, int zero, float (&x)[PIECE]) {
#pragma unroll
    for (int i = 0; i < PIECE; i++) x[i] = __fmul_rn(scale, static_cast<float>(static_cast<int>(byte_of(codes, i)) - zero));
}

// scale * code + minimum.
__device__ __forceinline__ void scaled_from(float scale, float minimum, uint2 codes, float (&x)[PIECE]) {
#pragma unroll
    for (int i = 0; i < PIECE; i++) x[i] = __fadd_rn(__fmul_rn(scale, static_cast<float>(byte_of(codes, i))), minimum);
}

// A format says how many elements and bytes a block has, and reads a piece of block `number`. Codes are numbers, or they name some.
struct Plain {
    static constexpr bool NAMES = false;
};
struct Named {
    static constexpr bool NAMES = true;
};

// Sixteen numbers of sixteen bits.
template <bool BRAIN> struct Floats : Plain {
    static constexpr int ELEMENTS = 16, BYTES = 32;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const uint4 raw = *reinterpret_cast<const uint4 *>(block + 16 * piece);
        const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
        for (int i = 0; i < PIECE; i++) {
            const unsigned bits = (words[i / 2] >> (16 * (i % 2))) & 0xffffu;
            x[i] = BRAIN ? __uint_as_float(bits << 16) : f32_of_half(bits);
        }
    }
};

// Blocks of 32 in four bits: the low halves of sixteen bytes are the first sixteen codes, the high halves the others.
template <int AT, int ALIGNED> __device__ __forceinline__ uint2 nibbles(const unsigned char *block, int piece) {
    return bits_of(eight_bytes<ALIGNED>(block + AT + 8 * (piece % 2)), 4 * (piece / 2), 0x0f0f0f0fu);
}

// A fifth bit for each of them, in four bytes of their own.
template <int AT> __device__ __forceinline__ uint2 with_fifth(const unsigned char *block, int piece, uint2 codes) {
    const unsigned bits = block[AT + piece];
    uint2 fifth{0, 0};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        fifth.x |= ((bits >> i) & 1u) << (8 * i);
        fifth.y |= ((bits >> (i + 4)) & 1u) << (8 * i);
    }
    return joined(codes, fifth, 4);
}

struct Q4_0 : Plain {
    static constexpr int ELEMENTS = 32, BYTES = 18;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        scaled(half_at(block), nibbles<2, 2>(block, piece), 8, x);
    }
};

struct Q4_1 : Plain {
    static constexpr int ELEMENTS = 32, BYTES = 20;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        scaled_from(half_at(block), half_at(block + 2), nibbles<4, 4>(block, piece), x);
    }
};

struct Q5_0 : Plain {
    static constexpr int ELEMENTS = 32, BYTES = 22;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        scaled(half_at(block), with_fifth<2>(block, piece, nibbles<6, 2>(block, piece)), 16, x);
    }
};

struct Q5_1 : Plain {
    static constexpr int ELEMENTS = 32, BYTES = 24;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const uint2 codes = with_fifth<4>(block, piece, nibbles<8, 8>(block, piece));
        scaled_from(half_at(block), half_at(block + 2), codes, x);
    }
};

// Codes with a sign.
struct Q8_0 : Plain {
    static constexpr int ELEMENTS = 32, BYTES = 34;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const float scale = half_at(block);
        const uint2 codes = eight_bytes<2>(block + 2 + 8 * piece);
#pragma unroll
        for (int i = 0; i < PIECE; i++) x[i] = __fmul_rn(static_cast<float>(static_cast<signed char>(byte_of(codes, i))), scale);
    }
};

// llama.cpp's non-linear four bits.
__device__ const float IQ4_NL_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct Iq4Nl : Named {
    static constexpr int ELEMENTS = 32, BYTES = 18;
    __device__ static float value(int code) { return IQ4_NL_VALUES[code]; }
    __device__ static void read(const Blocks &of, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const float scale = half_at(block);
        const uint2 codes = nibbles<2, 2>(block, piece);
#pragma unroll
        for (int i = 0; i < PIECE; i++) x[i] = __fmul_rn(scale, of.values[byte_of(codes, i)]);
    }
};

// Quantiles of the normal distribution, as torchao has them.
__device__ const float NF4_VALUES[16] = {-1.0f,   -0.6962f, -0.5251f, -0.3949f, -0.2844f, -0.1848f, -0.0911f, 0.0f,
                                         0.0796f, 0.1609f,  0.2461f,  0.3379f,  0.4407f,  0.5626f,  0.723f,   1.0f};

// The first of two codes is the upper half of a byte. The scale of a block is code / factor + mean; 256 blocks share a factor.
struct Nf4 : Named {
    static constexpr int ELEMENTS = 64, BYTES = 32;
    __device__ static float value(int code) { return NF4_VALUES[code]; }
    __device__ static void read(const Blocks &of, const unsigned char *block, long long number, int piece, float (&x)[PIECE]) {
        const unsigned codes = reinterpret_cast<const unsigned *>(block)[piece];
        const float scale =
            __fadd_rn(__fdiv_rn(static_cast<float>(of.scales[number]), of.factors[number / 256]), of.mean);
#pragma unroll
        for (int i = 0; i < PIECE; i++) x[i] = __fmul_rn(of.values[(codes >> (8 * (i / 2) + 4 * (1 - i % 2))) & 15u], scale);
    }
};

// llama.cpp's k-quants: 256 elements, in units of sixteen, two pieces each. Codes of two bits are stored for four times 32
// elements in 32 bytes, those of four bits for twice 32.
__device__ __forceinline__ int place(int piece) { return 16 * (piece / 2 % 2) + 8 * (piece % 2); }

template <int AT, int ALIGNED> __device__ __forceinline__ uint2 two_bits(const unsigned char *block, int piece) {
    const int unit = piece / 2;
    return bits_of(eight_bytes<ALIGNED>(block + AT + 32 * (unit / 8) + place(piece)), 2 * (unit / 2 % 4), 0x03030303u);
}

template <int AT> __device__ __forceinline__ uint2 four_bits(const unsigned char *block, int piece) {
    const int unit = piece / 2;
    return bits_of(eight_bytes<8>(block + AT + 32 * (unit / 4) + place(piece)), 4 * (unit / 2 % 2), 0x0f0f0f0fu);
}

// scale * code - minimum.
__device__ __forceinline__ void scaled_less(float scale, float minimum, uint2 codes, float (&x)[PIECE]) {
#pragma unroll
    for (int i = 0; i < PIECE; i++) x[i] = __fsub_rn(__fmul_rn(scale, static_cast<float>(byte_of(codes, i))), minimum);
}

struct Q2K : Plain {
    static constexpr int ELEMENTS = 256, BYTES = 84;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const unsigned both = block[piece / 2];
        const float scale = __fmul_rn(half_at(block + 80), static_cast<float>(both & 15u));
        const float minimum = __fmul_rn(half_at(block + 82), static_cast<float>(both >> 4));
        scaled_less(scale, minimum, two_bits<16, 4>(block, piece), x);
    }
};

// The third bit of a code is apart, and so are the upper two of a scale's six.
struct Q3K : Plain {
    static constexpr int ELEMENTS = 256, BYTES = 110;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const int unit = piece / 2;
        const unsigned low = (block[96 + unit % 8] >> (4 * (unit / 8))) & 15u;
        const unsigned high = (block[104 + unit % 4] >> (2 * (unit / 4))) & 3u;
        const float scale = __fmul_rn(half_at(block + 108), static_cast<float>(static_cast<int>(low | high << 4) - 32));
        const uint2 third = bits_of(eight_bytes<2>(block + place(piece)), unit / 2, 0x01010101u);
        scaled(scale, joined(two_bits<32, 2>(block, piece), third, 2), 4, x);
    }
};

// Scale and minimum of each 32 elements: six bits each, in twelve bytes.
struct ScaleAndMinimum {
    float scale, minimum;
    __device__ ScaleAndMinimum(const unsigned char *block, int piece) {
        const unsigned char *packed = block + 4;
        const int group = piece / 4, low = group % 4;
        unsigned of_scale = packed[low] & 63u, of_minimum = packed[4 + low] & 63u;
        if (group >= 4) {
            of_scale = (packed[8 + low] & 15u) | (packed[low] >> 6) << 4;
            of_minimum = packed[8 + low] >> 4 | (packed[4 + low] >> 6) << 4;
        }
        scale = __fmul_rn(half_at(block), static_cast<float>(of_scale));
        minimum = __fmul_rn(half_at(block + 2), static_cast<float>(of_minimum));
    }
};

struct Q4K : Plain {
    static constexpr int ELEMENTS = 256, BYTES = 144;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const ScaleAndMinimum of(block, piece);
        scaled_less(of.scale, of.minimum, four_bits<16>(block, piece), x);
    }
};

// The same with a fifth bit, which is apart.
struct Q5K : Plain {
    static constexpr int ELEMENTS = 256, BYTES = 176;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const ScaleAndMinimum of(block, piece);
        const uint2 fifth = bits_of(eight_bytes<8>(block + 16 + place(piece)), piece / 4, 0x01010101u);
        scaled_less(of.scale, of.minimum, joined(four_bits<48>(block, piece), fifth, 4), x);
    }
};

// The upper two of six bits are apart. Of each 128 elements the first 64 have the low halves of 64 bytes.
struct Q6K : Plain {
    static constexpr int ELEMENTS = 256, BYTES = 210;
    __device__ static void read(const Blocks &, const unsigned char *block, long long, int piece, float (&x)[PIECE]) {
        const int unit = piece / 2, within = piece % 16;
        const float scale =
            __fmul_rn(half_at(block + 208), static_cast<float>(static_cast<signed char>(block[192 + unit])));
        const uint2 low =
            bits_of(eight_bytes<2>(block + 64 * (piece / 16) + 8 * (within % 8)), 4 * (within / 8), 0x0f0f0f0fu);
        scaled(scale, joined(low, two_bits<128, 2>(block, piece), 4), 32, x);
    }
};

template <typename Format, typename T>
__device__ __forceinline__ void dequantize(T *y, Blocks of, const unsigned *ids, long long rows, long long cols,
                                           long long y_stride, long long width, long long first) {
    if constexpr (Format::NAMES) {
        // Constant memory would give lanes that ask for different values one after the other.
        float *values = reinterpret_cast<float *>(shared_memory());
        if (threadIdx.x < 16) values[threadIdx.x] = Format::value(static_cast<int>(threadIdx.x));
        __syncthreads();
        of.values = values;
    }
    // A thread stores sixteen bytes, its neighbour the next: of a piece in f32 each of two stores a half.
    constexpr int PIECES = Format::ELEMENTS / PIECE, OWN = WIDE<T>, PARTS = PIECE / OWN;
    for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
        const long long begin = (ids ? static_cast<long long>(ids[row]) : row) * width + first;
        for (long long part = begin / OWN + static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
             part * OWN < begin + cols; part += static_cast<long long>(gridDim.x) * blockDim.x) {
            const long long piece = part / PARTS, number = piece / PIECES, at = part * OWN - begin;
            float all[PIECE], x[OWN];
            Format::read(of, of.bytes + number * Format::BYTES, number, static_cast<int>(piece % PIECES), all);
#pragma unroll
            for (int i = 0; i < OWN; i++) x[i] = part % PARTS == 0 ? all[i] : all[PIECE - OWN + i];
            T *to = y + row * y_stride + at;
            if (at >= 0 && at + OWN <= cols && is_wide(to, 0)) {
                store(to, x);
            } else {
#pragma unroll
                for (int i = 0; i < OWN; i++)
                    if (at + i >= 0 && at + i < cols) to[i] = from_f32<T>(x[i]);
            }
        }
    }
}

} // namespace

// y[row, i] = element `first + i` of row ids[row] (null: row) of a matrix with `width` columns, of which there are `cols`. Rows that
// follow each other are one long row.
// launch: grid (ceil((cols / W + 2) / threads), min(rows, 65535)) with W = 8 (bf16) or 4 (f32), block (threads), 64 bytes of shared
//   memory. alignment: `blocks` to 16 bytes; y any, with 16-byte accesses where its elements allow.
#define DEQUANTIZE(NAME, FORMAT, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256)                                                                     \
        NAME(T *y, const unsigned char *blocks, const signed char *scales, const float *factors, const unsigned *ids,    \
             long long rows, long long cols, long long y_stride, long long width, long long first, float mean) {         \
        dequantize<FORMAT>(y, Blocks{blocks, scales, factors, mean, nullptr}, ids, rows, cols, y_stride, width, first);   \
    }
#define DEQUANTIZE_BOTH(NAME, FORMAT)                                                                                     \
    DEQUANTIZE(dequantize_##NAME##_f32, FORMAT, float)                                                                    \
    DEQUANTIZE(dequantize_##NAME##_bf16, FORMAT, bf16)
DEQUANTIZE_BOTH(f16, Floats<false>)
DEQUANTIZE_BOTH(brain16, Floats<true>)
DEQUANTIZE_BOTH(q4_0, Q4_0)
DEQUANTIZE_BOTH(q4_1, Q4_1)
DEQUANTIZE_BOTH(q5_0, Q5_0)
DEQUANTIZE_BOTH(q5_1, Q5_1)
DEQUANTIZE_BOTH(q8_0, Q8_0)
DEQUANTIZE_BOTH(iq4_nl, Iq4Nl)
DEQUANTIZE_BOTH(q2_k, Q2K)
DEQUANTIZE_BOTH(q3_k, Q3K)
DEQUANTIZE_BOTH(q4_k, Q4K)
DEQUANTIZE_BOTH(q5_k, Q5K)
DEQUANTIZE_BOTH(q6_k, Q6K)
DEQUANTIZE_BOTH(nf4, Nf4)
