// The harness on a card: managed memory, and every call checked.
#pragma once

#include <cuda_runtime.h>

namespace harness {

inline void check(cudaError_t e, const char *what) {
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
    exit(3);
}

inline float host_f32(bf16 x) { return __bfloat162float(x); }
template <typename T> T host_from(float x);
template <> inline float host_from<float>(float x) { return x; }
template <> inline bf16 host_from<bf16>(float x) { return __float2bfloat16_rn(x); }

template <typename T> class Buffer {
    T *first = nullptr;
    size_t count;

  public:
    explicit Buffer(size_t n, bool = true) : count(n) {
        check(cudaMallocManaged(&first, n * sizeof(T) + 16), "cudaMallocManaged");
        memset(static_cast<void *>(first), 0xff, n * sizeof(T));
    }
    Buffer(const Buffer &other) : Buffer(other.count) { memcpy(static_cast<void *>(first), other.first, count * sizeof(T)); }
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer() { cudaFree(first); }
    T *data() { return first; }
    const T *data() const { return first; }
    size_t size() const { return count; }
    T &operator[](size_t i) { return first[i]; }
    const T &operator[](size_t i) const { return first[i]; }
};

template <typename... P, typename... A>
void launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, A... arguments) {
    if (shared > 48 << 10)
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)), name);
    kernel<<<grid, block, shared>>>(static_cast<P>(arguments)...);
    check(cudaGetLastError(), name);
    check(cudaDeviceSynchronize(), name);
}

inline void in_every_order(const std::function<void()> &test) { test(); }

} // namespace harness
