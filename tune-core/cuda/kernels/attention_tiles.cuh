// Tiles of bf16 in shared memory and their fragments for mma.m16n8k16.
//
// A row is padded by 16 bytes, which makes it an odd number of 16-byte pieces: the eight rows that ldmatrix reads at once
// lie in different banks.
#pragma once

#include "attention_rows.cuh"

template <int DIM> constexpr int PITCH = DIM + 8;

// Copies `rows` rows of `dim` elements in the background, and clears the rest of a tile of ROWS x DIM. A rolled loop: the
// addresses of an unrolled one would fill the registers.
template <int ROWS, int DIM, int THREADS>
__device__ __forceinline__ void bring(bf16 *tile, const bf16 *from, long long stride, int rows, int dim) {
    constexpr int PIECES = DIM / 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * PIECES; i += THREADS) {
        const int row = i / PIECES, at = i % PIECES * 8;
        const bool there = row < rows && at < dim;
        copy_async(tile + row * PITCH<DIM> + at, there ? from + row * stride + at : from, there);
    }
}

// The left side of a product: 16 rows from `row` on, columns `col` to `col + 16`.
template <int DIM> __device__ __forceinline__ void left(uint32_t (&a)[4], const bf16 *tile, int row, int col) {
    const int lane = threadIdx.x % 32;
    load_matrices(a, tile + (row + lane % 16) * PITCH<DIM> + col + lane / 16 * 8);
}

// The right side where the tile's rows are the product's columns: rows `row` to `row + 16` (b[0], b[1] for the first eight),
// summed over columns `col` to `col + 16`.
template <int DIM> __device__ __forceinline__ void right_by_rows(uint32_t (&b)[4], const bf16 *tile, int row, int col) {
    const int lane = threadIdx.x % 32;
    load_matrices(b, tile + (row + lane % 8 + lane / 16 * 8) * PITCH<DIM> + col + lane / 8 % 2 * 8);
}

// The right side where the tile's columns are the product's: columns `col` to `col + 16` (b[0], b[1] for the first eight),
// summed over rows `row` to `row + 16`.
template <int DIM> __device__ __forceinline__ void right_by_columns(uint32_t (&b)[4], const bf16 *tile, int row, int col) {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(b, tile + (row + lane % 16) * PITCH<DIM> + col + lane / 16 * 8);
}

// sums[m][n] += a tile's rows times another's: 16 * M rows of `a` from `row` on, and all 8 * N rows of `b`.
template <int DIM, int M, int N>
__device__ __forceinline__ void rows_by_rows(float (&sums)[M][N][4], const bf16 *a, int row, const bf16 *b) {
#pragma unroll
    for (int col = 0; col < DIM; col += 16) {
        uint32_t l[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) left<DIM>(l[m], a, row + 16 * m, col);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t r[4];
            right_by_rows<DIM>(r, b, 8 * n, col);
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_16x8x16(sums[m][n], l[m], r[0], r[1]);
                mma_16x8x16(sums[m][n + 1], l[m], r[2], r[3]);
            }
        }
    }
}

// sums[m] += weights (fragments of a product, as they came) times COLS columns of the 8 * N rows of `b`, a tile of DIM columns.
template <int DIM, int COLS, int M, int N>
__device__ __forceinline__ void weights_by_rows(float (&sums)[M][COLS / 8][4], const uint32_t (&weights)[M][N][2], const bf16 *b) {
#pragma unroll
    for (int n = 0; n < N; n += 2) {
#pragma unroll
        for (int col = 0; col < COLS; col += 16) {
            uint32_t r[4];
            right_by_columns<DIM>(r, b, 8 * n, col);
#pragma unroll
            for (int m = 0; m < M; m++) {
                const uint32_t l[4] = {weights[m][n][0], weights[m][n][1], weights[m][n + 1][0], weights[m][n + 1][1]};
                mma_16x8x16(sums[m][col / 8], l, r[0], r[1]);
                mma_16x8x16(sums[m][col / 8 + 1], l, r[2], r[3]);
            }
        }
    }
}

template <int M, int N> __device__ __forceinline__ void clear(float (&x)[M][N][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) x[m][n][i] = 0;
}

// The left side of a product from the numbers of another.
template <int N> __device__ __forceinline__ void pack(uint32_t (&packed)[N][2], const float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) packed[n][half] = pack_bf16(x[n][2 * half], x[n][2 * half + 1]);
}
