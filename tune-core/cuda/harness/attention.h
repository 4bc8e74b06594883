// Attention's tests: cases, and loops in f64.
#pragma once

#include "harness.h"

#include "../kernels/attention.cuh"

namespace harness {

struct AttentionCase {
    int heads, kv_heads, head_dim;
    std::vector<int> spans;
    int window = 0;
    float softcap = 0;
    int pad = 0;        // elements between the rows
    float size = 1.0f;  // of queries and keys

    int tokens() const {
        int n = 0;
        for (int s : spans) n += s;
        return n;
    }
    std::string text() const {
        std::string s = std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim) + ", spans";
        for (int n : spans) s += " " + std::to_string(n);
        return s + ", window " + std::to_string(window) + ", softcap " + std::to_string(softcap);
    }
    float scale() const { return 1.0f / std::sqrt(float(head_dim)); }
    // The tiles of `size` positions; those of queries with the last first, those of keys with the first first.
    Buffer<Tile> tiles(int size, bool keys) const {
        std::vector<Tile> all;
        int start = 0;
        for (int n : spans) {
            for (int first = 0; first < n; first += size) all.push_back({start, n, first, 0});
            start += n;
        }
        std::stable_sort(all.begin(), all.end(), [&](const Tile &a, const Tile &b) { return keys ? a.first < b.first : a.first > b.first; });
        Buffer<Tile> b(all.size());
        for (size_t i = 0; i < all.size(); i++) b[i] = all[i];
        return b;
    }
};

// Inputs, results, and what is right.
template <typename T> struct AttentionData {
    AttentionCase c;
    int tokens, q_stride, k_stride;
    Buffer<T> q, k, v, g, out, dq, dk, dv;
    Buffer<float> lse, delta;
    std::vector<double> right_out, right_lse, right_dq, right_dk, right_dv;

    AttentionData(const AttentionCase &c, Random &random)
        : c(c), tokens(c.tokens()), q_stride(c.heads * c.head_dim + c.pad), k_stride(c.kv_heads * c.head_dim + c.pad),
          q(size_t(tokens) * q_stride), k(size_t(tokens) * k_stride), v(k.size()), g(q.size()), out(q.size()), dq(q.size()),
          dk(k.size()), dv(k.size()), lse(size_t(c.heads) * tokens), delta(lse.size()) {
        fill(q, random, 2 * c.size), fill(k, random, 2 * c.size), fill(v, random), fill(g, random);
        reference();
    }

    void reference() {
        right_out.assign(q.size(), 0), right_dq.assign(q.size(), 0), right_dk.assign(k.size(), 0), right_dv.assign(k.size(), 0);
        right_lse.assign(lse.size(), 0);
        const std::vector<double> Q = doubles(q), K = doubles(k), V = doubles(v), G = doubles(g);
        const int d = c.head_dim, group = c.heads / c.kv_heads;
        const double scale = double(c.scale());
        int start = 0;
        for (int n : c.spans) {
            for (int h = 0; h < c.heads; h++)
                for (int i = 0; i < n; i++) {
                    const size_t at = size_t(start + i) * q_stride + h * d;
                    const int low = c.window ? std::max(0, i + 1 - c.window) : 0;
                    std::vector<double> s(i + 1), slope(i + 1, 1), p(i + 1), dp(i + 1);
                    double most = -INFINITY, total = 0, mean = 0;
                    auto key = [&](int j) { return size_t(start + j) * k_stride + h / group * d; };
                    for (int j = low; j <= i; j++) {
                        double x = 0;
                        for (int e = 0; e < d; e++) x += Q[at + e] * K[key(j) + e];
                        x *= scale;
                        if (c.softcap > 0) {
                            const double t = std::tanh(x / c.softcap);
                            x = c.softcap * t, slope[j] = 1 - t * t;
                        }
                        s[j] = x, most = std::max(most, x);
                    }
                    for (int j = low; j <= i; j++) total += p[j] = std::exp(s[j] - most);
                    right_lse[size_t(h) * tokens + start + i] = most + std::log(total);
                    for (int j = low; j <= i; j++) {
                        p[j] /= total, dp[j] = 0;
                        for (int e = 0; e < d; e++) {
                            right_out[at + e] += p[j] * V[key(j) + e];
                            dp[j] += G[at + e] * V[key(j) + e];
                        }
                        mean += p[j] * dp[j];
                    }
                    for (int j = low; j <= i; j++) {
                        const double ds = p[j] * (dp[j] - mean) * slope[j] * scale;
                        for (int e = 0; e < d; e++) {
                            right_dq[at + e] += ds * K[key(j) + e];
                            right_dk[key(j) + e] += ds * Q[at + e];
                            right_dv[key(j) + e] += p[j] * G[at + e];
                        }
                    }
                }
            start += n;
        }
    }

    void poison_results() { poison(out), poison(dq), poison(dk), poison(dv), poison(lse), poison(delta); }

    // |out - right| / |right|, and NaN if what lies between the rows was written.
    double error(const Buffer<T> &out, const std::vector<double> &right, int stride) const {
        Error e;
        for (size_t i = 0; i < out.size(); i++) {
            if (int(i % stride) < stride - c.pad) e.add(widened(out[i]), right[i]);
            else if (!is_poison(out[i])) return NAN;
        }
        return e.relative();
    }

    void note_forward(const std::string &name, double bound) {
        Error e;
        for (size_t i = 0; i < lse.size(); i++) e.add(lse[i], right_lse[i]);
        note(name, c.text(), error(out, right_out, q_stride), bound);
        note(name + " lse", c.text(), e.relative(), sizeof(T) == 4 ? 1e-6 : 1e-4);
    }
    void note_backward(const std::string &name, double bound) {
        note(name + " dq", c.text(), error(dq, right_dq, q_stride), bound);
        note(name + " dk", c.text(), error(dk, right_dk, k_stride), bound);
        note(name + " dv", c.text(), error(dv, right_dv, k_stride), bound);
    }
};

