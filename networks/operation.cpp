// What norm.cpp computes, as an operation of torch with a derivative: networks/native.py builds this, too.
//
// In C++, since a function of Python's with a derivative takes several times as long to call as small networks' rows
// take to compute.

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// The functions of norm.cpp.
struct Kernels {
    void (*forward)(int half, int threads, long Q, long B, long D, long after, const void *x, const float *gain,
                    const float *bias, float scale, float eps, void *y, float *stats);
    void (*backward)(int half, int threads, long Q, long B, long D, long after, const void *x, const float *gain,
                     const float *bias, float scale, const void *y, const float *stats, const void *grad_y,
                     void *grad_x, float *grad_gain, float *grad_bias);
};

constexpr int64_t RELU = 0, SILU = 1;  // what follows, otherwise V of simplices
constexpr int64_t GRAIN = 1 << 15;  // numbers that a thread has to do at least; torch hands out its own loops by it

struct Sizes {
    int half, threads;
    int64_t Q, B, D;

    Sizes(const Tensor &x, const Tensor &gain)
        : half(x.scalar_type() == at::kBFloat16), D(x.size(-1)) {
        threads = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), x.numel() / GRAIN));
        Q = gain.numel() / D;
        B = x.numel() / gain.numel();
    }
};

bool on_simplices(int64_t after) { return after != RELU && after != SILU; }

const float *floats(const Tensor &x) { return static_cast<const float *>(x.const_data_ptr()); }

float *floats_of(Tensor &x) { return static_cast<float *>(x.mutable_data_ptr()); }

// Simplices come out in float32, activations in the precision of x. `stats` is what derivatives ask for, if any will.
Tensor forward(const Kernels *kernels, const Tensor &x, const Tensor &gain, const Tensor &bias, int64_t after,
               double eps, double temperature, Tensor *stats) {
    const Sizes s(x, gain);
    Tensor out = at::empty(x.sizes(), on_simplices(after) ? gain.options() : x.options());
    if (stats) *stats = at::empty({s.Q * s.B, 2}, gain.options());
    kernels->forward(s.half, s.threads, s.Q, s.B, s.D, after, x.const_data_ptr(), floats(gain), floats(bias),
                     1 / temperature, eps, out.mutable_data_ptr(), stats ? floats_of(*stats) : nullptr);
    return out;
}

// Derivatives by x, gain and bias.
tensor_list backward(const Kernels *kernels, const Tensor &x, const Tensor &gain, const Tensor &bias, int64_t after,
                     double temperature, const Tensor &out, const Tensor &stats, const Tensor &grad) {
    const Sizes s(x, gain);
    std::vector<int64_t> shape = gain.sizes().vec();
    if (s.threads > 1) shape.insert(shape.begin(), s.threads);
    Tensor by_x = at::empty_like(x), by_gain = at::empty(shape, gain.options()), by_bias = at::empty_like(by_gain);
    kernels->backward(s.half, s.threads, s.Q, s.B, s.D, after, x.const_data_ptr(), floats(gain), floats(bias),
                      1 / temperature, out.defined() ? out.const_data_ptr() : nullptr, floats(stats),
                      grad.const_data_ptr(), by_x.mutable_data_ptr(), floats_of(by_gain), floats_of(by_bias));
    if (s.threads > 1) return {by_x, by_gain.sum(0), by_bias.sum(0)};
    return {by_x, by_gain, by_bias};
}

// The same in torch's operations, for those who differentiate it again, or many at once.
tensor_list backward_by_torch(const Tensor &x, const Tensor &gain, const Tensor &bias, int64_t after, double eps,
                              double temperature, const Tensor &out, const Tensor &grad_out) {
    const Tensor wide = x.to(at::kFloat), grad = grad_out.to(at::kFloat), centred = wide - wide.mean(-1, true);
    const Tensor rstd = (centred.square().mean(-1, true) + eps).rsqrt(), unit = centred * rstd;
    Tensor by_normed;
    if (on_simplices(after)) {
        std::vector<int64_t> shape = x.sizes().vec();
        shape.back() /= after;
        shape.push_back(after);
        const Tensor codes = out.reshape(shape), by_code = grad.reshape(shape);
        by_normed = (codes * (by_code - (codes * by_code).sum(-1, true))).reshape(x.sizes()) / temperature;
    } else {
        const Tensor normed = unit * gain + bias, share = normed.sigmoid();
        by_normed = after == RELU ? grad * (normed > 0) : grad * (share * (1 + normed * (1 - share)));
    }
    const Tensor by_unit = by_normed * gain, along = (by_unit * unit).mean(-1, true);
    const Tensor by_x = rstd * (by_unit - by_unit.mean(-1, true) - unit * along);
    return {by_x.to(x.scalar_type()), (by_normed * unit).sum_to_size(gain.sizes()),
            by_normed.expand_as(unit).sum_to_size(gain.sizes())};
}

