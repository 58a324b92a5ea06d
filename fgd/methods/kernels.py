"""The passes of `fgd.methods.maps` for GPUs, in Triton: each program walks over all channels of a tile of cells.

Sums over channels stay in registers. Sums over cells are kept by tile, NTC, and added up afterwards in order: no
atomics, so the same bytes every time. Maps come with their strides, of any float type; all is computed in float32.
"""

# mypy: ignore-errors

# N images, T tiles, C channels, P cells; no annotations from the future here: triton reads them

import triton
import triton.language as tl


@triton.jit
def _tile(CELLS: tl.constexpr, P):
    """The image, the cells, and which of them exist."""
    p = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    return tl.program_id(1).to(tl.int64), p, p < P


@triton.jit
def _load(map_NCP, n, c, p, stride_n, stride_c, stride_p, mask):
    places = c[:, None] * stride_c + p[None, :] * stride_p  # of one image: they fit into 32 bits
    return tl.load(map_NCP + n * stride_n + places, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def magnitudes(
    student, s_n, s_c, s_p, teacher, t_n, t_c, t_p, C, P,
    valid_NP, student_attend_NC, teacher_attend_NC,
    student_cells_NP, student_channels_NTC, teacher_cells_NP, teacher_channels_NTC, student_logits_NP,
    teacher_logits_NP,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    n, p, here_p = _tile(CELLS, P)
    v = tl.load(valid_NP + n * P + p, mask=here_p, other=0.0)
    row = (n * tl.num_programs(0) + tl.program_id(0)) * C
    s_cells, t_cells = tl.zeros([CELLS], tl.float32), tl.zeros([CELLS], tl.float32)
    s_logits, t_logits = tl.zeros([CELLS], tl.float32), tl.zeros([CELLS], tl.float32)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        here_c = c < C
        here = here_c[:, None] & here_p[None, :]
        s = _load(student, n, c, p, s_n, s_c, s_p, here)
        t = _load(teacher, n, c, p, t_n, t_c, t_p, here)
        w = tl.load(student_attend_NC + n * C + c, mask=here_c, other=0.0)
        u = tl.load(teacher_attend_NC + n * C + c, mask=here_c, other=0.0)
        s_logits += tl.sum(s * w[:, None], 0)
        t_logits += tl.sum(t * u[:, None], 0)
        s, t = tl.abs(s), tl.abs(t)
        s_cells += tl.sum(s, 0)
        t_cells += tl.sum(t, 0)
        tl.store(student_channels_NTC + row + c, tl.sum(s * v[None, :], 1), mask=here_c)
        tl.store(teacher_channels_NTC + row + c, tl.sum(t * v[None, :], 1), mask=here_c)
    tl.store(student_cells_NP + n * P + p, s_cells, mask=here_p)
    tl.store(teacher_cells_NP + n * P + p, t_cells, mask=here_p)
    tl.store(student_logits_NP + n * P + p, s_logits, mask=here_p)
    tl.store(teacher_logits_NP + n * P + p, t_logits, mask=here_p)


@triton.jit
def differences(
    student, s_n, s_c, s_p, teacher, t_n, t_c, t_p, C, P,
    valid_NP, attention_NC, student_share_NP, teacher_share_NP,
    feature_NP, error_NP, difference_NTC, student_context_NTC, teacher_context_NTC,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    n, p, here_p = _tile(CELLS, P)
    v = tl.load(valid_NP + n * P + p, mask=here_p, other=0.0)
    s_share = tl.load(student_share_NP + n * P + p, mask=here_p, other=0.0)
    t_share = tl.load(teacher_share_NP + n * P + p, mask=here_p, other=0.0)
    row = (n * tl.num_programs(0) + tl.program_id(0)) * C
    feature, error = tl.zeros([CELLS], tl.float32), tl.zeros([CELLS], tl.float32)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        here_c = c < C
        here = here_c[:, None] & here_p[None, :]
        s = _load(student, n, c, p, s_n, s_c, s_p, here)
        t = _load(teacher, n, c, p, t_n, t_c, t_p, here)
        attention = tl.load(attention_NC + n * C + c, mask=here_c, other=0.0)
        d = s - t
        feature += tl.sum(attention[:, None] * d * d, 0)
        error += tl.sum(d * d, 0)
        tl.store(difference_NTC + row + c, tl.sum(d * v[None, :], 1), mask=here_c)
        tl.store(student_context_NTC + row + c, tl.sum(s * s_share[None, :], 1), mask=here_c)
        tl.store(teacher_context_NTC + row + c, tl.sum(t * t_share[None, :], 1), mask=here_c)
    tl.store(feature_NP + n * P + p, feature, mask=here_p)
    tl.store(error_NP + n * P + p, error, mask=here_p)


@triton.jit
def gradients(
    student, s_n, s_c, s_p, teacher, t_n, t_c, t_p, C, P,
    gradient, g_n, g_c, g_p,
    scale_NP, scale_NC, feature_NP, slope_NP, slope_NC, valid_NP, attend_NC, difference_NC,
    context_NC, mean_N, share_NP, teacher_context_NC, teacher_mean_N, teacher_share_NP,
    student_attend_NTC, teacher_attend_NTC,
    CHANNELS: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    n, p, here_p = _tile(CELLS, P)
    cell = n * P + p
    share = tl.load(share_NP + cell, mask=here_p, other=0.0)
    t_share = tl.load(teacher_share_NP + cell, mask=here_p, other=0.0)
    logits, t_logits = tl.zeros([CELLS], tl.float32), tl.zeros([CELLS], tl.float32)
    for first in range(0, C, CHANNELS):
        c = first + tl.arange(0, CHANNELS)
        here_c = c < C
        here = here_c[:, None] & here_p[None, :]
        context = tl.load(context_NC + n * C + c, mask=here_c, other=0.0)
        t_context = tl.load(teacher_context_NC + n * C + c, mask=here_c, other=0.0)
        logits += tl.sum(_load(student, n, c, p, s_n, s_c, s_p, here) * context[:, None], 0)
        t_logits += tl.sum(_load(teacher, n, c, p, t_n, t_c, t_p, here) * t_context[:, None], 0)
    logits = share * (logits - tl.load(mean_N + n))
    t_logits = t_share * (t_logits - tl.load(teacher_mean_N + n))
    scale_p, feature = tl.load(scale_NP + cell, mask=here_p), tl.load(feature_NP + cell, mask=here_p)
    slope_p, v = tl.load(slope_NP + cell, mask=here_p), tl.load(valid_NP + cell, mask=here_p, other=0.0)
    row = (n * tl.num_programs(0) + tl.program_id(0)) * C
    for first in range(0, C, CHANNELS):  # what was just read is still in the cache
        c = first + tl.arange(0, CHANNELS)
        here_c = c < C
        here = here_c[:, None] & here_p[None, :]
        s = _load(student, n, c, p, s_n, s_c, s_p, here)
        t = _load(teacher, n, c, p, t_n, t_c, t_p, here)
        channel = n * C + c
        scale_c, slope_c = tl.load(scale_NC + channel, mask=here_c), tl.load(slope_NC + channel, mask=here_c)
        attend, context = tl.load(attend_NC + channel, mask=here_c), tl.load(context_NC + channel, mask=here_c)
        difference = tl.load(difference_NC + channel, mask=here_c)
        slope = slope_p[None, :] + slope_c[:, None] * v[None, :]
        out = (s - t) * (scale_p[None, :] + scale_c[:, None] * feature[None, :])
        out += tl.where(s > 0, slope, tl.where(s < 0, -slope, 0.0))
        out += attend[:, None] * logits[None, :] + context[:, None] * share[None, :]
        out += difference[:, None] * v[None, :]
        places = c[:, None] * g_c + p[None, :] * g_p
        tl.store(gradient + n * g_n + places, out.to(gradient.dtype.element_ty), mask=here)
        tl.store(student_attend_NTC + row + c, tl.sum(s * logits[None, :], 1), mask=here_c)
        tl.store(teacher_attend_NTC + row + c, tl.sum(t * t_logits[None, :], 1), mask=here_c)
