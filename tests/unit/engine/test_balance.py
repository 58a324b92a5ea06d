"""The strength of methods beside the detection loss: measured at the maps both networks share, once, and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fgd.detector_specs import FCOS
from fgd.engine.balance import Pull, factors, median_ratio, strengths, warm_up
from fgd.engine.loss_warnings import loss_warnings
from fgd.errors import Stopped
from fgd.events import Finished, Note, Saved
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
    found = factors([pull(2.0, *gradients)], "m", 0.5)
    assert strength(found, *gradients) == pytest.approx(0.5 * 2.0)
    assert found["m/a"] == found["m/b"], "the weights decide the mixture"


def test_terms_that_pull_the_same_way_are_not_counted_twice() -> None:
    gradients = (1.0, 0.0), (1.0, 0.0)
    assert strength(factors([pull(5.0, *gradients)], "m", 1.0), *gradients) == pytest.approx(5.0)


@pytest.mark.parametrize("second", [(0.0, 40.0), (40.0, 0.0), (-7.0, 1.0), (1e-6, 0.0)])
def test_each_term_has_its_share_of_rho_whatever_its_weight_and_its_direction(second: tuple[float, float]) -> None:
    found = factors([pull(2.0, (3.0, 0.0), second)], "m", 0.5, {"a": 3.0, "b": 1.0})
    assert found["m/a"] * 3.0 == pytest.approx(0.5 * 2.0 * 3 / 4)
    assert found["m/b"] * math.hypot(*second) == pytest.approx(0.5 * 2.0 * 1 / 4)


def test_a_term_without_a_stated_share_counts_one() -> None:
    assert factors([pull(2.0, (1.0, 0.0), (0.0, 1.0))], "m", 1.0, {"b": 3.0}) == {
        "m/a": pytest.approx(0.5),
        "m/b": pytest.approx(1.5),
    }


def test_each_terms_factor_is_a_median_of_its_own() -> None:
    pulls = [pull(1.0, (a, 0.0), (0.0, b)) for a, b in ((1.0, 9.0), (2.0, 4.0), (9.0, 1.0))]
    assert factors(pulls, "m", 2.0, {}) == {"m/a": pytest.approx(1 / 2), "m/b": pytest.approx(1 / 4)}


def test_one_odd_batch_does_not_decide() -> None:
    pulls = [pull(1.0, (1.0,)), pull(1.0, (1.0,)), pull(1.0, (1e-9,))]
    assert factors(pulls, "m", 1.0) == {"m/a": pytest.approx(1.0)}


def test_a_term_without_a_gradient_is_off_and_leaves_the_others_its_share() -> None:
    found = factors([pull(2.0, (0.0, 0.0), (0.0, 4.0))], "m", 1.0, {"a": 5.0, "b": 0.1})
    assert found == {"m/a": 0.0, "m/b": pytest.approx(0.5)}


@pytest.mark.parametrize("shares", [None, {}, {"a": 2.0}])
def test_a_method_without_a_gradient_is_off(shares: dict[str, float] | None) -> None:
    assert factors([pull(2.0, (0.0, 0.0), (0.0, 0.0))], "m", 1.0, shares) == {"m/a": 0.0, "m/b": 0.0}


def test_without_shares_a_term_without_a_gradient_keeps_its_place_in_the_mixture() -> None:
    assert factors([pull(2.0, (0.0, 0.0), (0.0, 4.0))], "m", 1.0) == {"m/a": 0.5, "m/b": 0.5}


def test_terms_of_another_method_do_not_count() -> None:
    of_two = Pull(1.0, ("m/a", "n/a"), torch.tensor([[4.0, 0.0], [0.0, 100.0]], dtype=torch.float64))
    assert factors([of_two], "m", 1.0) == {"m/a": pytest.approx(0.5)}
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
    fgd = {"kind": "fgd", "rho": 0.5, "shares": {"attention": 0.25}, "temperature": "auto"}
    taught = {
        "teacher": {"path": str(teacher), "allow_unfit": True},
        "methods": [fgd, {"kind": "mimic", "weight": 0.016}],
    }
    spec = make_spec(**taught, schedule={"checkpoint_steps": 1})
    whole = train(spec)
    (noted,) = [note for note in whole.of(Note) if note.code == "balanced"]
    assert set(noted.data["factors"]) == {"fgd/fg", "fgd/bg", "fgd/attention", "fgd/global"}
    assert all(factor > 0 for factor in noted.data["factors"].values())
    assert noted.data["shares"] == {"fgd": {"fg": 1.0, "bg": 1.0, "attention": 0.25, "global": 1.0}}
    calibration = json.loads((whole.result / "manifest.json").read_text())["calibration"]
    assert set(calibration["temperatures"]["fgd"]) == {"p3", "p4", "p5", "p6", "p7"}

    stopped: list[Any] = []

    def stop_at(run: Any, *, measured: bool) -> bool:
        stopped[:] = [run]
        if measured:
            return any(note.code == "balanced" for note in run.of(Note))
        return bool(run.of(Saved))  # after the first step; only then it is measured

    for measured in (False, True):
        with pytest.raises(Stopped):
            train(spec, stop=partial(stop_at, measured=measured))
        resumed = train(spec, resume=Path(stopped[0].of(Saved)[-1].path))
        again = {note.code for note in resumed.of(Note)} & {"balanced", "calibration"}
        assert again == (set() if measured else {"balanced"})
        manifest = json.loads((resumed.result / "manifest.json").read_text())
        assert manifest["calibration"] == calibration
        assert manifest["balance"] == noted.data["factors"]
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


def test_the_detection_loss_works_alone_until_the_factors_are_measured_and_they_grow_over_as_many_steps() -> None:
    found = {"m/a": 2.0, "m/b": 3.0}
    assert [strengths({}, {"m"}, step, 4)("m/a") for step in range(4)] == [0.0] * 4
    assert [strengths(found, {"m"}, step, 4)("m/a") for step in range(4, 10)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert strengths(found, {"m"}, 9, 4)("m/b") == 3.0
    assert [strengths(some, {"m"}, 0, 4)("detection/a") for some in ({}, found)] == [1.0, 1.0]
    assert strengths({}, set(), 0, 4)("m/a") == 1.0


@pytest.mark.parametrize(("per_epoch", "epochs", "steps"), [(50, 12, 50), (7000, 12, 200), (50, 1, 6), (3, 2, 1)])
def test_the_warm_up_is_an_epoch_and_a_small_part_of_the_training(per_epoch: int, epochs: int, steps: int) -> None:
    assert warm_up(per_epoch, epochs) == steps
