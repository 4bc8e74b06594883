// The plain twin of kernels/ptx/warpgroup.cuh. Products are done when they are waited for, and not before.
#pragma once

#include <primitives.cuh>

#include <map>

namespace cuda_language {

struct Product {
    std::function<void()> run;
};
struct Products {
    std::vector<Product> open;
    std::vector<std::vector<Product>> groups;
};

// The products of a thread, by block and thread; forgotten when all are done.
inline Products &products() {
    static std::map<std::pair<uint64_t, size_t>, Products> all;
    const uint64_t at = (uint64_t(blockIdx.z) << 42) | (uint64_t(blockIdx.y) << 21) | blockIdx.x;
    return all[{at, block().current}];
}

struct Panel {
    const unsigned char *at;
    uint32_t next;
};

} // namespace cuda_language

// Descriptors are numbers of a list here: an address of 64 bits has no room in one.
inline std::vector<cuda_language::Panel> &panels() {
    static std::vector<cuda_language::Panel> list;
    return list;
}
inline uint64_t panel_descriptor(const void *panel, uint32_t next_panel) {
    using namespace cuda_language;
    if (uintptr_t(panel) % 32) fail("a panel's descriptor: not aligned");
    if (panels().size() > 1 << 20) panels().clear();
    panels().push_back({static_cast<const unsigned char *>(panel), next_panel});
    return panels().size() - 1;
}

inline void warpgroup_fence() { cuda_language::exchange("wgmma.fence", 0); }
inline void warpgroup_commit() {
    auto &p = cuda_language::products();
    p.groups.push_back(std::move(p.open));
    p.open.clear();
    cuda_language::exchange("wgmma.commit_group", 0);
}
template <int PENDING> inline void warpgroup_wait() {
    auto &p = cuda_language::products();
    cuda_language::exchange("wgmma.wait_group", 0);
    while (p.groups.size() > PENDING) {
        for (auto &product : p.groups.front()) product.run();
        p.groups.erase(p.groups.begin());
    }
    // Nobody goes on to overwrite what another lane still reads.
    cuda_language::exchange("wgmma.wait_group", 0);
}
inline void show_to_products() {}

namespace cuda_language {
// As the barrier lies in shared memory: what has arrived of `count`, and the phase.
struct Barrier {
    uint16_t arrived, count;
    uint32_t phase;
};
inline Barrier &barrier_at(uint64_t *at) {
    if (uintptr_t(at) % 8) fail("a barrier that is not aligned");
    check_shared(at, 8);
    return *reinterpret_cast<Barrier *>(at);
}
} // namespace cuda_language

inline void barrier_init(uint64_t *barrier, uint32_t count) { cuda_language::barrier_at(barrier) = {0, uint16_t(count), 0}; }
inline void barrier_arrive(uint64_t *barrier, bool really = true) {
    cuda_language::Barrier &b = cuda_language::barrier_at(barrier);
    if (b.count == 0xffff) cuda_language::fail("a barrier that nobody has made");
    if (really && ++b.arrived == b.count) b.arrived = 0, b.phase++;
}
inline void barrier_wait(uint64_t *barrier, uint32_t parity) {
    cuda_language::Barrier &b = cuda_language::barrier_at(barrier);
    if (b.count == 0xffff) cuda_language::fail("a barrier that nobody has made");
    cuda_language::wait_until("mbarrier.try_wait", [&b, parity] { return (b.phase & 1) != parity; });
}
inline void numbered_barrier_arrive(int number, int threads) {
    cuda_language::Numbered &b = cuda_language::block().numbered[number];
    if (++b.arrived == unsigned(threads)) b.arrived = 0, b.phase++;
}
inline void numbered_barrier_wait(int number, int threads) {
    cuda_language::Numbered &b = cuda_language::block().numbered[number];
    const unsigned phase = b.phase;
    numbered_barrier_arrive(number, threads);
    cuda_language::wait_until("bar.sync", [&b, phase] { return b.phase != phase; });
}
template <int N> inline void fewer_registers() {}
template <int N> inline void more_registers() {}

namespace cuda_language {

// Element (row, col) of panels that begin at a multiple of 1024 bytes before `p.at`; the swizzle works on addresses.
inline float panel_element(const Panel &p, int row, int col) {
    const unsigned char *base = shared_begin();
    uintptr_t offset = uintptr_t(p.at - base) + uintptr_t(col / 64) * p.next + uintptr_t(row) * 128 + uintptr_t(col % 64) * 2;
    offset ^= (offset >> 3) & 0x70;
    check_shared(base + offset, 2);
    uint16_t bits;
    memcpy(&bits, base + offset, 2);
    return to_f32(bf16{bits});
}

} // namespace cuda_language

template <int N> inline void warpgroup_mma(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add) {
    using namespace cuda_language;
    const Panel left = panels()[a], right = panels()[b];
    const int lane = int(block().current % 32), warp = int(block().current / 32 % 4);
    float(*to)[4] = d;
    exchange("wgmma", 0);
    products().open.push_back({[=] {
        for (int n = 0; n < N / 8; n++)
            for (int i = 0; i < 4; i++) {
                float sum = 0;
                for (int k = 0; k < 16; k++)
                    sum += panel_element(left, 16 * warp + lane / 4 + 8 * (i / 2), k) * panel_element(right, 8 * n + lane % 4 * 2 + i % 2, k);
                to[n][i] = add ? to[n][i] + sum : sum;
            }
    }});
}

template <int N> inline void warpgroup_mma(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b) {
    using namespace cuda_language;
    struct Fragment {
        uint32_t a[4];
    } mine{{a[0], a[1], a[2], a[3]}};
    const Panel right = panels()[b];
    const int lane = int(block().current % 32);
    const Fragment *all = exchange("wgmma", mine);
    struct Quad {
        Fragment of[4];
    } quad;
    for (int i = 0; i < 4; i++) quad.of[i] = all[lane / 4 * 4 + i];
    float(*to)[4] = d;
    products().open.push_back({[=] {
        for (int n = 0; n < N / 8; n++)
            for (int i = 0; i < 4; i++) {
                float sum = 0;
                for (int k = 0; k < 16; k++) {
                    const float l = half_of(quad.of[k % 8 / 2].a[i / 2 + 2 * (k / 8)], k % 2);
                    sum += l * panel_element(right, k, 8 * n + lane % 4 * 2 + i % 2);
                }
                to[n][i] += sum;
            }
    }});
}
