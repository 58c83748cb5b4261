// y = f(w h + b), h = r (x + e - m), for x (B, N, C), channels last, with m and 1/r^2 the mean and variance (plus eps) of x + e over the N
// positions and the channels of a group, e (B, C), and f the identity or swish, f(z) = z / (1 + exp(-z)); and the gradients.
//
// One unit of work is a sample and a run of whole groups. It reads its part of x twice, from the processor's cache the second time. Sums
// are in float32 over CHUNK positions, in float64 beyond, and about the middle of three values, so a mean far from zero costs nothing.
// Results do not depend on the number of threads. OpenMP is that of the process: torch's.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>

namespace {

constexpr long CHUNK = 256, RUN = 64;  // positions summed in float32; channels of a unit, at least

template <long K> struct Lanes {
    typedef float f32 __attribute__((vector_size(4 * K)));
    typedef uint32_t u32 __attribute__((vector_size(4 * K)));
    typedef int32_t i32 __attribute__((vector_size(4 * K)));
    typedef uint16_t u16 __attribute__((vector_size(2 * K)));
};
template <long K> using Floats = typename Lanes<K>::f32;
struct bfloat16 { uint16_t bits; };

template <long K> inline Floats<K> get(const float* from) {
    Floats<K> result;
    std::memcpy(&result, from, sizeof result);
    return result;
}
template <long K> inline Floats<K> get(const bfloat16* from) {
    typename Lanes<K>::u16 bits;
    std::memcpy(&bits, from, sizeof bits);
    return (Floats<K>)(__builtin_convertvector(bits, typename Lanes<K>::u32) << 16);
}
template <long K> inline void put(float* to, Floats<K> value) { std::memcpy(to, &value, sizeof value); }
template <long K> inline void put(bfloat16* to, Floats<K> value) {  // to the nearest, ties to even; NaN stays NaN
    auto bits = (typename Lanes<K>::u32)value;
    auto rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, kept = (bits >> 16) | 0x40;
    auto result = __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? kept : rounded, typename Lanes<K>::u16);
    std::memcpy(to, &result, sizeof result);
}

// 1 / (1 + exp(-z)), exp to 2 units in the last place: 2^n p(r), |r| <= ln(2) / 2, p Taylor's. Beyond +-87 as at +-87; NaN stays NaN.
template <long K> inline Floats<K> logistic(Floats<K> z) {
    const Floats<K> far = Floats<K>{} + 87.0f;
    Floats<K> x = z > far ? -far : z < -far ? far : -z;
    Floats<K> n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 2^23: rounds to a whole number
    Floats<K> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats<K> p = 1 + r * (1 + r * (0.5f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r * (1 / 720.0f))))));
    auto power = (Floats<K>)((__builtin_convertvector(n, typename Lanes<K>::i32) + 127) << 23);
    return 1 / (1 + p * power);
}

// The middle one of three, lane by lane.
template <long K> inline Floats<K> middle(Floats<K> a, Floats<K> b, Floats<K> c) {
    const Floats<K> low = a < b ? a : b, high = a < b ? b : a, rest = high < c ? high : c;
    return low < rest ? rest : low;
}

// Calls body.operator()<K>(c) for consecutive c over `width` channels, K of them at once.
template <class Body> inline void over_channels(long width, Body body) {
    long c = 0;
    for (; c + 16 <= width; c += 16) body.template operator()<16>(c);
    for (; c + 4 <= width; c += 4) body.template operator()<4>(c);
    for (; c < width; c++) body.template operator()<1>(c);
}

struct Sizes { long B, N, C, G; };

// Runs body(b, first, width) for every sample and run of whole groups of about RUN channels, fewer where threads would be idle.
template <class Body> void over_units(const Sizes& size, Body body) {
    const long depth = size.C / size.G;
    long groups = depth >= RUN ? 1 : RUN / depth;
    while (groups > 1 && groups * depth >= 32 && size.B * ((size.G + groups - 1) / groups) < omp_get_max_threads()) groups = (groups + 1) / 2;
    const long width = groups * depth, runs = (size.C + width - 1) / width;
#pragma omp parallel for schedule(static)
    for (long unit = 0; unit < size.B * runs; unit++) {
        const long first = unit % runs * width;
        body(unit / runs, first, first + width <= size.C ? width : size.C - first);
    }
}

