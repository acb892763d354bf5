// LayerNorm and what follows it, softmax in groups of V or an activation, in one pass over each row, forward and
// backward: networks/native.py builds this.
//
// Rows are [Q, B, D], float32 or bfloat16, with a gain and a bias [D] for each of Q networks; all else is float32, but
// for activations and derivatives by them, which are as rows are. D is a multiple of 16. Sums run over 16 lanes in one
// order.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int N = 16;  // lanes
constexpr int ROWS = 8;  // at once, so that their sums do not wait for one another
using F = float __attribute__((vector_size(4 * N)));
using I = int32_t __attribute__((vector_size(4 * N)));
using U = uint32_t __attribute__((vector_size(4 * N)));
using H = uint16_t __attribute__((vector_size(2 * N)));
struct bfloat16 {
    uint16_t bits;
};

template <class To, class From>
inline To as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &value, sizeof to);
    return to;
}

inline F load(const float *p) {
    F v;
    memcpy(&v, p, sizeof v);
    return v;
}

inline F load(const bfloat16 *p) {
    H h;
    memcpy(&h, p, sizeof h);
    return as<F>(__builtin_convertvector(h, U) << 16);
}

inline void store(float *p, F v) { memcpy(p, &v, sizeof v); }

inline void store(bfloat16 *p, F v) {  // to the nearest, ties to even; what is no number stays that
#ifdef __AVX512BF16__
    const auto h = _mm512_cvtneps_pbh(as<__m512>(v));
#else
    U u = as<U>(v), rounded = u + 0x7fff + ((u >> 16) & 1);
    H h = __builtin_convertvector((v != v ? u | 0x400000 : rounded) >> 16, H);
#endif
    memcpy(p, &h, sizeof h);
}

// 2^x for x <= 0, within 2e-7 of it, and 0 below 2^-126. The polynomial is that of least error on [-0.5, 0.5]; what is
// left of x becomes an exponent.
inline F power_of_two(F x) {
    const float round = 12582912.0f + 127;  // 1.5 * 2^23, where no digits are behind the point, and the exponent of 1
    const F least = F{} - 127.0f;
    x = least > x ? least : x;  // keeps what is no number
    F shifted = x + round, f = x - (shifted - round);
    F p = f * 1.326472714e-3f + 9.671512640e-3f;
    p = p * f + 5.550733743e-2f;
    p = p * f + 2.402224209e-1f;
    p = p * f + 6.931469776e-1f;
    p = p * f + 1.0f;
    return p * as<F>(as<U>(shifted) << 23);
}

#ifdef __clang__
#define SHUFFLE(v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#else  // what g++ has had before version 12, too
#define SHUFFLE(v, ...) __builtin_shuffle(v, I{__VA_ARGS__})
#endif

