"""The sums over blocks of the maps: equal to the formulas, exact gradients, any layout and type; what they cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fgd.engine.device import to_device
from fgd.method_specs import FGD
from fgd.methods import maps
from fgd.methods.base import Pair
from fgd.methods.fgd import FGDLoss
from fgd.methods.maps import Attend, WantedSums, compare
from fgd.spec import Schedule
from fgd.types import Batch, Calibration, View
from tests.rounding import of_sum
from tests.unit.methods.plain_fgd import plain_fgd

pytestmark = pytest.mark.numeric
MakeBatch = Callable[[tuple[int, int], Sequence[tuple[int, int]], Sequence[Sequence[Sequence[float]]]], Batch]

STRIDES = {"p3": 8, "p4": 16, "p5": 32}
SPEC = FGD(alpha=0.3, beta=0.2, gamma=0.07, temperature=0.5).but(lambda_=0.01)
PADDED = (64, 96)
SIZES = [(64, 96), (40, 96), (33, 50)]
BOXES = [
    [(2, 2, 60, 40), (5, 5, 31, 28), (10, 1, 44, 60)],  # nested and overlapping
    [(-10, -7, 9, 9), (80, 30, 120, 90), (17, 9, 18, 10), (60, 60, 64, 64)],  # beyond the edges, tiny, in the padding
    [],
]


def build(
    spec: FGD = SPEC,
    channels: tuple[int, int] = (8, 8),
    dtype: torch.dtype = torch.float32,
    strides: dict[str, int] = STRIDES,
) -> FGDLoss:
    """A method whose context blocks look trained: at their start they add nothing."""
    torch.manual_seed(0)
    calibration = Calibration(dict.fromkeys(strides, 1.7), boxes_per_image=2.5)
    method = FGDLoss(spec, Pair.alike(dict(strides), *channels), calibration, Schedule(min_size=64, max_size=96))
    with torch.no_grad():
        for block in (*method.student_context.values(), *method.teacher_context.values()):
            for parameter in block.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape))
    return method.to(dtype)


def features(
    channels: int, seed: int, images: int = 3, padded: tuple[int, int] = PADDED, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        level: torch.randn(images, channels, -(-padded[0] // s), -(-padded[1] // s), generator=generator, dtype=dtype)
        for level, s in STRIDES.items()
    }


@pytest.fixture
def batch(make_batch: MakeBatch) -> Batch:
    return make_batch(PADDED, SIZES, BOXES)


Outcome = tuple[dict[str, Tensor], dict[str, Tensor]]


def outcome(
    method: FGDLoss,
    student: dict[str, Tensor],
    teacher: dict[str, Tensor],
    batch: Batch,
    how: Callable[..., dict[str, Tensor]] | None = None,
    *,
    autocast: bool = False,
) -> Outcome:
    """The terms, and the gradients of their differently weighted sum."""
    student = {level: feature.detach().requires_grad_() for level, feature in student.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        terms = (how or FGDLoss.__call__)(method, View(student), View(teacher), batch)
    total = torch.stack(
        [weight * term for weight, term in zip((1.0, 0.7, 1.3, 0.4), terms.values(), strict=False)]
    ).sum()
    wanted = {**student, **{name: value for name, value in method.named_parameters() if value.requires_grad}}
    return terms, dict(zip(wanted, torch.autograd.grad(total, list(wanted.values())), strict=True))


def assert_same(ours: Outcome, expected: Outcome, *, tolerance: float) -> None:
    for mine, theirs in zip(ours, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            error = (value.double() - theirs[name].double()).abs().max()
            assert error <= tolerance * max(1e-3, theirs[name].abs().max()), name


# --- equal to the formulas ----------------------------------------------------------------------------------------


@st.composite
def scenes(draw: st.DrawFn) -> tuple[tuple[int, int], list[tuple[int, int]], list[list[tuple[float, ...]]], int, int]:
    """Padded size, image sizes, boxes (overlapping, beyond the image, none), channels of the teacher, block."""
    padded = draw(st.tuples(st.integers(8, 100), st.integers(8, 100)))
    images = draw(st.lists(st.tuples(st.integers(1, padded[0]), st.integers(1, padded[1])), min_size=1, max_size=3))
    corner = st.integers(-20, 120)
    box = st.tuples(corner, corner, st.integers(0, 80), st.integers(0, 80)).map(
        lambda b: (float(b[0]), float(b[1]), float(b[0] + b[2]), float(b[1] + b[3]))
    )
    boxes = draw(st.lists(st.lists(box, max_size=5), min_size=len(images), max_size=len(images)))
    return padded, images, boxes, draw(st.integers(2, 9)), draw(st.sampled_from([1, 16, 100, 2**20]))


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("compat", ["default", "official"])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(scene=scenes())
def test_terms_and_gradients_equal_the_formulas(
    make_batch: MakeBatch,
    last: bool,
    compat: str,
    scene: tuple[tuple[int, int], list[tuple[int, int]], list[list[tuple[float, ...]]], int, int],
) -> None:
    """In float64. Shares of boxes and scales of levels are float32 all the same: a few roundings of 2^-24, 6e-8."""
    padded, images, boxes, channels, block = scene
    batch = make_batch(padded, images, boxes)
    method = build(SPEC.but(compat=compat), channels=(channels, channels), dtype=torch.float64)
    student, teacher = (features(channels, seed, len(images), padded, torch.float64) for seed in (1, 2))
    if last:
        student, teacher = (channels_last(each) for each in (student, teacher))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "CPU_BLOCK", block)
        ours = outcome(method, student, teacher, batch)
    assert_same(ours, outcome(method, student, teacher, batch, plain_fgd), tolerance=1e-6)


def channels_last(features: dict[str, Tensor]) -> dict[str, Tensor]:
    return {level: feature.contiguous(memory_format=torch.channels_last) for level, feature in features.items()}


def strided(features: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, with gaps between lines and between cells."""
    holes = {
        level: torch.zeros(*f.shape[:2], 2 * f.shape[2], 3 * f.shape[3], dtype=f.dtype) for level, f in features.items()
    }
    for level, feature in features.items():
        holes[level][:, :, ::2, ::3] = feature
    return {level: hole[:, :, ::2, ::3] for level, hole in holes.items()}


