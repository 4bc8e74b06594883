// How fast the kernels that memory bounds are on a card: GB/s of what must be read and written, beside a plain copy.
#include "speed.h"

#include "../../kernels/common.cuh"

namespace norms {
#include "../../kernels/norm.cu"
}
namespace rotary_kernels {
#include "../../kernels/rotary.cu"
}
namespace gate {
#include "../../kernels/gate.cu"
}
namespace rows {
#include "../../kernels/rows.cu"
}
namespace drop {
#include "../../kernels/dropout.cu"
}
namespace loss_kernels {
#include "../../kernels/loss.cu"
}
namespace optim {
#include "../../kernels/optim.cu"
}

using namespace harness;

static void line(const char *name, double bytes, const std::function<void()> &work) {
    const double ms = time_of(work);
    printf("%-28s %8.3f ms %7.0f GB/s\n", name, ms, bytes / ms * 1e-6);
}

int main() {
    const int tokens = 16384, width = 2048, inner = 8192, vocab = 151936, some = 1024;
    {
        OnCard<bf16> a(size_t(tokens) * inner, 1), b(a.count, 2);
        line("cudaMemcpy, device to device", 4.0 * a.count,
             [&] { check(cudaMemcpyAsync(a.data, b.data, 2 * a.count, cudaMemcpyDeviceToDevice), "copy"); });
    }
    {
        OnCard<bf16> x(size_t(tokens) * width, 1), y(x.count, 2), g(x.count, 3), w(width, 4);
        OnCard<float> partial(size_t(1056) * width), dw(width);
        const double n = double(x.count);
        line("norm_forward", 4 * n, [&] {
            start(norms::norm_forward_bf16, dim3(tokens / 2), dim3(64, 2), 16, y.data, nullptr, x.data, nullptr, nullptr, w.data, tokens, width, width,
                  width, width, width, 1, width, 1e-5f, 0.0f);
        });
        line("norm_forward, residual", 8 * n, [&] {
            start(norms::norm_forward_bf16, dim3(tokens / 2), dim3(64, 2), 16, y.data, g.data, x.data, g.data, nullptr, w.data, tokens, width, width,
                  width, width, width, 1, width, 1e-5f, 0.0f);
        });
        line("norm_forward, heads of 128", 4 * n, [&] {
            start(norms::norm_forward_bf16, dim3(tokens), dim3(16, 16), 0, y.data, nullptr, x.data, nullptr, nullptr, w.data, tokens,
                  width, width, width, width, width, 16, 128, 1e-5f, 0.0f);
        });
        for (int blocks : {264, 528, 1056}) {
            char name[64];
            snprintf(name, sizeof name, "norm_backward, %d blocks", blocks);
            line(name, 8 * n, [&] {
                start(norms::norm_backward_bf16, dim3(blocks), dim3(64, 2), 16 + 8 * width, y.data, partial.data, x.data, g.data, w.data, tokens,
                      width, width, width, 1, width, 1e-5f, 0.0f, 1);
            });
        }
        line("norm_backward, no weight", 8 * n, [&] {
            start(norms::norm_backward_bf16, dim3(tokens / 2), dim3(64, 2), 16, y.data, nullptr, x.data, g.data, w.data, tokens, width, width, width,
                  1, width, 1e-5f, 0.0f, 1);
        });
        line("column_sums", 4.0 * 528 * width, [&] { start(norms::column_sums, dim3(width / 32), dim3(32, 32), 4096, dw.data, partial.data, 528, width, 0); });
        OnCard<float> angles(size_t(tokens) * 64);
        line("rotary", 4 * n, [&] {
            start(rotary_kernels::rotary_bf16, dim3(1, tokens), dim3(128), 0, x.data, angles.data, angles.data, tokens, width, 16, 128, 128, 1.0f);
        });
        OnCard<unsigned> ids(tokens);
        std::vector<unsigned> host(tokens);
        for (int i = 0; i < tokens; i++) host[i] = unsigned(i * 7919ll % tokens);
        ids.copy_in(host.data());
        line("rows_gather", 4 * n, [&] {
            start(rows::rows_gather_bf16, dim3(1, tokens), dim3(256), 0, y.data, x.data, ids.data, tokens, width, width, width);
        });
        line("rows_copy, accumulate", 6 * n, [&] {
            start(rows::rows_copy_bf16_bf16, dim3(1, tokens), dim3(256), 0, y.data, x.data, tokens, width, width, width, 1.0f, 1);
        });
        line("dropout", 4 * n, [&] {
            start(drop::dropout_bf16, dim3(1, tokens), dim3(256), 0, y.data, x.data, nullptr, nullptr, tokens, width, width, width, width,
                  1.1f, 900719925474100ull, 77ull);
        });
    }
    {
        OnCard<bf16> g(size_t(tokens) * inner, 1), u(g.count, 2), d(g.count, 3);
        for (int which = 0; which < 2; which++) {
            line(which ? "gate_forward, GELU" : "gate_forward, SiLU", 6.0 * g.count, [&] {
                start(gate::gate_forward_bf16, dim3(inner / 2048, tokens), dim3(256), 0, d.data, g.data, u.data, tokens, inner, inner, inner, inner,
                      which);
            });
            line(which ? "gate_backward, GELU" : "gate_backward, SiLU", 12.0 * g.count, [&] {
                start(gate::gate_backward_bf16, dim3(inner / 2048, tokens), dim3(256), 0, g.data, u.data, d.data, tokens, inner, inner, inner,
                      inner, which);
            });
        }
    }
    {
        OnCard<float> logits(size_t(some) * vocab, 1, 5), losses(some);
        OnCard<unsigned> targets(some);
        std::vector<unsigned> host(some);
        for (int i = 0; i < some; i++) host[i] = unsigned(i * 7919ll % vocab);
        targets.copy_in(host.data());
        for (int blocks : {44, 66, 132, 264}) {
            char name[64];
            snprintf(name, sizeof name, "loss_f32_bf16, %d blocks", blocks);
            line(name, 6.0 * logits.count, [&] {
                start(loss_kernels::loss_f32_bf16, dim3(blocks), dim3(1024), 128, losses.data, logits.data, targets.data, nullptr, nullptr, some,
                      vocab, vocab, 1, 1.0f, 0.0f);
            });
        }
        line("loss_f32_f32, no gradient", 4.0 * logits.count, [&] {
            start(loss_kernels::loss_f32_f32, dim3(some), dim3(1024), 128, losses.data, logits.data, targets.data, nullptr, nullptr, some, vocab,
                  vocab, 0, 1.0f, 0.0f);
        });
        line("loss_bf16_bf16 (2 + 2 bytes)", 4.0 * logits.count, [&] {
            start(loss_kernels::loss_bf16_bf16, dim3(some), dim3(1024), 128, losses.data, reinterpret_cast<bf16 *>(logits.data), targets.data,
                  nullptr, nullptr, some, vocab, vocab, 1, 1.0f, 0.0f);
        });
    }
    {
        const size_t n = size_t(1) << 27;
        OnCard<bf16> w(n, 1);
        OnCard<float> m(n, 2, 0.01f), v(n, 3, 0.01f), g(n, 4);
        check(cudaMemset(v.data, 0, 4 * n), "memset");
        const unsigned piece = 65536, pieces = unsigned(n / piece);
        Buffer<optim::Parameter> parameter(1);
        Buffer<optim::Piece> list(pieces);
        Buffer<double> partial(pieces);
        parameter[0] = {w.data, m.data, v.data, g.data, 12345, 0};
        for (unsigned i = 0; i < pieces; i++) list[i] = {0, piece, (unsigned long long)i * piece};
        line("adamw_bf16_f32", 24.0 * n, [&] {
            start(optim::adamw_bf16_f32, dim3(pieces), dim3(256), 0, parameter.data(), list.data(), nullptr, 1.0f, 0.1f, 0.999f, 0.001f, 1e-4f,
                  0.9f, 1.0f, 1e-8f);
        });
        line("squared_norms_f32", 4.0 * n,
             [&] { start(optim::squared_norms_f32, dim3(pieces), dim3(256), 2048, partial.data(), parameter.data(), list.data()); });
    }
    return 0;
}
