// What is rounded to few levels, and what must come of it to the last bit: harness/rounded.txt has a hash for each kind and size, which a
// test of the processor's own code (tune-core/src/kernels/fake_quant) makes, too.
#pragma once

#include "harness.h"

#include <fstream>
#include <sstream>

namespace harness {

struct Rounding {
    std::string kind;
    int group, count;
    // Of f32 and of bf16: of the rounded numbers, and of their gradients where these may be limited.
    unsigned long long forward[2], backward[2];
};

[[noreturn]] inline void unreadable(const std::string &line) {
    printf("harness/rounded.txt: %s\n", line.c_str());
    exit(4);
}

inline std::vector<Rounding> roundings(const std::function<bool(const Rounding &)> &wanted) {
    std::ifstream file("harness/rounded.txt");
    std::vector<Rounding> all;
    for (std::string line; std::getline(file, line);) {
        Rounding one;
        std::istringstream words(line);
        if (line.empty() || line[0] == '#') continue;
        words >> one.kind >> one.group >> one.count >> std::hex;
        for (int type = 0; type < 2; type++) words >> one.forward[type] >> one.backward[type];
        if (!words) unreadable(line);
        if (wanted(one)) all.push_back(one);
    }
    if (all.empty()) unreadable("nothing to compare with");
    return all;
}

// Numbers of sizes from 1 down to 2^-7, exact in f32. From 256 to 511 all are zero, of each 64 two are as far from zero as any, and from
// 1024 to 1279 each second part of sixteen is the other way round.
inline void fill_rounding(std::vector<float> &x, unsigned long long seed) {
    unsigned long long state = seed;
    for (size_t i = 0; i < x.size(); i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        const int whole = int(state >> 40) - (1 << 23), smaller = int(state >> 37) & 7;
        x[i] = std::ldexp(float(whole), -23 - smaller);
        if (i % 64 == 40 || i % 64 == 50) x[i] = i % 64 == 40 ? -1.0f : 1.0f;
        if (i >= 256 && i < 512) x[i] = 0;
        if (i >= 1024 && i < 1280 && i / 16 % 2) x[i] = -x[i - 16];
    }
}

// FNV-1a.
template <typename T> unsigned long long hash_of(const T *x, size_t count) {
    unsigned long long hash = 0xcbf29ce484222325ull;
    const unsigned char *bytes = reinterpret_cast<const unsigned char *>(x);
    for (size_t i = 0; i < count * sizeof(T); i++) hash = (hash ^ bytes[i]) * 0x100000001b3ull;
    return hash;
}

// Notes whether they are those of the file; with TELL in the environment, says what they are.
inline void note_hash(const std::string &name, const Rounding &of, const char *what, unsigned long long found, unsigned long long right) {
    if (std::getenv("TELL")) printf("TELL %s %d %d %s %s %llx\n", of.kind.c_str(), of.group, of.count, name.c_str(), what, found);
    note(name, of.kind + " of " + std::to_string(of.count) + " in groups of " + std::to_string(of.group) + ", " + what, found != right, 0);
}

} // namespace harness
