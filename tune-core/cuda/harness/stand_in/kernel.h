// A file of kernels as a library: each kernel by its name, to be launched with arguments as the driver is given them.
#pragma once

#include <primitives.cuh>

#include <utility>

struct Entry {
    const char *name;
    void (*run)(const unsigned (&grid)[3], const unsigned (&threads)[3], size_t shared, void **arguments);
    // Bytes of each parameter, and how many there are.
    const size_t *sizes;
    size_t count;
};

template <auto KERNEL> struct Call;
template <typename... P, void (*KERNEL)(P...)> struct Call<KERNEL> {
    static constexpr size_t COUNT = sizeof...(P);
    static inline const size_t sizes[] = {sizeof(P)...};
    template <size_t... I>
    static void unpack(const unsigned (&grid)[3], const unsigned (&threads)[3], size_t shared, void **arguments,
                       std::index_sequence<I...>) {
        cuda_language::launch("a kernel", KERNEL, dim3(grid[0], grid[1], grid[2]), dim3(threads[0], threads[1], threads[2]),
                              shared, cuda_language::Order::Forward, 1, *static_cast<P *>(arguments[I])...);
    }
    static void run(const unsigned (&grid)[3], const unsigned (&threads)[3], size_t shared, void **arguments) {
        unpack(grid, threads, shared, arguments, std::index_sequence_for<P...>());
    }
};

#define KERNELS(...)                                                                                                          \
    extern "C" __attribute__((visibility("default"))) const Entry *kernels() {                                                \
        static const Entry all[] = {__VA_ARGS__ {nullptr, nullptr, nullptr, 0}};                                                          \
        return all;                                                                                                           \
    }
#define KERNEL(name) {#name, Call<name>::run, Call<name>::sizes, Call<name>::COUNT},
