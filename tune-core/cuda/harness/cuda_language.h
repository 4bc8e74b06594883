// CUDA C++ for a plain C++ compiler, so that the very kernels that run on a card run here, slowly and watched.
//
// Every thread of a block is a fiber; the fibers run one at a time until they meet at a barrier or in a
// warp's instruction, in an order that each launch is told. Shared memory is full of NaN when a block begins and
// ends at a page that nobody may touch; device memory that check.h gives does, too. Asynchronous copies land only when
// they are waited for.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __restrict__ __restrict

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(8) float2 {
    float x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
// The place of the lowest bit that is set, from one; zero where none is.
inline int __ffs(int x) { return __builtin_ffs(x); }
// The upper half of a product.
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
template <typename T> inline T min(T a, T b) { return b < a ? b : a; }
template <typename T> inline T max(T a, T b) { return a < b ? b : a; }

namespace cuda_language {

constexpr size_t STACK = 1 << 18, PAGE = 4096, MOST_SHARED = 227 << 10;

// In which order fibers and blocks run.
enum class Order { Forward, Backward, Random };

struct Copy {
    void *to;
    const void *from;
    bool there;
};

// The asynchronous copies of a thread. They land when they are waited for, and not before.
struct Copies {
    std::vector<Copy> open;
    std::vector<std::vector<Copy>> groups;

    void commit() {
        groups.push_back(std::move(open));
        open.clear();
    }
    void wait(size_t pending) {
        while (groups.size() > pending) {
            for (const Copy &c : groups.front()) {
                if (c.there) memcpy(c.to, c.from, 16);
                else memset(c.to, 0, 16);
            }
            groups.erase(groups.begin());
        }
    }
};

// A thread of a block, with a stack of its own. It outlives blocks and launches: making a stack ready takes longer than most threads run.
struct Fiber {
    std::unique_ptr<unsigned char[]> stack;
    uint3 at;
    bool done;
    // What it waits for: a barrier of the block, or its warp in an instruction; null if it can run.
    const char *waits;
    bool waits_for_block;
    // What makes it go on, if it is neither of these.
    std::function<bool()> until;
    Copies copies;
    jmp_buf jump;
};

// What a warp's lanes give each other. Two sets take turns: a lane can be one meeting ahead of another, never two.
struct Warp {
    alignas(16) unsigned char given[2][32 * 64];
    unsigned arrived;
    unsigned meeting;
    const char *instruction;
};

// A barrier by number: some wait, some only arrive.
struct Numbered {
    unsigned arrived, phase;
};

struct Block {
    std::function<void()> body;
    Numbered numbered[16];
    // All that there ever were; the first `count` are the threads of this launch.
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Warp> warps;
    size_t count, current, shared_bytes;
    jmp_buf scheduler;
    const char *kernel;
};

inline Block &block() {
    static Block b;
    return b;
}

[[noreturn]] inline void fail(const char *what) {
    fprintf(stderr, "%s: block (%u, %u, %u), thread (%u, %u, %u): %s\n", block().kernel, blockIdx.x, blockIdx.y, blockIdx.z,
            threadIdx.x, threadIdx.y, threadIdx.z, what);
    exit(3);
}

// Shared memory ends where a page begins that nobody may touch.
inline unsigned char *shared_end() {
    static unsigned char *end = [] {
        const size_t size = (MOST_SHARED + PAGE - 1) / PAGE * PAGE;
        void *memory = mmap(nullptr, size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) fail("no memory");
        mprotect(static_cast<unsigned char *>(memory) + size, PAGE, PROT_NONE);
        return static_cast<unsigned char *>(memory) + size;
    }();
    return end;
}
inline unsigned char *shared_begin() { return shared_end() - (block().shared_bytes + 127) / 128 * 128; }

inline void check_shared(const void *p, size_t bytes) {
    const unsigned char *at = static_cast<const unsigned char *>(p);
    if (at < shared_begin() || at + bytes > shared_begin() + block().shared_bytes) fail("outside of shared memory");
}

inline Copies &copies() { return block().fibers[block().current]->copies; }
inline int lane() { return int(block().current % 32); }

// Gives the processor back; comes back when what the fiber waits for has happened.
__attribute__((noinline)) inline void pause(const char *waits, bool for_block) {
    Block &b = block();
    Fiber &f = *b.fibers[b.current];
    f.waits = waits;
    f.waits_for_block = for_block;
    if (_setjmp(f.jump) == 0) _longjmp(b.scheduler, 1);
}

// Waits until something is so that other threads bring about.
inline void wait_until(const char *waits, const std::function<bool()> &so) {
    while (!so()) {
        block().fibers[block().current]->until = so;
        pause(waits, false);
    }
}

// All lanes of a warp meet and see what each of them gives.
template <typename T> const T *exchange(const char *instruction, const T &mine) {
    static_assert(sizeof(T) <= 64, "too much to exchange");
    Block &b = block();
    Warp &w = b.warps[b.current / 32];
    T *given = reinterpret_cast<T *>(w.given[w.meeting % 2]);
    memcpy(static_cast<void *>(&given[lane()]), &mine, sizeof(T));
    if (w.arrived == 0) w.instruction = instruction;
    if (w.instruction != instruction && strcmp(w.instruction, instruction) != 0) fail("lanes of a warp are at different instructions");
    if (++w.arrived < 32) {
        pause(instruction, false);
        return given;
    }
    w.arrived = 0;
    w.meeting++;
    for (size_t i = b.current / 32 * 32; i < b.current / 32 * 32 + 32; i++)
        if (i != b.current) b.fibers[i]->waits = nullptr;
    return given;
}

// Runs a thread of one block after the other.
inline void run_fiber() {
    Block &b = block();
    Fiber &f = *b.fibers[b.current];
    for (;;) {
        b.body();
        if (!f.copies.open.empty() || !f.copies.groups.empty()) fail("ends with copies that nobody waited for");
        f.done = true;
        if (_setjmp(f.jump) == 0) _longjmp(b.scheduler, 1);
    }
}

// Runs a fiber until it waits or is done.
__attribute__((noinline)) inline void resume(size_t i) {
    Block &b = block();
    Fiber &f = *b.fibers[i];
    b.current = i;
    threadIdx = f.at;
    if (_setjmp(b.scheduler) != 0) return;
    if (f.stack) _longjmp(f.jump, 1);
    f.stack.reset(new unsigned char[STACK]);
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = f.stack.get();
    // Stacks that all ended at the same part of a page would drive each other out of the cache.
    start.uc_stack.ss_size = STACK - i * 448 % (STACK / 4);
    start.uc_link = nullptr;
    makecontext(&start, run_fiber, 0);
    setcontext(&start);
}

inline std::vector<size_t> ordered(size_t count, Order order, std::mt19937 &random) {
    std::vector<size_t> at(count);
    for (size_t i = 0; i < count; i++) at[i] = order == Order::Backward ? count - 1 - i : i;
    if (order == Order::Random)
        for (size_t i = count; i > 1; i--) std::swap(at[i - 1], at[random() % i]);
    return at;
}

inline void run_block(Order order, std::mt19937 &random) {
    Block &b = block();
    const size_t count = b.count;
    memset(shared_begin(), 0xff, shared_end() - shared_begin());
    for (auto &w : b.warps) w.arrived = 0;
    for (Numbered &n : b.numbered) n = {0, 0};
    for (size_t i = 0; i < count; i++) {
        Fiber &f = *b.fibers[i];
        f.at = {unsigned(i % blockDim.x), unsigned(i / blockDim.x % blockDim.y), unsigned(i / blockDim.x / blockDim.y)};
        f.done = false;
        f.waits = nullptr;
        f.until = nullptr;
        f.copies = {};
    }
    for (;;) {
        bool ran = false;
        for (size_t i : ordered(count, order, random)) {
            Fiber &f = *b.fibers[i];
            if (f.waits && f.until && f.until()) f.waits = nullptr, f.until = nullptr;
            if (f.done || f.waits) continue;
            resume(i);
            ran = true;
        }
        if (ran) continue;
        size_t done = 0, at_barrier = 0;
        for (size_t i = 0; i < count; i++) {
            const Fiber &f = *b.fibers[i];
            done += f.done;
            at_barrier += !f.done && f.waits_for_block;
        }
        if (done == count) break;
        if (at_barrier < count) {
            for (size_t i = 0; i < count; i++)
                if (!b.fibers[i]->done) threadIdx = b.fibers[i]->at;
            fail(done ? "a barrier that some threads never reach: they are done"
                      : "a barrier or a warp's instruction that some threads never reach");
        }
        for (size_t i = 0; i < count; i++) b.fibers[i]->waits = nullptr, b.fibers[i]->waits_for_block = false;
    }
    const unsigned char *rest = shared_begin() + b.shared_bytes;
    for (; rest < shared_end(); rest++)
        if (*rest != 0xff) fail("wrote past the end of shared memory");
}

// Runs every block of a grid.
template <typename... Parameters, typename... Arguments>
void launch(const char *name, void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared, Order order,
            unsigned seed, Arguments... arguments) {
    Block &b = block();
    b.kernel = name;
    const size_t count = size_t(threads.x) * threads.y * threads.z;
    if (count % 32 || count > 1024 || shared > MOST_SHARED) fail("a launch that no card takes");
    gridDim = grid;
    blockDim = threads;
    b.body = [=] { kernel(static_cast<Parameters>(arguments)...); };
    b.shared_bytes = shared;
    while (b.fibers.size() < count) b.fibers.push_back(std::make_unique<Fiber>());
    b.count = count;
    b.warps.resize(count / 32);
    std::mt19937 random(seed);
    for (size_t i : ordered(size_t(grid.x) * grid.y * grid.z, order, random)) {
        blockIdx = {unsigned(i % grid.x), unsigned(i / grid.x % grid.y), unsigned(i / grid.x / grid.y)};
        run_block(order, random);
    }
}

} // namespace cuda_language

inline void __syncthreads() { cuda_language::pause("__syncthreads", true); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    if (mask != 0xffffffffu) cuda_language::fail("__syncwarp of a part of a warp");
    cuda_language::exchange("__syncwarp", 0);
}

namespace cuda_language {
template <typename T> T from_lane(const char *instruction, unsigned mask, T mine, int lane) {
    if (mask != 0xffffffffu) fail("a shuffle of a part of a warp");
    return exchange(instruction, mine)[lane];
}
} // namespace cuda_language

template <typename T> T __shfl_sync(unsigned mask, T x, int from) {
    return cuda_language::from_lane("__shfl_sync", mask, x, from & 31);
}
template <typename T> T __shfl_xor_sync(unsigned mask, T x, int with) {
    return cuda_language::from_lane("__shfl_xor_sync", mask, x, cuda_language::lane() ^ with);
}
template <typename T> T __shfl_up_sync(unsigned mask, T x, int by) {
    const int lane = cuda_language::lane();
    return cuda_language::from_lane("__shfl_up_sync", mask, x, lane >= by ? lane - by : lane);
}
template <typename T> T __shfl_down_sync(unsigned mask, T x, int by) {
    const int lane = cuda_language::lane();
    return cuda_language::from_lane("__shfl_down_sync", mask, x, lane + by < 32 ? lane + by : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    if (mask != 0xffffffffu) cuda_language::fail("a vote of a part of a warp");
    const int *given = cuda_language::exchange("__ballot_sync", predicate);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++) votes |= unsigned(given[i] != 0) << i;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }

template <typename T> T atomicAdd(T *to, T x) {
    const T old = *to;
    *to = old + x;
    return old;
}
template <typename T> T atomicMax(T *to, T x) {
    const T old = *to;
    *to = old < x ? x : old;
    return old;
}