// Whether numbers lie where a pointer says: not those of many derivatives at once, nor zeros that torch saves.
bool has_memory(const Tensor &x) {
    try {
        return x.numel() == 0 || x.const_data_ptr() != nullptr;
    } catch (const c10::Error &) {
        return false;
    }
}

struct NormAnd : torch::autograd::Function<NormAnd> {
    static Tensor forward(AutogradContext *context, int64_t kernels, const Tensor &x, const Tensor &gain,
                          const Tensor &bias, int64_t after, double eps, double temperature) {
        Tensor stats, out = ::forward(kernels_at(kernels), x, gain, bias, after, eps, temperature, &stats);
        context->save_for_backward({x, gain, bias, on_simplices(after) ? out : Tensor(), stats});
        auto &data = context->saved_data;
        data["kernels"] = kernels, data["after"] = after, data["eps"] = eps, data["temperature"] = temperature;
        return out;
    }

    static tensor_list backward(AutogradContext *context, const tensor_list &grads) {
        const tensor_list saved = context->get_saved_variables();
        const Tensor &x = saved[0], &gain = saved[1], &bias = saved[2], &out = saved[3], &stats = saved[4];
        auto &data = context->saved_data;
        const int64_t after = data["after"].toInt();
        const double eps = data["eps"].toDouble(), temperature = data["temperature"].toDouble();
        tensor_list by;
        if (at::GradMode::is_enabled() || !has_memory(grads[0])) {
            by = backward_by_torch(x, gain, bias, after, eps, temperature, out, grads[0]);
        } else {
            const Tensor grad = grads[0].resolve_neg().contiguous();
            by = ::backward(kernels_at(data["kernels"].toInt()), x, gain, bias, after, temperature, out, stats, grad);
        }
        return {Tensor(), by[0], by[1], by[2], Tensor(), Tensor(), Tensor()};
    }

    static const Kernels *kernels_at(int64_t address) { return reinterpret_cast<const Kernels *>(address); }
};

}  // namespace

// Make of two functions of norm.cpp the operation semrl::<name>, unless there is one; returns what is wrong, or null.
// What this makes lives as long as the process, as operations of torch do.
extern "C" __attribute__((visibility("default"))) const char *define(const char *name, void *forward_, void *backward_) {
    static std::string wrong;
    try {
        const std::string semrl = "semrl";
        if (c10::Dispatcher::singleton().findSchema({semrl + "::" + name, ""})) return nullptr;
        const auto *kernels = new Kernels{reinterpret_cast<decltype(Kernels::forward)>(forward_),
                                          reinterpret_cast<decltype(Kernels::backward)>(backward_)};
        const auto alone = [kernels](const Tensor &x, const Tensor &gain, const Tensor &bias, int64_t after, double eps,
                                     double temperature) {
            return forward(kernels, x.contiguous(), gain.contiguous(), bias.contiguous(), after, eps, temperature,
                           nullptr);
        };
        const auto tracked = [kernels, alone](const Tensor &x, const Tensor &gain, const Tensor &bias, int64_t after,
                                              double eps, double temperature) {
            if (!at::GradMode::is_enabled() || !(x.requires_grad() || gain.requires_grad() || bias.requires_grad()))
                return alone(x, gain, bias, after, eps, temperature);
            return NormAnd::apply(reinterpret_cast<int64_t>(kernels), x.contiguous(), gain.contiguous(),
                                  bias.contiguous(), after, eps, temperature);
        };
        const auto part = [&](torch::Library::Kind kind, std::optional<c10::DispatchKey> key) {
            return new torch::Library(kind, semrl, key, __FILE__, __LINE__);
        };
        const char *schema = "(Tensor x, Tensor gain, Tensor bias, int after, float eps, float temperature) -> Tensor";
        part(torch::Library::FRAGMENT, std::nullopt)->def((name + std::string(schema)).c_str());
        part(torch::Library::IMPL, c10::DispatchKey::CPU)->impl(name, alone);
        part(torch::Library::IMPL, c10::DispatchKey::AutogradCPU)->impl(name, tracked);
    } catch (const std::exception &error) {
        wrong = error.what();
        return wrong.c_str();
    }
    return nullptr;
}
