// Timing on a card: random inputs, medians of events, TFLOP/s and GB/s.
#pragma once

#include "../harness.h"

namespace harness {

// Numbers that the caller fills in.
template <> inline unsigned host_from<unsigned>(float) { return 0; }

// Memory of the card alone, filled with numbers in [-1, 1).
template <typename T> struct OnCard {
    T *data = nullptr;
    size_t count;
    explicit OnCard(size_t n, unsigned seed = 1, float size = 1.0f) : count(n) {
        check(cudaMalloc(&data, n * sizeof(T) + 16), "cudaMalloc");
        std::vector<T> host(n);
        uint32_t x = seed * 2654435761u + 1;
        for (T &h : host) {
            x = x * 1664525u + 1013904223u;
            h = host_from<T>(size * (float(x >> 8) / 8388608.0f - 1.0f));
        }
        copy_in(host.data());
    }
    void copy_in(const T *from) { check(cudaMemcpy(data, from, count * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy"); }
    std::vector<double> copy_out() const {
        std::vector<T> host(count);
        check(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
        std::vector<double> d(count);
        for (size_t i = 0; i < count; i++) d[i] = widened(host[i]);
        return d;
    }
    OnCard(const OnCard &) = delete;
    ~OnCard() { cudaFree(data); }
};

// The median time of a piece of work in milliseconds.
inline double time_of(const std::function<void()> &work, int repeats = 15) {
    std::vector<float> times;
    cudaEvent_t start, end;
    check(cudaEventCreate(&start), "event"), check(cudaEventCreate(&end), "event");
    for (int i = 0; i < repeats + 3; i++) {
        check(cudaEventRecord(start), "event");
        work();
        check(cudaEventRecord(end), "event");
        check(cudaEventSynchronize(end), "what is timed");
        float ms;
        check(cudaEventElapsedTime(&ms, start, end), "event");
        if (i >= 3) times.push_back(ms);
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

template <typename... P, typename... A>
void start(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
    if (shared > 48 << 10) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), "shared memory");
    kernel<<<grid, block, shared>>>(static_cast<P>(arguments)...);
    check(cudaGetLastError(), "launch");
}

inline double relative_error(const std::vector<double> &a, const std::vector<double> &right) {
    Error e;
    for (size_t i = 0; i < a.size(); i++) e.add(a[i], right[i]);
    return e.relative();
}

} // namespace harness
