// The passes of fgd/methods/maps.py for processors, each as one walk over both maps; see there for the formulas.
//
// N images, C channels, P cells; maps are dense floats, cells together (NCP) or channels together (NPC). A walk takes
// tiles of cells, several at once by as many threads. Sums over a tile's cells are kept by tile and added up in order,
// so the number of threads changes no bit.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace {

using Index = std::int64_t;

constexpr Index TILE_OF_CELLS = 1024;   // of NCP: a page of each channel, and running sums that stay in the first cache
constexpr Index TILE_OF_CHANNELS = 64;  // of NPC: cells, each with all its channels

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
    std::vector<std::thread> others;
    try {
        for (Index each = 1; each < std::min<Index>(maps.threads, items); each++) others.emplace_back(work);
    } catch (const std::system_error &) {  // no more threads are to be had: those there are do it
    }
    work();
    for (auto &each : others) each.join();
    for (Index item = 0; item < items; item++)
        for (Index row = 0; row < rows; row++)
            for (Index c = 0; c < maps.channels; c++)
                totals[row][item / tiles * maps.channels + c] += sums[item * width + row * maps.channels + c];
}

// Calls line(s, t, place, c, p, length) for each run of the tile's memory: one channel's cells (c fixed), or one cell's
// channels (p fixed).
template <class Line>
void lines(const Maps &maps, const Tile &tile, Line line) {
    const Index C = maps.channels, P = maps.cells;
    if (maps.channels_last)
        for (Index p = tile.first; p < tile.first + tile.length; p++) {
            const Index place = (tile.image * P + p) * C;
            line(maps.student + place, maps.teacher + place, place, Index{0}, p, C);
        }
    else
        for (Index c = 0; c < C; c++) {
            const Index place = (tile.image * C + c) * P + tile.first;
            line(maps.student + place, maps.teacher + place, place, c, tile.first, tile.length);
        }
}

inline float signed_as(float x, float value) { return x > 0 ? value : x < 0 ? -value : 0.0f; }

}  // namespace

