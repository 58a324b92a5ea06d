"""What the passes give, with their gradients, by torch's operations or by kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fgd.methods.maps import Attend, Kernels, Sums, Wanted, compare

# N images, C channels, P cells

WANTED = {
    "feature": Wanted(feature=True),
    "magnitude": Wanted(magnitude=True),
    "context": Wanted(context=True),
    "error": Wanted(error=True),
    "all": Wanted(True, True, True, True),
}


def laid_out(map_NCP: Tensor, layout: str) -> Tensor:
    if layout == "channels last":
        return map_NCP.mT.contiguous().mT
    if layout == "strided":
        return map_NCP.repeat_interleave(2, 2)[:, :, ::2]
    return map_NCP


def example(
    shape: tuple[int, int, int], layouts: tuple[str, str], types: tuple[torch.dtype, torch.dtype]
) -> list[Tensor]:
    """A student's map, with zeros in it, and a teacher's."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(*shape, generator=generator) for _ in range(2))
    student[student.abs() < 0.05] = 0
    maps = zip((student, teacher), layouts, types, strict=True)
    return [laid_out(map_NCP.to(dtype), layout) for map_NCP, layout, dtype in maps]


def outcome(maps: list[Tensor], wanted: Wanted, kernels: Kernels | None) -> dict[str, Tensor]:
    """The sums, and the gradients of a random weighting of them."""
    student, teacher = maps
    images, channels, cells = student.shape
    device = student.device
    generator = torch.Generator().manual_seed(1)
    valid_NP = (torch.rand(images, cells, generator=generator) < 0.8).to(device)
    attend = Attend(
        *(
            torch.randn(*shape, generator=generator).to(device).requires_grad_()
            for shape in ((1, channels, 1, 1), (1,)) * 2
        )
    )
    student = student.detach().requires_grad_()
    sums = compare(student, teacher, valid_NP, wanted, temperature=0.3, attend=attend, kernels=kernels)
    weighted = [each * torch.randn(each.shape, generator=generator).to(device) for each in sums if each.requires_grad]
    inputs = {"student": student, **attend._asdict()}
    gradients = torch.autograd.grad(sum(each.sum() for each in weighted), list(inputs.values()))
    sums = Sums(*(each.detach() for each in sums))
    return sums._asdict() | {f"gradient of {name}": g for name, g in zip(inputs, gradients, strict=True)}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    for name, value in expected.items():
        mine = found[name]
        assert (mine.dtype, mine.shape) == (value.dtype, value.shape), name
        rounding = torch.finfo(value.dtype).eps if value.dtype != torch.float32 else tolerance
        error = (mine.float() - value.float()).abs().max()
        assert error <= rounding * max(1e-3, float(value.float().abs().max())), name
