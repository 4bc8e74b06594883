// Tiles of bf16 in shared memory as panels for a warpgroup's products (warpgroup.cuh): DIM / 64 panels of ROWS rows.
#pragma once

#include "attention.cuh"

#include <warpgroup.cuh>

template <int ROWS> constexpr int PANEL = ROWS * 128; // bytes

// Copies `rows` rows of `dim` elements in the background, and clears the rest of a tile of ROWS x DIM.
template <int ROWS, int DIM, int THREADS>
__device__ __forceinline__ void bring_panels(unsigned char *tile, const bf16 *from, long long stride, int rows, int dim) {
    constexpr int PIECES = DIM / 8;
    static_assert(THREADS % PIECES == 0 && ROWS * PIECES % THREADS == 0, "a thread brings one piece of some rows");
    const int piece = threadIdx.x % PIECES, first = threadIdx.x / PIECES;
    constexpr int STEP = THREADS / PIECES;
    static_assert(STEP % 8 == 0, "all of them in one place of their rows");
    unsigned char *to = tile + piece / 8 * PANEL<ROWS> + first * 128 + ((piece ^ first) & 7) * 16;
    const bf16 *source = from + first * stride + piece * 8;
    const bool in_row = piece * 8 < dim;
#pragma unroll
    for (int row = 0; row < ROWS; row += STEP) {
        const bool there = in_row && first + row < rows;
        copy_async(to + row * 128, there ? source : from, there);
        source += STEP * stride;
    }
}

// sums = 64 rows of `a` (from `row` on) times the N rows of `b`, both tiles of DIM columns.
template <int DIM, int N, int A_ROWS, int B_ROWS>
__device__ __forceinline__ void rows_by_rows(float (&sums)[N / 8][4], const unsigned char *a, int row, const unsigned char *b) {
#pragma unroll
    for (int col = 0; col < DIM; col += 16)
        warpgroup_mma<N>(sums, panel_descriptor(a + col / 64 * PANEL<A_ROWS> + row * 128 + col % 64 * 2, PANEL<A_ROWS>),
                         panel_descriptor(b + col / 64 * PANEL<B_ROWS> + col % 64 * 2, PANEL<B_ROWS>), col > 0);
}

// sums += weights (64 rows) times the ROWS rows of `b`, a tile of DIM columns.
template <int DIM, int ROWS>
__device__ __forceinline__ void weights_by_rows(float (&sums)[DIM / 8][4], const uint32_t (&weights)[ROWS / 16][4],
                                                const unsigned char *b) {
#pragma unroll
    for (int row = 0; row < ROWS; row += 16)
        warpgroup_mma<DIM>(sums, weights[row / 16], panel_descriptor(b + row * 128, PANEL<ROWS>));
}

// The left side of a product from the numbers of another.
template <int N> __device__ __forceinline__ void pack(uint32_t (&packed)[N / 2][4], const float (&x)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) {
        packed[n / 2][n % 2 * 2] = pack_bf16(x[n][0], x[n][1]);
        packed[n / 2][n % 2 * 2 + 1] = pack_bf16(x[n][2], x[n][3]);
    }
}