// What the passes over a unit's positions need, channel by channel: z = x scale + offset, h = x slope + level.
struct Unit {
    std::vector<float> scale, offset, slope, level;
    Unit(const float* e, const float* w, const float* bias, const float* moment, const Sizes& size, long b, long first, long width)
        : scale(width), offset(width), slope(width), level(width) {
        for (long c = 0; c < width; c++) {
            const long channel = first + c;
            const float *group = moment + (b * size.G + channel / (size.C / size.G)) * 2;
            slope[c] = group[1];
            level[c] = ((e ? e[b * size.C + channel] : 0) - group[0]) * group[1];
            scale[c] = w[channel] * slope[c];
            offset[c] = bias[channel] + w[channel] * level[c];
        }
    }
};

// Means (B, C) of x + e over positions into `mean`, and (m, r) of each group into `moment` (B, G, 2).
template <class T>
void moments(const T* x, const float* e, float* mean, float* moment, const Sizes& size, float eps, long b, long first, long width) {
    const long N = size.N, C = size.C, depth = C / size.G;
    std::vector<double> square(width);  // summed, about the channel's mean
    over_channels(width, [&]<long K>(long c) {
        const T* from = x + b * N * C + first + c;
        const Floats<K> pivot = middle<K>(get<K>(from + N / 4 * C), get<K>(from + N / 2 * C), get<K>(from + N * 3 / 4 * C));
        double s[K] = {}, q[K] = {};
        for (long start = 0; start < N; start += CHUNK) {
            Floats<K> a = {}, d = {};
            for (long n = start; n < N && n < start + CHUNK; n++) {
                Floats<K> v = get<K>(from + n * C) - pivot;
                a += v;
                d += v * v;
            }
            for (long k = 0; k < K; k++) s[k] += a[k], q[k] += d[k];
        }
        for (long k = 0; k < K; k++) {
            mean[b * C + first + c + k] = float(pivot[k] + s[k] / N + (e ? e[b * C + first + c + k] : 0));
            square[c + k] = q[k] - s[k] * s[k] / N;
        }
    });
    for (long g = 0; g < width / depth; g++) {
        const float* means = mean + b * C + first + g * depth;
        double m = 0, total = 0;
        for (long k = 0; k < depth; k++) m += means[k];
        m /= depth;
        for (long k = 0; k < depth; k++) total += square[g * depth + k] + N * (means[k] - m) * (means[k] - m);
        float* group = moment + (b * size.G + first / depth + g) * 2;
        group[0] = float(m);
        group[1] = float(1 / std::sqrt((total < 0 ? 0 : total) / (double(N) * depth) + eps));
    }
}

template <class T, bool swish>
void forward(const T* x, const float* e, const float* w, const float* bias, T* y, float* mean, float* moment, Sizes size, float eps) {
    over_units(size, [&](long b, long first, long width) {
        moments(x, e, mean, moment, size, eps, b, first, width);
        const Unit unit(e, w, bias, moment, size, b, first, width);
        over_channels(width, [&]<long K>(long c) {
            const long from = b * size.N * size.C + first + c;
            const Floats<K> scale = get<K>(&unit.scale[c]), offset = get<K>(&unit.offset[c]);
            for (long at = from; at < from + size.N * size.C; at += size.C) {
                Floats<K> z = get<K>(x + at) * scale + offset;
                put<K>(y + at, swish ? z * logistic<K>(z) : z);
            }
        });
    });
}

