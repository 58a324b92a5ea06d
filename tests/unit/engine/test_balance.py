"""The strength of methods beside the detection loss: measured at the maps both networks share, once, and kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fgd.detector_specs import FCOS
from fgd.engine.balance import Pull, factors, median_ratio
from fgd.engine.loss_warnings import loss_warnings
from fgd.errors import Stopped
from fgd.events import Finished, Note, Saved, Stepped
from fgd.method_specs import FGD, Mimic
from fgd.presets import PRESETS, complete
from fgd.spec import JobSpec

Train = Callable[..., Any]
MakeSpec = Callable[..., JobSpec]


def pull(detection: float, *gradients: tuple[float, ...]) -> Pull:
    rows = torch.tensor(gradients, dtype=torch.float64)
    return Pull(detection, tuple(f"m/{chr(97 + n)}" for n in range(len(gradients))), rows @ rows.T)


def strength(found: dict[str, float], *gradients: tuple[float, ...]) -> float:
    rows = torch.tensor(gradients, dtype=torch.float64)
    return float(torch.linalg.vector_norm(torch.tensor(list(found.values()), dtype=torch.float64) @ rows))


def test_the_sum_of_a_methods_terms_is_rho_times_as_strong_as_the_detection_loss() -> None:
    gradients = (3.0, 0.0), (0.0, 40.0)
    found = factors([pull(2.0, *gradients)], "m", 0.5, {})
    assert strength(found, *gradients) == pytest.approx(0.5 * 2.0)
    assert found["m/a"] * 3.0 == pytest.approx(found["m/b"] * 40.0), "each term has its share, whatever its units"


def test_terms_have_their_shares() -> None:
    found = factors([pull(2.0, (3.0, 0.0), (0.0, 40.0))], "m", 1.0, {"b": 0.25})
    assert found["m/b"] * 40.0 == pytest.approx(0.25 * found["m/a"] * 3.0)


def test_terms_that_pull_the_same_way_are_not_counted_twice() -> None:
    gradients = (1.0, 0.0), (1.0, 0.0)
    assert strength(factors([pull(5.0, *gradients)], "m", 1.0, {}), *gradients) == pytest.approx(5.0)


def test_one_odd_batch_does_not_decide() -> None:
    pulls = [pull(1.0, (1.0,)), pull(1.0, (1.0,)), pull(1.0, (1e-9,))]
    assert factors(pulls, "m", 1.0, {}) == {"m/a": pytest.approx(1.0)}


def test_a_term_without_a_gradient_is_off_and_leaves_the_others_theirs() -> None:
    found = factors([pull(2.0, (0.0, 0.0), (0.0, 4.0))], "m", 1.0, {})
    assert found == {"m/a": 0.0, "m/b": pytest.approx(0.5)}


def test_terms_of_another_method_do_not_count() -> None:
    of_two = Pull(1.0, ("m/a", "n/a"), torch.tensor([[4.0, 0.0], [0.0, 100.0]], dtype=torch.float64))
    assert factors([of_two], "m", 1.0, {}) == {"m/a": pytest.approx(0.5)}


def test_a_ratio_without_a_second_number_is_none() -> None:
    assert median_ratio([(1.0, 0.0)]) == 0.0
    assert median_ratio([(1.0, 0.0), (3.0, 1.0), (1.0, math.inf)]) == pytest.approx(1.5)


def test_weights_that_are_given_are_not_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    of_family = PRESETS[FCOS]
    balanced = {kind: preset.but(rho=0.7) for kind, preset in of_family.items()}
    monkeypatch.setitem(PRESETS, FCOS, balanced)
    assert complete(Mimic(), FCOS).rho == 0.7
    assert complete(Mimic(weight=0.5), FCOS).rho == 0.0
    assert complete(FGD(compat="official"), FCOS).rho == 0.0
    assert complete(Mimic(weight=0.5, rho=2.0), FCOS).rho == 2.0
    assert complete(complete(Mimic(), FCOS), FCOS).rho == 0.7


@pytest.mark.slow
def test_a_training_is_balanced_once_and_goes_on_with_the_same_factors(
    train: Train, make_spec: MakeSpec, teacher: Path
) -> None:
    spec = make_spec(
        teacher={"path": str(teacher), "allow_unfit": True}, methods=[{"kind": "fgd", "rho": 0.5}, {"kind": "mimic"}]
    )
    whole = train(spec)
    (noted,) = [note for note in whole.of(Note) if note.code == "balanced"]
    assert set(noted.data["factors"]) == {"fgd/fg", "fgd/bg", "fgd/attention", "fgd/global"}
    assert all(factor > 0 for factor in noted.data["factors"].values())

    stopped: list[Any] = []

    def after_a_step(run: Any) -> bool:
        stopped[:] = [run]
        return bool(run.of(Stepped))

    with pytest.raises(Stopped):
        train(spec, stop=after_a_step)
    resumed = train(spec, resume=Path(stopped[0].of(Saved)[-1].path))
    assert not [note for note in resumed.of(Note) if note.code == "balanced"]
    assert resumed.of(Finished)[0].weights_digest == whole.of(Finished)[0].weights_digest


def losses(**values: float) -> dict[str, float]:
    return {name.replace("_", "/"): value for name, value in values.items()}


@pytest.mark.parametrize(
    ("means", "codes"),
    [
        (losses(detection_cls=1.0, fgd_fg=0.6, fgd_bg=0.4), []),
        (losses(detection_cls=1.0, fgd_fg=0.95, fgd_bg=0.05), ["term_dominates"]),
        (losses(detection_cls=1.0, mimic_feature=0.95), []),
        (losses(detection_cls=1.0, mimic_feature=10.5), ["distillation_dominates"]),
        (losses(detection_cls=1.0), []),
        (losses(detection_cls=1.0, fgd_fg=0.0), []),
    ],
)
def test_losses_that_drown_others_are_warned_of(means: dict[str, float], codes: list[str]) -> None:
    assert [warning.code for warning in loss_warnings(means)] == codes
