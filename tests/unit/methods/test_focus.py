"""What methods show of themselves is what their losses look at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fgd.detector_specs import RetinaNet
from fgd.method_specs import FGD, FKD, FRS, Mimic
from fgd.methods import Method
from fgd.methods.fgd import FGDLoss
from fgd.methods.focus import Focus
from fgd.presets import complete
from tests.unit.methods.made_up import SIZES, batch, view
from tests.unit.methods.test_every_method import SPECS, made, views

SHOWN = {
    "fgd": {"foreground", "scale mask", "spatial attention", "channel attention", "global context"},
    "mimic": {"compared cells", "strength"},
    "cwd": {"distribution"},
    "fkd": {"mask", "spatial attention"},
    "defeat": {"boxes of the level"},
    "fgfi": {"cells near objects"},
    "frs": {"richness"},
    "ld": {"valuable region"},
    "gid": {"instances"},
    "tadf": {"Gaussians"},
    "fgd unsplit": {"spatial attention", "channel attention", "global context"},
    "fgd spatial": {"foreground", "scale mask", "spatial attention", "global context"},
    "fgd without attention": {"foreground", "scale mask", "global context"},
    "fgd relation": {"foreground", "scale mask", "spatial attention", "channel attention"},
    "pkd": set(),
}


def shown(method: Method, seeds: tuple[int, int] = (1, 2)) -> list[Focus]:
    method.eval()
    with torch.no_grad():
        return list(method.focus(view(seeds[0]), view(seeds[1]), batch()))


def of(found: list[Focus], name: str, network: str | None) -> dict[str, Tensor]:
    return {each.level: each.values for each in found if (each.name, each.network) == (name, network)}


@pytest.mark.parametrize("name", SPECS)
def test_every_method_shows_finite_maps_of_its_levels_and_draws_nothing(name: str) -> None:
    spec = SPECS[name]
    method = made(spec).eval()
    before = torch.random.get_rng_state()
    with torch.no_grad():
        found = list(method.focus(*views(spec), batch()))

    assert torch.equal(torch.random.get_rng_state(), before)
    assert {each.name for each in found} == SHOWN.get(name, {each.name for each in found})
    for each in found:
        assert each.values.isfinite().all()
        assert tuple(each.values.shape) in ((3, *SIZES[each.level]), (3, each.values.shape[1]))


@pytest.mark.parametrize("official", [False, True])
def test_fgds_attention_term_is_the_difference_of_what_it_shows(official: bool) -> None:
    spec = complete(FGD(compat="official") if official else FGD(temperature=0.5), RetinaNet)
    method = made(spec)
    assert isinstance(method, FGDLoss)
    found = shown(method)

    total = torch.zeros(())
    for name, weight in (("spatial", method.weights.spatial), ("channel", method.weights.channel)):
        theirs, ours = (of(found, f"{name} attention", network) for network in ("teacher", "student"))
        assert theirs.keys() == SIZES.keys()
        total += weight * torch.stack([(theirs[level] - ours[level]).abs().sum() for level in SIZES]).sum() / 3

    assert total == pytest.approx(method(view(1), view(2), batch())["attention"].item(), rel=1e-4)


def test_fgds_masks_are_those_of_its_loss() -> None:
    """The feature terms, computed of nothing but what is shown and the maps."""
    method = made(SPECS["fgd"])
    assert isinstance(method, FGDLoss)
    found, student, teacher = shown(method), view(1), view(2)
    sums = dict.fromkeys(("fg", "bg"), torch.zeros(()))
    for level in SIZES:
        error_NCHW = (method.scales[level] * (student.features[level] - teacher.features[level])).square()
        spatial_NHW = of(found, "spatial attention", "teacher")[level]
        channel_NC = of(found, "channel attention", "teacher")[level]
        weighted_NHW = spatial_NHW * (channel_NC[..., None, None] * error_NCHW).sum(1)
        inside_NHW, scale_NHW = of(found, "foreground", None)[level], of(found, "scale mask", None)[level]
        sums["fg"] = sums["fg"] + (inside_NHW * scale_NHW * weighted_NHW).sum() / 3
        sums["bg"] = sums["bg"] + ((1 - inside_NHW) * scale_NHW * weighted_NHW).sum() / 3

    terms = method(student, teacher, batch())
    assert method.weights.foreground * sums["fg"] == pytest.approx(terms["fg"].item(), rel=1e-4)
    assert method.weights.background * sums["bg"] == pytest.approx(terms["bg"].item(), rel=1e-4)


def test_attentions_have_mean_one_and_a_network_beside_itself_looks_the_same() -> None:
    found = shown(made(SPECS["fgd"]), (1, 1))
    for name in ("spatial attention", "channel attention"):
        theirs, ours = (of(found, name, network) for network in ("teacher", "student"))
        for level in SIZES:
            assert torch.equal(theirs[level], ours[level])
            assert theirs[level][0].mean() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_mimic_shows_the_cells_that_it_compares(where: str) -> None:
    """Both maps equal where nothing is compared: no loss is left."""
    method = made(complete(Mimic(where=where), RetinaNet))
    compared = of(shown(method), "compared cells", None)
    student, teacher = view(1), view(2)
    for level, map_NCHW in student.features.items():
        map_NCHW.copy_(torch.where(compared[level][:, None] > 0, teacher.features[level], map_NCHW))

    assert method(student, teacher, batch())["feature"].item() == 0


def test_fkds_mask_is_the_mean_of_both_attentions() -> None:
    found = shown(made(complete(FKD(), RetinaNet)))
    for level, mask_NHW in of(found, "mask", None).items():
        both = [of(found, "spatial attention", network)[level] for network in ("teacher", "student")]
        torch.testing.assert_close(mask_NHW, sum(both) / 2)


def test_frs_is_rich_where_the_teachers_best_score_is() -> None:
    found = of(shown(made(complete(FRS(), RetinaNet))), "richness", None)
    predictions = view(2).predictions
    assert predictions is not None
    best_NK = predictions.logits_NKC.sigmoid().amax(2)
    for level, size in SIZES.items():
        torch.testing.assert_close(found[level][0], best_NK[0, predictions.span(level)].view(size))
