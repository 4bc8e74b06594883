// The harness without a card: memory that ends at a forbidden page, and every launch in several orders of its fibers.
#pragma once

namespace harness {

inline float host_f32(bf16 x) { return to_f32(x); }
template <typename T> T host_from(float x) { return from_f32<T>(x); }

// Memory whose last byte (up to the alignment that kernels may ask for) lies before a page that nobody may touch.
template <typename T> class Buffer {
    T *first;
    size_t count, mapped;
    void *memory;

  public:
    explicit Buffer(size_t n, bool aligned = true) : count(n) {
        const size_t page = cuda_language::PAGE, bytes = n * sizeof(T);
        mapped = (bytes + page - 1) / page * page + page;
        memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) cuda_language::fail("no memory");
        unsigned char *end = static_cast<unsigned char *>(memory) + mapped - page;
        mprotect(end, page, PROT_NONE);
        const size_t room = aligned ? (bytes + 15) / 16 * 16 : bytes;
        first = reinterpret_cast<T *>(end - room);
        memset(static_cast<void *>(first), 0xff, room);
    }
    Buffer(const Buffer &other) : Buffer(other.count) { memcpy(static_cast<void *>(first), other.first, count * sizeof(T)); }
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { munmap(memory, mapped); }
    T *data() { return first; }
    const T *data() const { return first; }
    size_t size() const { return count; }
    T &operator[](size_t i) { return first[i]; }
    const T &operator[](size_t i) const { return first[i]; }
};

inline cuda_language::Order &order() {
    static cuda_language::Order o = cuda_language::Order::Forward;
    return o;
}
inline unsigned &seed() {
    static unsigned s = 1;
    return s;
}

template <typename... P, typename... A>
void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
    cuda_language::launch(name, kernel, grid, block, shared, order(), seed()++, arguments...);
}

// Calls `test` once for each order in which fibers may run.
inline void in_every_order(const std::function<void()> &test) {
    using cuda_language::Order;
    for (Order o : {Order::Forward, Order::Backward, Order::Random}) {
        order() = o;
        test();
    }
}

} // namespace harness
