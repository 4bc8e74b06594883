// Attention of one token on a cache against loops in f64.
#include "../harness.h"

#include "../../kernels/attention_decode.cu"

using namespace harness;

template <typename T, typename D, typename J>
void run(const char *name, D decode, J join, int G, int heads, int kv_heads, int dim, std::vector<int> lengths, int parts, int window,
         float softcap, Random &random) {
    const int sequences = int(lengths.size()), group = heads / kv_heads, longest = *std::max_element(lengths.begin(), lengths.end()) + 3;
    const int q_stride = heads * dim + 2, k_stride = kv_heads * dim + 4;
    Buffer<T> q(size_t(sequences) * q_stride), k(size_t(sequences) * longest * k_stride), v(k.size());
    Buffer<int2> counts(sequences);
    for (int i = 0; i < sequences; i++) counts[i] = {i * longest, lengths[i]};
    fill(q, random, 2), fill(k, random, 2), fill(v, random);
    // What lies past a sequence's end is read by nobody.
    for (int s = 0; s < sequences; s++)
        for (size_t i = size_t(s * longest + lengths[s]) * k_stride; i < size_t((s + 1) * longest) * k_stride; i++)
            k[i] = v[i] = host_from<T>(NAN);
    const float scale = 1 / std::sqrt(float(dim));
    char what[200];
    snprintf(what, sizeof what, "%d/%d heads of %d, %d sequences, %d parts, window %d, softcap %g", heads, kv_heads, dim, sequences, parts,
             window, softcap);
    in_every_order([&] {
        Buffer<T> out(q.size());
        Buffer<float> lse(size_t(heads) * sequences);
        Buffer<float> scratch(size_t(sequences) * heads * parts * (dim + 2));
        LAUNCH(decode, dim3(heads / G, sequences, parts), dim3(128), 16 * G * (dim + 2), scratch.data(), q.data(), k.data(), v.data(),
               counts.data(), q_stride, k_stride, k_stride, heads, group, dim, window, scale, softcap);
        LAUNCH(join, dim3(heads, sequences), dim3(128), 0, out.data(), lse.data(), scratch.data(), q_stride, heads, parts, dim);
        Error error, of_lse;
        for (int s = 0; s < sequences; s++)
            for (int h = 0; h < heads; h++) {
                const int low = window ? std::max(0, lengths[s] - window) : 0;
                std::vector<double> p(lengths[s]), right(dim, 0.0);
                double most = -INFINITY, total = 0;
                const auto at = [&](int key) { return size_t(s * longest + key) * k_stride + h / group * dim; };
                for (int j = low; j < lengths[s]; j++) {
                    double x = 0;
                    for (int e = 0; e < dim; e++) x += double(widened(q[size_t(s) * q_stride + h * dim + e])) * widened(k[at(j) + e]);
                    x *= double(scale);
                    if (softcap > 0) x = softcap * std::tanh(x / softcap);
                    p[j] = x, most = std::max(most, x);
                }
                for (int j = low; j < lengths[s]; j++) total += p[j] = std::exp(p[j] - most);
                for (int j = low; j < lengths[s]; j++)
                    for (int e = 0; e < dim; e++) right[e] += p[j] / total * widened(v[at(j) + e]);
                of_lse.add(lse[size_t(h) * sequences + s], most + std::log(total));
                for (int e = 0; e < dim; e++) error.add(widened(out[size_t(s) * q_stride + h * dim + e]), right[e]);
            }
        note(name, what, error.relative(), tolerance<T>());
        note(std::string(name) + " lse", what, of_lse.relative(), 1e-6);
    });
}

int main() {
    Random random(13);
    run<float>("attention_decode_f32", attention_decode_f32_g1, attention_join_f32, 1, 3, 3, 64, {1, 40, 7}, 2, 0, 0, random);
    run<float>("attention_decode_f32", attention_decode_f32_g4, attention_join_f32, 4, 8, 2, 128, {65, 2}, 3, 0, 0, random);
    run<float>("attention_decode_f32", attention_decode_f32_g2, attention_join_f32, 2, 6, 1, 80, {33, 50}, 1, 20, 9, random);
    run<bf16>("attention_decode_bf16", attention_decode_bf16_g1, attention_join_bf16, 1, 2, 1, 256, {5, 100}, 4, 0, 0, random);
    run<bf16>("attention_decode_bf16", attention_decode_bf16_g4, attention_join_bf16, 4, 8, 2, 128, {130}, 5, 0, 30, random);
    run<bf16>("attention_decode_bf16", attention_decode_bf16_g2, attention_join_bf16, 2, 2, 1, 96, {64, 1}, 1, 10, 0, random);
    return report();
}
