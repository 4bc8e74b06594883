// The matrix instructions of a warpgroup (four warps), for sm_90a alone.
//
// Their operands are panels in shared memory: rows of 64 bf16, 128 bytes, whose eight pieces of 16 bytes change places by
// the row (piece p of row r lies at p ^ r % 8), beginning at a multiple of 1024 bytes. A wider tile is several panels.
#pragma once

#include <primitives.cuh>

// What the instructions read from: the address of a panel (with 32 bytes for each 16 columns further on, or 2048 for each 16
// rows) and the bytes from one panel to the next.
__device__ __forceinline__ uint64_t panel_descriptor(const void *panel, uint32_t next_panel) {
    constexpr uint64_t SWIZZLE_128 = 1ull << 62, EIGHT_ROWS = 1024 >> 4;
    return SWIZZLE_128 | EIGHT_ROWS << 32 | uint64_t((next_panel & 0x3ffff) >> 4) << 16 | (shared_address(panel) & 0x3ffff) >> 4;
}

// Before a warpgroup's first product, and whenever registers that it uses were written otherwise.
__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `PENDING` groups of products are under way.
template <int PENDING> __device__ __forceinline__ void warpgroup_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Lets the products see what this thread has written to shared memory, or copied there and waited for.
__device__ __forceinline__ void show_to_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Barriers in shared memory (8 bytes each), where some threads arrive and others wait: `count` arrivals end a phase. `parity` is
// that of the phase that is waited for; that of the phase before the first, 1, has ended.
__device__ __forceinline__ void barrier_init(uint64_t *barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t *barrier, bool really = true) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %1, 0; @p mbarrier.arrive.shared::cta.b64 _, [%0];}" ::"r"(shared_address(barrier)),
                 "r"(int(really))
                 : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t *barrier, uint32_t parity) {
    asm volatile("{.reg .pred p;\n"
                 "AGAIN_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
                 "@p bra DONE_%=;\n"
                 "bra AGAIN_%=;\n"
                 "DONE_%=:}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// Barriers by number, 1 to 15: `threads` of them, of which some wait and some only arrive.
__device__ __forceinline__ void numbered_barrier_wait(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ __forceinline__ void numbered_barrier_arrive(int number, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Gives registers of this warpgroup back, or takes some: N of a thread from now on.
template <int N> __device__ __forceinline__ void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> __device__ __forceinline__ void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }

// d (+)= a b: a [64, 16] by rows, and b [N, 16] by rows, its columns summed over. Row lane / 4 (+ 8) of warp w's sixteen is in
// d[n][0..2] (d[n][2..4]), columns 8 n + lane % 4 * 2.
template <int N> __device__ __forceinline__ void warpgroup_mma(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add);
// d += a b: a [64, 16] in registers, as mma.m16n8k16 has it, and b [16, N] by rows, its rows summed over.
template <int N> __device__ __forceinline__ void warpgroup_mma(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b);

#define D(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
template <> __device__ __forceinline__ void warpgroup_mma<64>(float (&d)[8][4], uint64_t a, uint64_t b, bool add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, %32, %33, p, 1, 1, 0, 0;}"
        : D(0), D(1), D(2), D(3), D(4), D(5), D(6), D(7)
        : "l"(a), "l"(b), "r"(int(add)));
}
template <> __device__ __forceinline__ void warpgroup_mma<64>(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
        "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
        : D(0), D(1), D(2), D(3), D(4), D(5), D(6), D(7)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <> __device__ __forceinline__ void warpgroup_mma<128>(float (&d)[16][4], uint64_t a, uint64_t b, bool add) {
    asm volatile("{.reg .pred p; setp.ne.b32 p, %66, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, %64, %65, p, 1, 1, 0, 0;}"
        : D(0), D(1), D(2), D(3), D(4), D(5), D(6), D(7), D(8), D(9), D(10), D(11), D(12), D(13), D(14), D(15)
        : "l"(a), "l"(b), "r"(int(add)));
}
template <> __device__ __forceinline__ void warpgroup_mma<128>(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
        "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
        : D(0), D(1), D(2), D(3), D(4), D(5), D(6), D(7), D(8), D(9), D(10), D(11), D(12), D(13), D(14), D(15)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef D