extern "C" {

// The sums of |s| and |t|, and the logits of the contexts.
void magnitudes(const Maps *maps, const float *valid_NP, const float *student_attend_NC, const float *teacher_attend_NC,
                float *student_cells_NP, float *student_channels_NC, float *teacher_cells_NP,
                float *teacher_channels_NC, float *student_logits_NP, float *teacher_logits_NP) {
    const Index C = maps->channels, P = maps->cells;
    walk(*maps, {student_channels_NC, teacher_channels_NC}, false, [&](Tile tile, float *sums) {
        const float *v = valid_NP + tile.image * P;
        const float *ws = student_attend_NC + tile.image * C, *wt = teacher_attend_NC + tile.image * C;
        float *sp = student_cells_NP + tile.image * P, *tp = teacher_cells_NP + tile.image * P;
        float *ls = student_logits_NP + tile.image * P, *lt = teacher_logits_NP + tile.image * P;
        float *sc = sums, *tc = sums + C;
        lines(*maps, tile, [&](const float *s, const float *t, Index, Index c, Index p, Index length) {
            float a = 0, b = 0, l = 0, m = 0;
            if (maps->channels_last) {
#pragma omp simd reduction(+ : a, b, l, m)
                for (Index j = 0; j < length; j++) {
                    const float x = std::fabs(s[j]), y = std::fabs(t[j]);
                    a += x, b += y, l += ws[j] * s[j], m += wt[j] * t[j];
                    sc[j] += v[p] * x, tc[j] += v[p] * y;
                }
                sp[p] = a, tp[p] = b, ls[p] = l, lt[p] = m;
            } else {
                const float w = ws[c], u = wt[c];
#pragma omp simd reduction(+ : a, b)
                for (Index j = 0; j < length; j++) {
                    const float x = std::fabs(s[j]), y = std::fabs(t[j]);
                    sp[p + j] += x, tp[p + j] += y, ls[p + j] += w * s[j], lt[p + j] += u * t[j];
                    a += v[p + j] * x, b += v[p + j] * y;
                }
                sc[c] = a, tc[c] = b;
            }
        });
    });
}

// The sums of d and d^2, and the contexts.
void differences(const Maps *maps, const float *valid_NP, const float *attention_NC, const float *student_share_NP,
                 const float *teacher_share_NP, float *feature_NP, float *error_NP, float *difference_NC,
                 float *student_context_NC, float *teacher_context_NC) {
    const Index C = maps->channels, P = maps->cells;
    walk(*maps, {difference_NC, student_context_NC, teacher_context_NC}, true, [&](Tile tile, float *sums) {
        const float *v = valid_NP + tile.image * P, *A = attention_NC + tile.image * C;
        const float *qs = student_share_NP + tile.image * P, *qt = teacher_share_NP + tile.image * P;
        float *f = feature_NP + tile.image * P, *e = error_NP + tile.image * P;
        float *dc = sums, *sc = sums + C, *tc = sums + 2 * C;
        lines(*maps, tile, [&](const float *s, const float *t, Index, Index c, Index p, Index length) {
            float x = 0, y = 0, z = 0;
            if (maps->channels_last) {
#pragma omp simd reduction(+ : x, y)
                for (Index j = 0; j < length; j++) {
                    const float d = s[j] - t[j], square = d * d;
                    x += A[j] * square, y += square;
                    dc[j] += v[p] * d, sc[j] += qs[p] * s[j], tc[j] += qt[p] * t[j];
                }
                f[p] = x, e[p] = y;
            } else {
                const float weight = A[c];
#pragma omp simd reduction(+ : x, y, z)
                for (Index j = 0; j < length; j++) {
                    const float d = s[j] - t[j], square = d * d;
                    f[p + j] += weight * square, e[p + j] += square;
                    x += v[p + j] * d, y += qs[p + j] * s[j], z += qt[p + j] * t[j];
                }
                dc[c] = x, sc[c] = y, tc[c] = z;
            }
        });
    });
}

// h = (gradient of the context) . s at each cell, and the same of t.
void projections(const Maps *maps, const float *student_NC, const float *teacher_NC, float *student_NP,
                 float *teacher_NP) {
    const Index C = maps->channels, P = maps->cells;
    walk(*maps, {}, false, [&](Tile tile, float *) {
        const float *gs = student_NC + tile.image * C, *gt = teacher_NC + tile.image * C;
        float *hs = student_NP + tile.image * P, *ht = teacher_NP + tile.image * P;
        lines(*maps, tile, [&](const float *s, const float *t, Index, Index c, Index p, Index length) {
            if (maps->channels_last) {
                float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
                for (Index j = 0; j < length; j++) a += gs[j] * s[j], b += gt[j] * t[j];
                hs[p] = a, ht[p] = b;
            } else {
                const float a = gs[c], b = gt[c];
#pragma omp simd
                for (Index j = 0; j < length; j++) hs[p + j] += a * s[j], ht[p + j] += b * t[j];
            }
        });
    });
}

// d * scale + sign(s) * slope + shift, and the gradients of the attending weights. Of the arrays that begin with a
// name, that part is made: scale = scale_NP + scale_NC feature_NP, slope = slope_NP + slope_NC valid_NP,
// shift = attend_NC logits_NP + context_NC share_NP + difference_NC valid_NP.
void gradients(const Maps *maps, const float *scale_NP, const float *scale_NC, const float *feature_NP,
               const float *slope_NP, const float *slope_NC, const float *valid_NP, const float *attend_NC,
               const float *logits_NP, const float *context_NC, const float *share_NP, const float *difference_NC,
               const float *teacher_logits_NP, float *gradient, float *student_attend_NC, float *teacher_attend_NC) {
    const Index C = maps->channels, P = maps->cells;
    walk(*maps, {student_attend_NC, teacher_attend_NC}, true, [&](Tile tile, float *sums) {
        const Index cells = tile.image * P, channels = tile.image * C;
        const float *e = scale_NP + cells, *f = feature_NP + cells, *m = slope_NP + cells, *v = valid_NP + cells;
        const float *l = logits_NP + cells, *q = share_NP + cells, *lt = teacher_logits_NP + cells;
        const float *A = scale_NC + channels, *k = slope_NC + channels, *w = attend_NC + channels;
        const float *g = context_NC + channels, *u = difference_NC + channels;
        float *sc = sums, *tc = sums + C;
        lines(*maps, tile, [&](const float *s, const float *t, Index place, Index c, Index p, Index length) {
            float *out = gradient + place;
            float a = 0, b = 0;
            if (maps->channels_last) {
                const float e_p = e[p], f_p = f[p], m_p = m[p], v_p = v[p], l_p = l[p], q_p = q[p], lt_p = lt[p];
#pragma omp simd
                for (Index j = 0; j < length; j++) {
                    out[j] = (s[j] - t[j]) * (e_p + A[j] * f_p) + signed_as(s[j], m_p + k[j] * v_p) + w[j] * l_p +
                             g[j] * q_p + u[j] * v_p;
                    sc[j] += l_p * s[j], tc[j] += lt_p * t[j];
                }
            } else {
                const float A_c = A[c], k_c = k[c], w_c = w[c], g_c = g[c], u_c = u[c];
#pragma omp simd reduction(+ : a, b)
                for (Index j = 0; j < length; j++) {
                    out[j] = (s[j] - t[j]) * (e[p + j] + A_c * f[p + j]) + signed_as(s[j], m[p + j] + k_c * v[p + j]) +
                             w_c * l[p + j] + g_c * q[p + j] + u_c * v[p + j];
                    a += l[p + j] * s[j], b += lt[p + j] * t[j];
                }
                sc[c] = a, tc[c] = b;
            }
        });
    });
}

}  // extern "C"
