// Weights in blocks as numbers, against loops that read one element at a time, as the formats are described. Every bit must be right.
#include "../harness.h"

#include "../../kernels/dequantize.cu"

using namespace harness;

namespace plain {

float half(const unsigned char *at) {
    const int bits = at[0] | at[1] << 8, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const double size = exponent ? std::ldexp(1024.0 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return float(bits & 0x8000 ? -size : size);
}

int low(int byte) { return byte & 15; }
int high(int byte) { return byte >> 4; }
// Bit `i` of bytes.
int bit(const unsigned char *of, int i) { return (of[i / 8] >> (i % 8)) & 1; }
// The code in four bits of element `i` of 32, in sixteen bytes.
int nibble(const unsigned char *codes, int i) { return i < 16 ? low(codes[i]) : high(codes[i - 16]); }
// The same of 256 elements: each 64 are in 32 bytes.
int nibble_of_256(const unsigned char *codes, int i) {
    const int byte = codes[i / 64 * 32 + i % 32];
    return i % 64 < 32 ? low(byte) : high(byte);
}
// Two bits of 256 elements: each 128 are in 32 bytes.
int two_bits(const unsigned char *codes, int i) { return (codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3; }

float f16(const unsigned char *b, int i) { return half(b + 2 * i); }
float brain16(const unsigned char *b, int i) {
    const unsigned bits = unsigned(b[2 * i] | b[2 * i + 1] << 8) << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
float q4_0(const unsigned char *b, int i) { return half(b) * float(nibble(b + 2, i) - 8); }
float q4_1(const unsigned char *b, int i) { return half(b) * float(nibble(b + 4, i)) + half(b + 2); }
float q5_0(const unsigned char *b, int i) { return half(b) * float(nibble(b + 6, i) + 16 * bit(b + 2, i) - 16); }
float q5_1(const unsigned char *b, int i) { return half(b) * float(nibble(b + 8, i) + 16 * bit(b + 4, i)) + half(b + 2); }
float q8_0(const unsigned char *b, int i) { return half(b) * float(int8_t(b[2 + i])); }
float iq4_nl(const unsigned char *b, int i) {
    const int values[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    return half(b) * float(values[nibble(b + 2, i)]);
}
float q2_k(const unsigned char *b, int i) {
    const int both = b[i / 16];
    return half(b + 80) * float(low(both)) * float(two_bits(b + 16, i)) - half(b + 82) * float(high(both));
}
float q3_k(const unsigned char *b, int i) {
    const int group = i / 16, four = group < 8 ? low(b[96 + group]) : high(b[96 + group - 8]);
    const int two = (b[104 + group % 4] >> (group / 4 * 2)) & 3;
    const int code = two_bits(b + 32, i) - (bit(b + i % 32, i / 32) ? 0 : 4);
    return half(b + 108) * float(four + 16 * two - 32) * float(code);
}
// Scale and minimum of 32 elements, in six bits each.
int six_bits(const unsigned char *packed, int group, bool minimum) {
    if (group < 4) return packed[group + (minimum ? 4 : 0)] & 63;
    const int four = minimum ? high(packed[group + 4]) : low(packed[group + 4]);
    return four + 16 * (packed[group - 4 + (minimum ? 4 : 0)] >> 6);
}
float from_minimum(const unsigned char *b, int i, int code) {
    const float scale = half(b) * float(six_bits(b + 4, i / 32, false));
    const float minimum = half(b + 2) * float(six_bits(b + 4, i / 32, true));
    return scale * float(code) - minimum;
}
float q4_k(const unsigned char *b, int i) { return from_minimum(b, i, nibble_of_256(b + 16, i)); }
float q5_k(const unsigned char *b, int i) {
    return from_minimum(b, i, nibble_of_256(b + 48, i) + 16 * bit(b + 16 + i % 32, i / 32));
}
float q6_k(const unsigned char *b, int i) {
    const int byte = b[i / 128 * 64 + i % 64], four = i % 128 < 64 ? low(byte) : high(byte);
    const float scale = half(b + 208) * float(int8_t(b[192 + i / 16]));
    return scale * float(four + 16 * two_bits(b + 128, i) - 32);
}

} // namespace plain

template <typename T>
using Kernel = void (*)(T *, const unsigned char *, const signed char *, const float *, const unsigned *, long long, long long,
                        long long, long long, long long, float);

// A format: its block, where its half-precision numbers are, and element `i` of a block.
struct Of {
    const char *name;
    Kernel<float> wide;
    Kernel<bf16> narrow;
    int elements, bytes;
    std::vector<int> halves;
    float (*element)(const unsigned char *block, int i);
};

struct Matrix {
    Buffer<unsigned char> blocks;
    Buffer<signed char> scales;
    Buffer<float> factors;
    float mean;
    std::vector<float> right;
};

unsigned short small_half(Random &random) {
    // Of some exponents and both signs; also numbers without a leading bit, and zero.
    const int kind = random.below(8), exponent = kind == 0 ? 0 : 5 + random.below(8);
    return (unsigned short)(kind == 1 ? 0 : random.below(2) << 15 | exponent << 10 | random.below(1024));
}

Matrix matrix(const Of &of, int count, Random &random) {
    const int blocks = count / of.elements;
    const bool apart = !of.element;
    Matrix m{Buffer<unsigned char>(size_t(blocks) * of.bytes), Buffer<signed char>(apart ? blocks : 0),
             Buffer<float>(apart ? (blocks + 255) / 256 : 0), apart ? 1.5f : 0, {}};
    for (size_t i = 0; i < m.blocks.size(); i++) m.blocks[i] = (unsigned char)random.below(256);
    for (int block = 0; block < blocks; block++)
        for (int at : of.halves) {
            const unsigned short bits = small_half(random);
            memcpy(m.blocks.data() + size_t(block) * of.bytes + at, &bits, 2);
        }
    for (size_t i = 0; i < m.scales.size(); i++) m.scales[i] = (signed char)(random.below(256) - 128);
    for (size_t i = 0; i < m.factors.size(); i++) m.factors[i] = 90.0f + 20.0f * random.next();
    const float values[] = {-1.0f,   -0.6962f, -0.5251f, -0.3949f, -0.2844f, -0.1848f, -0.0911f, 0.0f,
                            0.0796f, 0.1609f,  0.2461f,  0.3379f,  0.4407f,  0.5626f,  0.723f,   1.0f};
    for (int i = 0; i < count; i++) {
        const int block = i / of.elements;
        if (!apart) {
            m.right.push_back(of.element(m.blocks.data() + size_t(block) * of.bytes, i % of.elements));
            continue;
        }
        const float scale = float(m.scales[block]) / m.factors[block / 256] + m.mean;
        const int byte = m.blocks[i / 2];
        m.right.push_back(values[i % 2 ? byte & 15 : byte >> 4] * scale);
    }
    return m;
}

template <typename T> T rounded(float x) { return host_from<T>(x); }

// Rows `ids` (or the first) of the matrix, `cols` elements of each from `first` on, into rows `stride` apart, the first of which begins
// `skip` elements after an address that is a multiple of 16.
template <typename T>
void run(const Of &of, Kernel<T> kernel, const Matrix &m, int width, const std::vector<int> &ids, int rows, int first, int cols,
         int stride, int skip, int threads) {
    Buffer<unsigned> wanted(ids.size());
    for (size_t i = 0; i < ids.size(); i++) wanted[i] = unsigned(ids[i]);
    char what[200];
    snprintf(what, sizeof what, "%d rows of %d%s, %d from %d on, stride %d, %d on, %d threads", rows, width,
             ids.empty() ? "" : " by number", cols, first, stride, skip, threads);
    in_every_order([&] {
        Buffer<T> y(size_t(rows) * stride + skip);
        const dim3 grid((cols / (16 / int(sizeof(T))) + 2 + threads - 1) / threads, std::min(rows, 3));
        LAUNCH(kernel, grid, dim3(threads), 64, y.data() + skip, m.blocks.data(), m.scales.data(), m.factors.data(),
               ids.empty() ? nullptr : wanted.data(), rows, cols, stride, width, first, m.mean);
        size_t wrong = 0;
        for (size_t i = 0; i < y.size(); i++) {
            const long long at = (long long)i - skip, row = at / stride, col = at % stride;
            if (at < 0 || col >= cols) {
                wrong += !is_poison(y[i]);
                continue;
            }
            const T right = rounded<T>(m.right[size_t(ids.empty() ? row : ids[row]) * width + first + col]);
            wrong += memcmp(&right, &y[i], sizeof(T)) != 0;
        }
        note(std::string("dequantize_") + of.name + "_" + type_name<T>(), what, double(wrong), 0);
    });
}

template <typename T> void shapes(const Of &of, Kernel<T> kernel, Random &random) {
    const int width = std::max(of.elements, 96) * 2, rows = 5;
    const Matrix m = matrix(of, rows * width, random);
    // All of it, as one row and as rows; some columns; some rows by number; what begins and ends within pieces.
    run<T>(of, kernel, m, width, {}, 1, 0, rows * width, rows * width, 0, 256);
    run<T>(of, kernel, m, width, {}, rows, 0, width, width + 8, 0, 64);
    run<T>(of, kernel, m, width, {}, rows, 64, 32, 32, 0, 32);
    run<T>(of, kernel, m, width, {4, 0, 4, 2}, 4, 0, width, width, 0, 32);
    run<T>(of, kernel, m, width, {}, 1, width + 3, 2 * width + 2, 2 * width + 2, 1, 96);
    run<T>(of, kernel, m, width, {3, 1}, 2, 5, 1, 3, 0, 32);
    // Rows that are no whole pieces, and more blocks than share a factor.
    if (of.elements == 64) {
        const Matrix odd = matrix(of, 64 * 300, random);
        run<T>(of, kernel, odd, 300, {}, 64, 0, 300, 301, 0, 32);
        run<T>(of, kernel, odd, 75, {255, 7, 9}, 3, 0, 75, 75, 0, 32);
    }
}

int main() {
    Random random(12);
#define FORMAT(NAME) dequantize_##NAME##_f32, dequantize_##NAME##_bf16
    std::vector<int> of_sixteen;
    for (int i = 0; i < 32; i += 2) of_sixteen.push_back(i);
    const Of all[] = {
        {"f16", FORMAT(f16), 16, 32, of_sixteen, plain::f16},
        {"brain16", FORMAT(brain16), 16, 32, of_sixteen, plain::brain16},
        {"q4_0", FORMAT(q4_0), 32, 18, {0}, plain::q4_0},
        {"q4_1", FORMAT(q4_1), 32, 20, {0, 2}, plain::q4_1},
        {"q5_0", FORMAT(q5_0), 32, 22, {0}, plain::q5_0},
        {"q5_1", FORMAT(q5_1), 32, 24, {0, 2}, plain::q5_1},
        {"q8_0", FORMAT(q8_0), 32, 34, {0}, plain::q8_0},
        {"iq4_nl", FORMAT(iq4_nl), 32, 18, {0}, plain::iq4_nl},
        {"q2_k", FORMAT(q2_k), 256, 84, {80, 82}, plain::q2_k},
        {"q3_k", FORMAT(q3_k), 256, 110, {108}, plain::q3_k},
        {"q4_k", FORMAT(q4_k), 256, 144, {0, 2}, plain::q4_k},
        {"q5_k", FORMAT(q5_k), 256, 176, {0, 2}, plain::q5_k},
        {"q6_k", FORMAT(q6_k), 256, 210, {208}, plain::q6_k},
        {"nf4", FORMAT(nf4), 64, 32, {}, nullptr},
    };
    for (const Of &of : all) {
        shapes<float>(of, of.wide, random);
        shapes<bf16>(of, of.narrow, random);
    }
    return report();
}