def cast(features: dict[str, Tensor], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {level: feature.to(dtype) for level, feature in features.items()}


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "channels first": dict,
    "channels last": channels_last,
    "strided": strided,
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, of_sum(3 * 96 * 8))])
@pytest.mark.parametrize("adapter", [False, True], ids=["equal widths", "adapter"])
@pytest.mark.parametrize("of_teacher", LAYOUTS)
@pytest.mark.parametrize("of_student", LAYOUTS)
def test_layouts_do_not_matter(
    batch: Batch, of_student: str, of_teacher: str, adapter: bool, dtype: torch.dtype, tolerance: float
) -> None:
    """A layout chooses the order of sums over up to three images' 96 cells of 8 channels."""
    widths = (5 if adapter else 8, 8)
    student, teacher = features(widths[0], 1), features(widths[1], 2)

    expected = outcome(build(channels=widths, dtype=torch.float64), cast(student), cast(teacher), batch)
    student, teacher = LAYOUTS[of_student](cast(student, dtype)), LAYOUTS[of_teacher](cast(teacher, dtype))
    ours = outcome(build(channels=widths, dtype=dtype), student, teacher, batch)
    assert_same(ours, expected, tolerance=tolerance)


def test_gradients_keep_the_layout_of_the_map(batch: Batch) -> None:
    _, gradients = outcome(build(), channels_last(features(8, 1)), features(8, 2), batch)

    assert gradients["p3"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("teachers", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("students", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_maps_are_compared_in_float32(
    batch: Batch, students: torch.dtype, teachers: torch.dtype
) -> None:
    """To the bit: blocks of other types are copied to float32, laid out as they were, and summed by the same calls."""
    method = build()
    student = {level: feature.to(students) for level, feature in features(8, 1).items()}
    teacher = {level: feature.to(teachers) for level, feature in features(8, 2).items()}
    terms, gradients = outcome(method, student, teacher, batch, autocast=True)

    upcast = [{level: feature.float() for level, feature in each.items()} for each in (student, teacher)]
    exact_terms, exact_gradients = outcome(method, *upcast, batch)
    assert terms == exact_terms
    for name, value in gradients.items():
        assert torch.equal(value, exact_gradients[name].to(value.dtype)), name


def test_same_bytes_every_time(batch: Batch) -> None:
    """The same calls: torch's kernels for the processor sum in an order that follows from shape and threads."""
    method, student, teacher = build(), features(8, 1), features(8, 2)
    first, *others = (outcome(method, student, teacher, batch) for _ in range(5))

    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in mine)


# --- the gradient ---------------------------------------------------------------------------------------------------


WANTED = {
    "feature": WantedSums(feature=True),
    "magnitude": WantedSums(magnitude=True),
    "context": WantedSums(context=True),
    "error": WantedSums(error=True),
    "all": WantedSums(True, True, True, True),
}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_gradients_of_the_sums_pass_gradcheck(monkeypatch: pytest.MonkeyPatch, wanted: WantedSums) -> None:
    monkeypatch.setattr(maps, "CPU_BLOCK", 20)  # several blocks, of unequal size
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, 7, dtype=torch.float64, generator=generator) for _ in range(2))
    valid_NP = torch.tensor([[1] * 7, [1, 1, 1, 1, 0, 0, 1]]).bool()
    weights = [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((1, 5, 1, 1), (1,)) * 2]

    def sums(student_NCP: Tensor, *attend: Tensor) -> tuple[Tensor, ...]:
        found = compare(student_NCP, teacher, valid_NP, wanted, temperature=0.3, attend=Attend(*attend))
        return tuple(each for each in found if each.requires_grad)

    inputs = [each.requires_grad_() for each in (student, *weights)]
    assert torch.autograd.gradcheck(sums, inputs)