// Gradients: dx of x, de (B, C) of e, and dw, db (B, C), to be summed over samples. With d = dy f'(z): dw = sum d h, db = sum d,
// dx = r (w d - mean(w d) - h mean(w d h)), means over the positions and channels of a group.
template <class T, bool swish>
void backward(const T* x, const float* e, const float* w, const float* bias, const float* mean, const float* moment, const T* dy, T* dx,
              float* dw, float* db, float* de, Sizes size) {
    const long N = size.N, C = size.C, depth = C / size.G;
    over_units(size, [&](long b, long first, long width) {
        Unit unit(e, w, bias, moment, size, b, first, width);
        over_channels(width, [&]<long K>(long c) {
            const long from = b * N * C + first + c;
            const Floats<K> scale = get<K>(&unit.scale[c]), offset = get<K>(&unit.offset[c]);
            const Floats<K> slope = get<K>(&unit.slope[c]), level = get<K>(&unit.level[c]);
            double s[K] = {}, q[K] = {};
            for (long start = 0; start < N; start += CHUNK) {
                Floats<K> a = {}, p = {};
                for (long n = start; n < N && n < start + CHUNK; n++) {
                    const long at = from + n * C;
                    Floats<K> v = get<K>(x + at), d = get<K>(dy + at);
                    if (swish) {
                        Floats<K> z = v * scale + offset, f = logistic<K>(z);
                        d *= f * (1 + z * (1 - f));
                        put<K>(dx + at, d);
                    }
                    a += d;
                    p += d * (v * slope + level);
                }
                for (long k = 0; k < K; k++) s[k] += a[k], q[k] += p[k];
            }
            for (long k = 0; k < K; k++) db[b * C + first + c + k] = float(s[k]), dw[b * C + first + c + k] = float(q[k]);
        });
        for (long g = 0; g < width / depth; g++) {
            const double m = moment[(b * size.G + first / depth + g) * 2], r = moment[(b * size.G + first / depth + g) * 2 + 1];
            double s = 0, q = 0;
            for (long c = first + g * depth; c < first + (g + 1) * depth; c++) {
                s += double(w[c]) * db[b * C + c] / (double(N) * depth);
                q += double(w[c]) * dw[b * C + c] / (double(N) * depth);
            }
            for (long c = g * depth; c < (g + 1) * depth; c++) {  // from here on dx = d scale + x slope + level
                const long channel = b * C + first + c;
                de[channel] = float(r * (w[first + c] * double(db[channel]) - N * s - N * (mean[channel] - m) * r * q));
                unit.level[c] = float(-r * (s + unit.level[c] * q));
                unit.slope[c] = float(-r * r * q);
            }
        }
        const T* d = swish ? dx : dy;
        over_channels(width, [&]<long K>(long c) {
            const long from = b * N * C + first + c;
            const Floats<K> scale = get<K>(&unit.scale[c]), slope = get<K>(&unit.slope[c]), level = get<K>(&unit.level[c]);
            for (long at = from; at < from + N * C; at += C) put<K>(dx + at, get<K>(d + at) * scale + get<K>(x + at) * slope + level);
        });
    });
}

}  // namespace

#define EXPORTED(T, name)                                                                                                                    \
    extern "C" void forward_##name(const T* x, const float* e, const float* w, const float* bias, T* y, float* mean, float* moment, long B,   \
                                   long N, long C, long G, float eps, int swish) {                                                           \
        (swish ? forward<T, true> : forward<T, false>)(x, e, w, bias, y, mean, moment, Sizes{B, N, C, G}, eps);                               \
    }                                                                                                                                        \
    extern "C" void backward_##name(const T* x, const float* e, const float* w, const float* bias, const float* mean, const float* moment,    \
                                    const T* dy, T* dx, float* dw, float* db, float* de, long B, long N, long C, long G, int swish) {         \
        (swish ? backward<T, true> : backward<T, false>)(x, e, w, bias, mean, moment, dy, dx, dw, db, de, Sizes{B, N, C, G});                 \
    }

EXPORTED(float, float32)
EXPORTED(bfloat16, bfloat16)
