// The plain twin of kernels/ptx/primitives.cuh: what its instructions do, by the PTX manual's tables of fragments.
#pragma once

#include "../cuda_language.h"

struct bf16 {
    uint16_t bits;
};

inline float to_f32(float x) { return x; }
inline float to_f32(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

template <typename T> inline T from_f32(float x);
template <> inline float from_f32<float>(float x) { return x; }
template <> inline bf16 from_f32<bf16>(float x) {
    const uint32_t bits = __float_as_uint(x);
    if (x != x) return {uint16_t(0x7fff)};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline bf16 bf16_of_bits(uint16_t bits) { return {bits}; }

inline uint32_t pack_bf16(float low, float high) {
    return uint32_t(from_f32<bf16>(low).bits) | uint32_t(from_f32<bf16>(high).bits) << 16;
}

inline unsigned char *shared_memory() { return cuda_language::shared_begin(); }

inline float fast_exp2(float x) { return exp2f(x); }
inline float fast_tanh(float x) { return tanhf(x); }

inline float half_of(uint32_t packed, int i) { return to_f32(bf16{uint16_t(packed >> (16 * i))}); }

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Fragments {
        uint32_t a[4], b[2];
    } mine{{a[0], a[1], a[2], a[3]}, {b0, b1}};
    const Fragments *of = cuda_language::exchange("mma", mine);
    const int lane = cuda_language::lane(), group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; i++) {
        const int row = group + 8 * (i / 2), col = 2 * pair + i % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            // Element (row, k) of a is in lane (row % 8) * 4 + (k % 8) / 2, register row / 8 + 2 * (k / 8).
            const uint32_t left = of[(row % 8) * 4 + (k % 8) / 2].a[row / 8 + 2 * (k / 8)];
            // Element (k, col) of b is in lane col * 4 + (k % 8) / 2, register k / 8.
            const uint32_t right = of[col * 4 + (k % 8) / 2].b[k / 8];
            sum += half_of(left, k % 2) * half_of(right, k % 2);
        }
        d[i] += sum;
    }
}

inline void load_matrices_plain(uint32_t (&r)[4], const void *row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) cuda_language::fail("ldmatrix: a row that is not aligned to 16 bytes");
    cuda_language::check_shared(row, 16);
    const void *const *rows = cuda_language::exchange("ldmatrix", row);
    const int lane = cuda_language::lane(), group = lane / 4, pair = lane % 4;
    for (int m = 0; m < 4; m++) {
        uint16_t halves[2];
        for (int i = 0; i < 2; i++) {
            const int y = transposed ? 2 * pair + i : group, x = transposed ? group : 2 * pair + i;
            halves[i] = static_cast<const uint16_t *>(rows[8 * m + y])[x];
        }
        r[m] = uint32_t(halves[0]) | uint32_t(halves[1]) << 16;
    }
    // Nobody goes on to overwrite what another lane still reads.
    cuda_language::exchange("ldmatrix", 0);
}

inline void load_matrices(uint32_t (&r)[4], const void *row) { load_matrices_plain(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void *row) { load_matrices_plain(r, row, true); }

inline void copy_async(void *to, const void *from, bool there) {
    if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16)
        cuda_language::fail("cp.async: an address that is not aligned to 16 bytes");
    cuda_language::check_shared(to, 16);
    cuda_language::copies().open.push_back({to, from, there});
}

inline void copy_async_commit() { cuda_language::copies().commit(); }

template <int PENDING> inline void copy_async_wait() { cuda_language::copies().wait(PENDING); }