template <int S>
inline F swap(F v) {  // lanes that are S apart
    if constexpr (S == 4) return SHUFFLE(v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    if constexpr (S == 2) return SHUFFLE(v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    if constexpr (S == 1) return SHUFFLE(v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

template <class Op>
inline float fold(F v, Op op) {  // all lanes into one
    using F8 = float __attribute__((vector_size(32)));
    using F4 = float __attribute__((vector_size(16)));
    struct Halves {
        F8 low, high;
    } h = as<Halves>(v);
    struct Quarters {
        F4 low, high;
    } q = as<Quarters>(F8(op(h.low, h.high)));
    F4 f = op(q.low, q.high);
    return op(op(f[0], f[2]), op(f[1], f[3]));
}

constexpr auto larger = [](auto a, auto b) { return a > b ? a : b; };  // b where one is no number
constexpr auto added = [](auto a, auto b) { return a + b; };

// In every lane, what the V lanes of its group come to; what all lanes come to where V is 16 or more.
template <int V, class Op>
inline F over_group(F v, Op op) {
    if constexpr (V >= N) return F{} + fold(v, op);
    if constexpr (V > 4) v = op(v, swap<4>(v));
    if constexpr (V > 2) v = op(v, swap<2>(v));
    return op(v, swap<1>(v));
}

// 1 / sum over the group, in every lane
template <int V>
inline F share(F v) {
    if constexpr (V >= N) return F{} + 1.0f / fold(v, added);
    return 1.0f / over_group<V>(v, added);
}

// e^-|z| <= 1, from which sigmoid(z) comes without an overflow
inline F sigmoid(F z) {
    const F e = power_of_two(as<F>(as<U>(z) | 0x80000000u) * 1.44269504f);
    return (z < 0 ? e : F{} + 1.0f) / (1.0f + e);
}

// What follows the norm. `K` vectors of a row are computed together; `value` turns norms into outputs, in place, and
// `slope` turns derivatives by outputs into derivatives by norms, where `p` are outputs and `z` are norms.

template <int V>
struct Simplices {
    static constexpr int K = V < N ? 1 : V / N;  // vectors that a softmax goes over
    static constexpr bool BY_OUTPUT = true;  // whether `slope` goes by outputs, or by norms
    static constexpr bool WIDE = true;  // whether outputs are float32 whatever the rows are
    float scale;  // 1 / temperature

    void value(F (&z)[K]) const {
        const float to_bits = scale * 1.44269504f;
        F highest = F{} - INFINITY, whole = {};
        for (int k = 0; k < K; k++) highest = larger(z[k] *= to_bits, highest);
        highest = over_group<V>(highest, larger);
        for (int k = 0; k < K; k++) whole += z[k] = power_of_two(z[k] - highest);
        whole = share<V>(whole);
        for (int k = 0; k < K; k++) z[k] *= whole;
    }

    void slope(const F (&p)[K], F (&d)[K]) const {
        F dot = {};
        for (int k = 0; k < K; k++) dot += p[k] * d[k];
        dot = over_group<V>(dot, added);
        for (int k = 0; k < K; k++) d[k] = p[k] * (d[k] - dot) * scale;
    }
};

struct ReLU {
    static constexpr int K = 1;
    static constexpr bool BY_OUTPUT = false, WIDE = false;
    void value(F (&z)[1]) const { z[0] = z[0] <= 0 ? F{} : z[0]; }
    void slope(const F (&z)[1], F (&d)[1]) const { d[0] = z[0] <= 0 ? F{} : d[0]; }
};

struct SiLU {
    static constexpr int K = 1;
    static constexpr bool BY_OUTPUT = false, WIDE = false;
    void value(F (&z)[1]) const { z[0] *= sigmoid(z[0]); }
    void slope(const F (&z)[1], F (&d)[1]) const {
        const F s = sigmoid(z[0]);
        d[0] *= s * (1.0f + z[0] * (1.0f - s));
    }
};

template <class After, class T, class Y>
void forward_rows(After after, long begin, long end, long B, long D, const T *x, const float *gain, const float *bias,
                  float eps, Y *y, float *stats) {
    constexpr int K = After::K;
    for (long block = begin; block < end; block += ROWS) {
        const long stop = block + ROWS < end ? block + ROWS : end;
        float mean[ROWS], rstd[ROWS];
        for (long r = block; r < stop; r++) {
            F total = {};
            for (long i = 0; i < D; i += N) total += load(x + r * D + i);
            mean[r - block] = fold(total, added) / D;
        }
        for (long r = block; r < stop; r++) {
            F square = {};
            for (long i = 0; i < D; i += N) {
                F v = load(x + r * D + i) - mean[r - block];
                square += v * v;
            }
            const float var = fold(square, added) / D;
            rstd[r - block] = 1 / std::sqrt(var + eps) + (var - var);  // no number where the variance is infinite
        }
        for (long r = block; r < stop; r++) {
            const float *w = gain + r / B * D, *b = bias + r / B * D, m = mean[r - block], s = rstd[r - block];
            if (stats) stats[2 * r] = m, stats[2 * r + 1] = s;
            for (long g = 0; g < D; g += K * N) {
                F z[K];
                for (int k = 0; k < K; k++) {
                    const long i = g + k * N;
                    z[k] = (load(x + r * D + i) - m) * s * load(w + i) + load(b + i);
                }
                after.value(z);
                for (int k = 0; k < K; k++) store(y + r * D + g + k * N, z[k]);
            }
        }
    }
}

template <class After, class T, class Y>
void backward_rows(After after, long begin, long end, long B, long D, const T *x, const float *gain, const float *bias,
                   const Y *y, const float *stats, const Y *grad_y, T *grad_x, float *grad_gain, float *grad_bias) {
    constexpr int K = After::K;
    std::vector<float> scratch(D);
    for (long r = begin; r < end; r++) {
        const long q = r / B * D;
        const float mean = stats[2 * r], rstd = stats[2 * r + 1], *w = gain + q, *b = bias + q;
        float *d = scratch.data(), *to_gain = grad_gain + q, *to_bias = grad_bias + q;
        F total = {}, along = {};
        for (long g = 0; g < D; g += K * N) {
            F unit[K], by[K], dz[K];
            for (int k = 0; k < K; k++) {
                const long i = g + k * N;
                unit[k] = (load(x + r * D + i) - mean) * rstd;
                by[k] = After::BY_OUTPUT ? load(y + r * D + i) : unit[k] * load(w + i) + load(b + i);
                dz[k] = load(grad_y + r * D + i);
            }
            after.slope(by, dz);
            for (int k = 0; k < K; k++) {
                const long i = g + k * N;
                store(to_gain + i, load(to_gain + i) + dz[k] * unit[k]);
                store(to_bias + i, load(to_bias + i) + dz[k]);
                dz[k] *= load(w + i);
                store(d + i, dz[k]);
                total += dz[k];
                along += dz[k] * unit[k];
            }
        }
        const float offset = fold(total, added) / D, slope = fold(along, added) / D;
        for (long i = 0; i < D; i += N) {
            F unit = (load(x + r * D + i) - mean) * rstd;
            store(grad_x + r * D + i, rstd * (load(d + i) - offset - unit * slope));
        }
    }
}

template <class Rows>
void each_thread(int threads, long rows, Rows work) {  // work(which, begin, end), on as many rows each
    // On torch's own team: a smaller one, which a clause could ask for, would end the threads that are left over.
#pragma omp parallel for schedule(static, 1) if (threads > 1)
    for (int t = 0; t < threads; t++) work(t, rows * t / threads, rows * (t + 1) / threads);
}

// What follows, by number: relu, silu, or V of the simplices.
template <class Call>
void with(long after, float scale, Call call) {  // call(it), of a type that is known when this is compiled
    if (after == 0) return call(ReLU{});
    if (after == 1) return call(SiLU{});
    [=]<int... known>(std::integer_sequence<int, known...>) {
        ((after == known ? call(Simplices<known>{scale}) : void()), ...);
    }(std::integer_sequence<int, 2, 4, 8, 16, 32, 64, 128>());
}

template <class After, class T>
using Out = std::conditional_t<After::WIDE, float, T>;

}  // namespace

extern "C" {

// stats is [Q, B, 2], mean and 1 / deviation of each row, or null where nobody asks for a derivative.
void norm_forward(int half, int threads, long Q, long B, long D, long after, const void *x, const float *gain,
                  const float *bias, float scale, float eps, void *y, float *stats) {
    each_thread(threads, Q * B, [=](int, long begin, long end) {
        auto rows = [=]<class T>(const T *in) {
            with(after, scale, [=]<class After>(After it) {
                forward_rows(it, begin, end, B, D, in, gain, bias, eps, (Out<After, T> *)y, stats);
            });
        };
        half ? rows((const bfloat16 *)x) : rows((const float *)x);
    });
}

// y may be null but for simplices; grad_gain and grad_bias are [threads, Q, D], to be summed.
void norm_backward(int half, int threads, long Q, long B, long D, long after, const void *x, const float *gain,
                   const float *bias, float scale, const void *y, const float *stats, const void *grad_y,
                   void *grad_x, float *grad_gain, float *grad_bias) {
    each_thread(threads, Q * B, [=](int t, long begin, long end) {
        float *to_gain = grad_gain + t * Q * D, *to_bias = grad_bias + t * Q * D;
        memset(to_gain, 0, Q * D * sizeof(float));
        memset(to_bias, 0, Q * D * sizeof(float));
        auto rows = [=]<class T>(const T *in, T *out) {
            with(after, scale, [=]<class After>(After it) {
                using Y = Out<After, T>;
                backward_rows(it, begin, end, B, D, in, gain, bias, (const Y *)y, stats, (const Y *)grad_y, out,
                              to_gain, to_bias);
            });
        };
        half ? rows((const bfloat16 *)x, (bfloat16 *)grad_x) : rows((const float *)x, (float *)grad_x);
    });
}

}  // extern "C"
