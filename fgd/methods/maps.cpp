// The passes of fgd/methods/maps.py for processors, each as one walk over both maps; see there for the formulas.
//
// N images, C channels, P cells; maps are dense floats, cells together (NCP) or channels together (NPC). A walk takes
// tiles of cells, several at once by as many threads. In a tile of NCP it takes LINES channels at a time, so that what is
// summed over them stays in registers; of NPC one cell at a time, for that is one stream through memory, and four were
// half as fast. Sums over a tile's cells are kept by tile and added up in order: the number of threads changes no bit.

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace {

using Index = std::int64_t;

#if defined(__AVX512F__)
constexpr Index WIDTH = 16, LINES = 4;
#elif defined(__AVX__)
constexpr Index WIDTH = 8, LINES = 2;
#else
constexpr Index WIDTH = 4, LINES = 4;
#endif

typedef float Lanes __attribute__((vector_size(WIDTH * sizeof(float))));
typedef std::int32_t Bits __attribute__((vector_size(WIDTH * sizeof(float))));

constexpr Index TILE_OF_CELLS = 1024;   // of NCP: a page of each channel, and running sums that stay in the first cache
constexpr Index TILE_OF_CHANNELS = 64;  // of NPC: cells, each with all its channels
constexpr Index WORTH_A_THREAD = 1 << 16;  // values

// GOMP_parallel of the OpenMP that torch runs: its threads wait for work, and others would have to wait for them.
using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
Parallel parallel = nullptr;

struct Maps {
    const float *student, *teacher;
    Index images, channels, cells;
    bool channels_last;
    int threads;

    Index tile() const { return channels_last ? TILE_OF_CHANNELS : TILE_OF_CELLS; }
    Index tiles() const { return (cells + tile() - 1) / tile(); }
};

struct Tile {
    Index image, first, length;
};

// --- lanes -------------------------------------------------------------------------------------------------------

struct All {};  // of the lanes
struct Some {
    Index count;
};

inline Lanes load(const float *from, All) {
    Lanes x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline Lanes load(const float *from, Some some) {
    Lanes x = {};
    std::memcpy(&x, from, some.count * sizeof(float));
    return x;
}

inline void store(float *to, Lanes x, All) { std::memcpy(to, &x, sizeof x); }

inline void store(float *to, Lanes x, Some some) { std::memcpy(to, &x, some.count * sizeof(float)); }

inline Lanes magnitude(Lanes x) { return (Lanes)((Bits)x & 0x7fffffff); }

// value where x > 0, -value where x < 0, else 0.
inline Lanes signed_as(Lanes x, Lanes value) { return (Lanes)(((Bits)value ^ ((Bits)x & INT32_MIN)) & (x != 0)); }

inline float total(Lanes x) {
    float sums[WIDTH];
    std::memcpy(sums, &x, sizeof x);
    for (Index half = WIDTH / 2; half > 0; half /= 2)
        for (Index lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}

// body(place, lanes) for each run of lanes of `length` values; lanes that are not there are loaded as 0.
template <class Body>
inline void lanes(Index length, Body body) {
    Index place = 0;
    for (; place + WIDTH <= length; place += WIDTH) body(place, All{});
    if (place < length) body(place, Some{length - place});
}

// --- walks -------------------------------------------------------------------------------------------------------

template <Index count>
struct Channels {
    Index first;
};

// body(channels) for LINES channels at a time, and for each of the rest alone.
template <class Body>
inline void channels(Index count, Body body) {
    Index channel = 0;
    for (; channel + LINES <= count; channel += LINES) body(Channels<LINES>{channel});
    for (; channel < count; channel++) body(Channels<1>{channel});
}

// body(tile, sums): `sums` are the tile's own, `rows` of them for each channel, and begin at 0. They are added to the
// `rows` arrays NC of `totals`.
template <class Body>
void walk(const Maps &maps, const std::vector<float *> &totals, bool backwards, Body body) {
    const Index tiles = maps.tiles(), items = maps.images * tiles;
    const Index rows = static_cast<Index>(totals.size()), width = rows * maps.channels;
    std::vector<float> sums(items * width, 0.0f);
    std::atomic<Index> next{0};
    auto work = [&] {
        for (Index item; (item = next++) < items;) {
            const Index which = backwards ? items - 1 - item : item;
            const Index first = which % tiles * maps.tile();
            body(Tile{which / tiles, first, std::min(maps.tile(), maps.cells - first)}, sums.data() + which * width);
        }
    };
    const Index worth = maps.images * maps.channels * maps.cells / WORTH_A_THREAD;
    const Index threads = std::max<Index>(1, std::min<Index>({maps.threads, items, worth}));
    if (threads > 1 && parallel != nullptr) {
        parallel([](void *each) { (*static_cast<decltype(work) *>(each))(); }, &work, threads, 0);
    } else {
        std::vector<std::thread> others;
        try {
            for (Index each = 1; each < threads; each++) others.emplace_back(work);
        } catch (const std::system_error &) {  // no more threads are to be had: those there are do it
        }
        work();
        for (auto &each : others) each.join();
    }
    for (Index item = 0; item < items; item++)
        for (Index row = 0; row < rows; row++)
            for (Index c = 0; c < maps.channels; c++)
                totals[row][item / tiles * maps.channels + c] += sums[item * width + row * maps.channels + c];
}

}  // namespace

extern "C" {

void run_by(Parallel torchs) { parallel = torchs; }

// The sums of |s| and |t|, and the logits of the contexts.
void magnitudes(const Maps *maps, const float *valid_NP, const float *student_attend_NC, const float *teacher_attend_NC,
                float *student_cells_NP, float *student_channels_NC, float *teacher_cells_NP,
                float *teacher_channels_NC, float *student_logits_NP, float *teacher_logits_NP) {
    const Index C = maps->channels, P = maps->cells;
    walk(*maps, {student_channels_NC, teacher_channels_NC}, false, [&](Tile tile, float *sums) {
        const Index cell = tile.image * P + tile.first;
        const float *v = valid_NP + cell;
        const float *ws = student_attend_NC + tile.image * C, *wt = teacher_attend_NC + tile.image * C;
        float *sp = student_cells_NP + cell, *tp = teacher_cells_NP + cell;
        float *ls = student_logits_NP + cell, *lt = teacher_logits_NP + cell;
        float *sc = sums, *tc = sums + C;
        if (maps->channels_last)
            for (Index p = 0; p < tile.length; p++) {
                const float *s = maps->student + (cell + p) * C, *t = maps->teacher + (cell + p) * C;
                Lanes a = {}, b = {}, l = {}, m = {};
                lanes(C, [&](Index j, auto some) {
                    Lanes x = load(s + j, some), y = load(t + j, some);
                    l += load(ws + j, some) * x, m += load(wt + j, some) * y;
                    x = magnitude(x), y = magnitude(y);
                    a += x, b += y;
                    store(sc + j, load(sc + j, some) + v[p] * x, some);
                    store(tc + j, load(tc + j, some) + v[p] * y, some);
                });
                sp[p] = total(a), tp[p] = total(b), ls[p] = total(l), lt[p] = total(m);
            }
        else
            channels(C, [&]<Index K>(Channels<K> at) {
                const Index place = (tile.image * C + at.first) * P + tile.first;
                const float *s = maps->student + place, *t = maps->teacher + place;
                Lanes a[K] = {}, b[K] = {};
                lanes(tile.length, [&](Index j, auto some) {
                    const Lanes v_p = load(v + j, some);
                    Lanes x_p = load(sp + j, some), y_p = load(tp + j, some);
                    Lanes l = load(ls + j, some), m = load(lt + j, some);
                    for (Index k = 0; k < K; k++) {
                        Lanes x = load(s + k * P + j, some), y = load(t + k * P + j, some);
                        l += ws[at.first + k] * x, m += wt[at.first + k] * y;
                        x = magnitude(x), y = magnitude(y);
                        x_p += x, y_p += y;
                        a[k] += v_p * x, b[k] += v_p * y;
                    }
                    store(sp + j, x_p, some), store(tp + j, y_p, some);
                    store(ls + j, l, some), store(lt + j, m, some);
                });
                for (Index k = 0; k < K; k++) sc[at.first + k] = total(a[k]), tc[at.first + k] = total(b[k]);
            });
    });
}

// The sums of d and d^2, and the contexts.
void differences(const Maps *maps, const float *valid_NP, const float *attention_NC, const float *student_share_NP,
                 const float *teacher_share_NP, float *feature_NP, float *error_NP, float *difference_NC,
                 float *student_context_NC, float *teacher_context_NC) {
    const Index C = maps->channels, P = maps->cells;
    walk(*maps, {difference_NC, student_context_NC, teacher_context_NC}, true, [&](Tile tile, float *sums) {
        const Index cell = tile.image * P + tile.first;
        const float *v = valid_NP + cell, *A = attention_NC + tile.image * C;
        const float *qs = student_share_NP + cell, *qt = teacher_share_NP + cell;
        float *f = feature_NP + cell, *e = error_NP + cell;
        float *dc = sums, *sc = sums + C, *tc = sums + 2 * C;
        if (maps->channels_last)
            for (Index p = 0; p < tile.length; p++) {
                const float *s = maps->student + (cell + p) * C, *t = maps->teacher + (cell + p) * C;
                Lanes f_p = {}, e_p = {};
                lanes(C, [&](Index j, auto some) {
                    const Lanes x = load(s + j, some), y = load(t + j, some), d = x - y;
                    f_p += load(A + j, some) * (d * d), e_p += d * d;
                    store(dc + j, load(dc + j, some) + v[p] * d, some);
                    store(sc + j, load(sc + j, some) + qs[p] * x, some);
                    store(tc + j, load(tc + j, some) + qt[p] * y, some);
                });
                f[p] = total(f_p), e[p] = total(e_p);
            }
        else
            channels(C, [&]<Index K>(Channels<K> at) {
                const Index place = (tile.image * C + at.first) * P + tile.first;
                const float *s = maps->student + place, *t = maps->teacher + place;
                Lanes d_c[K] = {}, x_c[K] = {}, y_c[K] = {};
                lanes(tile.length, [&](Index j, auto some) {
                    const Lanes v_p = load(v + j, some), q = load(qs + j, some), r = load(qt + j, some);
                    Lanes f_p = load(f + j, some), e_p = load(e + j, some);
                    for (Index k = 0; k < K; k++) {
                        const Lanes x = load(s + k * P + j, some), y = load(t + k * P + j, some), d = x - y;
                        f_p += A[at.first + k] * (d * d), e_p += d * d;
                        d_c[k] += v_p * d, x_c[k] += q * x, y_c[k] += r * y;
                    }
                    store(f + j, f_p, some), store(e + j, e_p, some);
                });
                for (Index k = 0; k < K; k++) {
                    dc[at.first + k] = total(d_c[k]);
                    sc[at.first + k] = total(x_c[k]), tc[at.first + k] = total(y_c[k]);
                }
            });
    });
}

// d * scale + sign(s) * slope + shift, and the gradients of the attending weights. Of the arrays that begin with a
// name, that part is made: scale = scale_NP + scale_NC feature_NP, slope = slope_NP + slope_NC valid_NP,
// shift = attend_NC l + context_NC share_NP + difference_NC valid_NP, where l = share (context . s - mean) is the
// gradient of the logits of the student's context; that of the teacher's is made of the last three arrays.
void gradients(const Maps *maps, const float *scale_NP, const float *scale_NC, const float *feature_NP,
               const float *slope_NP, const float *slope_NC, const float *valid_NP, const float *attend_NC,
               const float *difference_NC, const float *context_NC, const float *mean_N, const float *share_NP,
               const float *teacher_context_NC, const float *teacher_mean_N, const float *teacher_share_NP,
               float *gradient, float *student_attend_NC, float *teacher_attend_NC) {
    const Index C = maps->channels, P = maps->cells;
    walk(*maps, {student_attend_NC, teacher_attend_NC}, true, [&](Tile tile, float *sums) {
        const Index cell = tile.image * P + tile.first, channel = tile.image * C;
        const float *e = scale_NP + cell, *f = feature_NP + cell, *m = slope_NP + cell, *v = valid_NP + cell;
        const float *q = share_NP + cell, *r = teacher_share_NP + cell;
        const float *A = scale_NC + channel, *a = slope_NC + channel, *w = attend_NC + channel;
        const float *u = difference_NC + channel, *g = context_NC + channel, *h = teacher_context_NC + channel;
        const float mean = mean_N[tile.image], teacher_mean = teacher_mean_N[tile.image];
        float *sc = sums, *tc = sums + C;
        if (maps->channels_last)
            for (Index p = 0; p < tile.length; p++) {
                const Index place = (cell + p) * C;
                const float *s = maps->student + place, *t = maps->teacher + place;
                Lanes along = {}, teacher_along = {};
                lanes(C, [&](Index j, auto some) {
                    along += load(g + j, some) * load(s + j, some);
                    teacher_along += load(h + j, some) * load(t + j, some);
                });
                const float l = q[p] * (total(along) - mean), n = r[p] * (total(teacher_along) - teacher_mean);
                lanes(C, [&](Index j, auto some) {
                    const Lanes x = load(s + j, some), y = load(t + j, some);
                    const Lanes out = (x - y) * (e[p] + load(A + j, some) * f[p]) +
                                      signed_as(x, m[p] + load(a + j, some) * v[p]) + load(w + j, some) * l +
                                      load(g + j, some) * q[p] + load(u + j, some) * v[p];
                    store(gradient + place + j, out, some);
                    store(sc + j, load(sc + j, some) + l * x, some);
                    store(tc + j, load(tc + j, some) + n * y, some);
                });
            }
        else {
            float l[TILE_OF_CELLS] = {}, n[TILE_OF_CELLS] = {};
            channels(C, [&]<Index K>(Channels<K> at) {
                const Index place = (channel + at.first) * P + tile.first;
                const float *s = maps->student + place, *t = maps->teacher + place;
                lanes(tile.length, [&](Index j, auto some) {
                    Lanes along = load(l + j, some), teacher_along = load(n + j, some);
                    for (Index k = 0; k < K; k++) {
                        along += g[at.first + k] * load(s + k * P + j, some);
                        teacher_along += h[at.first + k] * load(t + k * P + j, some);
                    }
                    store(l + j, along, some), store(n + j, teacher_along, some);
                });
            });
            for (Index p = 0; p < tile.length; p++) l[p] = q[p] * (l[p] - mean), n[p] = r[p] * (n[p] - teacher_mean);
            channels(C, [&]<Index K>(Channels<K> at) {
                const Index place = (channel + at.first) * P + tile.first;
                const float *s = maps->student + place, *t = maps->teacher + place;
                Lanes x_c[K] = {}, y_c[K] = {};
                lanes(tile.length, [&](Index j, auto some) {
                    const Lanes e_p = load(e + j, some), f_p = load(f + j, some), m_p = load(m + j, some);
                    const Lanes v_p = load(v + j, some), q_p = load(q + j, some);
                    const Lanes l_p = load(l + j, some), n_p = load(n + j, some);
                    for (Index k = 0; k < K; k++) {
                        const Index c = at.first + k;
                        const Lanes x = load(s + k * P + j, some), y = load(t + k * P + j, some);
                        const Lanes out = (x - y) * (e_p + A[c] * f_p) + signed_as(x, m_p + a[c] * v_p) +
                                          w[c] * l_p + g[c] * q_p + u[c] * v_p;
                        store(gradient + place + k * P + j, out, some);
                        x_c[k] += l_p * x, y_c[k] += n_p * y;
                    }
                });
                for (Index k = 0; k < K; k++) sc[at.first + k] = total(x_c[k]), tc[at.first + k] = total(y_c[k]);
            });
        }
    });
}

}  // extern "C"