// New queries behind a past, keys elsewhere: what a run over the whole spans gives for the last `fresh` of each. `run` launches the
// kernel for tiles and the number of queries.
template <typename T, typename Run> void note_past(const std::string &name, AttentionData<T> &a, int fresh, int size, double bound, Run run) {
    const AttentionCase &c = a.c;
    const int spans = int(c.spans.size()), offset = 3; // rows before the keys
    Buffer<T> q(size_t(spans) * fresh * a.q_stride), out(q.size()), k(a.k.size() + size_t(offset) * a.k_stride), v(k.size());
    Buffer<float> lse(size_t(c.heads) * spans * fresh);
    memcpy(static_cast<void *>(&k[size_t(offset) * a.k_stride]), a.k.data(), a.k.size() * sizeof(T));
    memcpy(static_cast<void *>(&v[size_t(offset) * a.k_stride]), a.v.data(), a.v.size() * sizeof(T));
    std::vector<Tile> list;
    int start = 0;
    for (int s = 0; s < spans; s++) {
        const int past = c.spans[s] - fresh;
        memcpy(static_cast<void *>(&q[size_t(s) * fresh * a.q_stride]), &a.q[size_t(start + past) * a.q_stride],
               size_t(fresh) * a.q_stride * sizeof(T));
        for (int first = past; first < c.spans[s]; first += size)
            list.push_back({s * fresh - past, c.spans[s], first, offset + start - (s * fresh - past)});
        start += c.spans[s];
    }
    Buffer<Tile> tiles(list.size());
    for (size_t i = 0; i < list.size(); i++) tiles[i] = list[i];
    in_every_order([&] {
        poison(out), poison(lse);
        run(out, lse, q, k, v, tiles, spans * fresh);
        Error e;
        int start = 0;
        for (int s = 0; s < spans; s++) {
            start += c.spans[s];
            for (int i = 0; i < fresh; i++)
                for (int j = 0; j < c.heads * c.head_dim; j++)
                    e.add(widened(out[size_t(s * fresh + i) * a.q_stride + j]), a.right_out[size_t(start - fresh + i) * a.q_stride + j]);
        }
        note(name + " behind a past", c.text() + ", " + std::to_string(fresh) + " new", e.relative(), bound);
    });
}

} // namespace harness
