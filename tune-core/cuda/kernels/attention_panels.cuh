// Tiles of bf16 in shared memory as panels for a warpgroup's products (warpgroup.cuh): DIM / 64 panels of ROWS rows.
#pragma once

#include "attention.cuh"

#include <warpgroup.cuh>

template <int ROWS> constexpr int PANEL = ROWS * 128; // bytes

// Copies `rows` rows of `dim` elements in the background, and clears the rest of a tile of ROWS x DIM; `thread` is the number of
// this of THREADS threads.
template <int ROWS, int DIM, int THREADS>
__device__ __forceinline__ void bring_panels(unsigned char *tile, const bf16 *from, long long stride, int rows, int dim, int thread) {
    constexpr int STEP = THREADS / 8;
    static_assert(STEP % 8 == 0 && ROWS % STEP == 0, "a thread brings one piece of some rows of each panel");
    const int piece = thread % 8, first = thread / 8;
    tile += first * 128 + ((piece ^ first) & 7) * 16;
#pragma unroll
    for (int panel = 0; panel < DIM / 64; panel++) {
        const int col = 64 * panel + 8 * piece;
        const bf16 *source = from + first * stride + col;
#pragma unroll
        for (int row = 0; row < ROWS; row += STEP) {
            const bool there = col < dim && first + row < rows;
            copy_async(tile + panel * PANEL<ROWS> + row * 128, there ? source : from, there);
            source += STEP * stride;
        }
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