def test_a_second_backward_gives_the_same(batch: Batch) -> None:
    method, teacher = build(), features(8, 2)
    student = {level: feature.requires_grad_() for level, feature in features(8, 1).items()}
    total = torch.stack(list(method(View(student), View(teacher), batch).values())).sum()

    first = torch.autograd.grad(total, list(student.values()), retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(total, list(student.values()))))


def test_terms_kept_for_the_log_hold_no_map(batch: Batch) -> None:
    """METHODS.md 1.6: what hangs on the loss lives to the next step."""
    method, teacher = build(), features(8, 2)
    student = {level: feature.requires_grad_() for level, feature in features(8, 1).items()}
    terms = method(View(student), View(teacher), batch)
    torch.stack(list(terms.values())).sum().backward()

    storages = {feature.untyped_storage().data_ptr() for feature in (*student.values(), *teacher.values())}
    assert not storages & {tensor.untyped_storage().data_ptr() for tensor in reachable(terms["fg"].grad_fn)}


def reachable(node: object) -> list[Tensor]:
    """Tensors that the nodes behind a loss hold as attributes of their own."""
    found, queue, seen = [], [node], set()
    while queue:
        each = queue.pop()
        if each is None or each in seen:
            continue
        seen.add(each)
        held = list(vars(each).values()) if hasattr(each, "__dict__") else []
        for value in held:
            values = vars(value).values() if hasattr(value, "__dict__") else [value]
            found += [tensor for tensor in values if isinstance(tensor, Tensor)]
        queue += [next_ for next_, _ in getattr(each, "next_functions", ())]
    assert found
    return found


# --- what it costs, without a clock -----------------------------------------------------------------------------------


CALLS = 6400
"""6227 measured, views among them: 14 blocks, each read twice forward and twice backward."""
ALLOCATED = 3.2
"""3.0 measured, of which 1 is the gradient and about 1 the buffers, blocks being a sixth of the finest map here; the
formulas allocate 44."""
WIDE = 256
PADDED_WIDE = (128, 192)


def cost(
    make_batch: MakeBatch, boxes: int, how: Callable[..., dict[str, Tensor]] = FGDLoss.__call__
) -> tuple[int, float]:
    """Operator calls of one loss with its gradient; the memory it allocates beside the parameters' gradients, in
    pyramids of the student's maps."""
    corners = torch.rand(2, boxes, 2, generator=torch.Generator().manual_seed(0)) * 100
    batch = make_batch(PADDED_WIDE, [PADDED_WIDE] * 2, torch.cat([corners, corners + 20], 2).tolist())
    method = build(channels=(WIDE, WIDE))
    student = {level: f.requires_grad_() for level, f in features(WIDE, 1, 2, PADDED_WIDE).items()}
    teacher = features(WIDE, 2, 2, PADDED_WIDE)

    def run() -> None:
        torch.stack(list(how(method, View(student), View(teacher), batch).values())).sum().backward()

    run()  # what is made once is not the loss's
    method.zero_grad()
    for feature in student.values():
        feature.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.events()
    assert events is not None
    calls = sum(event.name.startswith("aten::") for event in events)
    allocated = sum(event.self_cpu_memory_usage for event in events if event.self_cpu_memory_usage > 0)
    allocated -= sum(4 * parameter.numel() for parameter in method.parameters())
    return calls, allocated / sum(4 * feature.numel() for feature in student.values())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "CPU_BLOCK", 2**15)


@pytest.mark.usefixtures("small_blocks")
def test_a_loss_is_few_operations_and_allocates_little_more_than_the_gradient(make_batch: MakeBatch) -> None:
    calls, allocated = cost(make_batch, boxes=10)

    assert calls <= CALLS
    assert allocated <= ALLOCATED


@pytest.mark.usefixtures("small_blocks")
def test_a_box_more_costs_no_operation(make_batch: MakeBatch) -> None:
    (few, _), (more, _), (crowd, _) = (cost(make_batch, boxes) for boxes in (3, 60, 300))

    assert few == more
    assert crowd <= more + 4 * 50  # four words of 62 boxes more


# --- on a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("compat", ["default", "official"])
def test_a_gpu_gives_the_processors_numbers(batch: Batch, compat: str) -> None:
    method = build(SPEC.but(compat=compat))
    student, teacher = features(8, 1), features(8, 2)
    expected = outcome(method, student, teacher, batch)
    on_gpu = [{level: feature.cuda() for level, feature in each.items()} for each in (student, teacher)]

    terms, gradients = outcome(method.cuda(), *on_gpu, to_device(batch, torch.device("cuda")))
    found = tuple({name: value.cpu() for name, value in each.items()} for each in (terms, gradients))
    assert_same((found[0], found[1]), expected, tolerance=of_sum(3 * 96 * 8))


@pytest.mark.gpu
def test_a_gpu_is_never_waited_for(batch: Batch) -> None:
    method = build().cuda()
    student = {level: feature.cuda().requires_grad_() for level, feature in features(8, 1).items()}
    teacher = {level: feature.cuda() for level, feature in features(8, 2).items()}
    batch = to_device(batch, torch.device("cuda"))
    torch.stack(list(method(View(student), View(teacher), batch).values())).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.stack(list(method(View(student), View(teacher), batch).values())).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
