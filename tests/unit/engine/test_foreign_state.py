"""Where a state dict lies in what scripts save, and what its keys are wrapped in. Networks of three tensors."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor

from fgd.engine.foreign_state import named_tensors, unwrapped
from fgd.errors import WeightsError

KEYS = ("backbone.body.conv1.weight", "backbone.body.bn1.running_mean", "head.cls_logits.bias")


def network(value: float = 1.0, before: str = "", keys: tuple[str, ...] = KEYS) -> dict[str, Tensor]:
    return {f"{before}{key}": torch.full((2,), value + place) for place, key in enumerate(keys)}


WANTED = network()
RAW, EMA = network(1.0), network(50.0)


def value(found: dict[str, Tensor]) -> float:
    """Of the first tensor: tells which network was taken."""
    assert found.keys() == WANTED.keys()
    return float(found[KEYS[0]][0])


@pytest.mark.parametrize(
    ("loaded", "wrapper", "left_out"),
    [
        (RAW, None, []),
        ({"state_dict": RAW, "epoch": 3}, "state_dict", ["epoch"]),
        ({"model": RAW, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "model", ["optimizer"]),
        ({"checkpoint": {"model": RAW, "args": {"lr": 1}}}, "checkpoint.model", []),
        ({"net": OrderedDict(RAW), "criterion": {"weight": torch.ones(2)}}, "net", ["criterion"]),
        ({"anything": {"at": {"all": RAW}}}, "anything.at.all", []),
    ],
)
def test_a_state_dict_is_found_at_any_depth(loaded: Any, wrapper: str | None, left_out: list[str]) -> None:
    found = unwrapped(loaded, WANTED, "ema")
    assert (value(found.tensors), found.wrapper, found.left_out, found.take) == (1.0, wrapper, left_out, None)


@pytest.mark.parametrize(
    "ema",
    [
        {"ema": EMA},
        {"model_ema": EMA},
        {"ema_model": network(50.0, "module.")},
        {"ema": {"module": EMA, "updates": torch.tensor(7), "decay": 0.99}},
        {"state_dict_ema": EMA},
        {"ema_state_dict": {"steps": torch.tensor(1), **network(50.0, "module.")}},
        {"model_ema": {"n_averaged": torch.tensor(7), **network(50.0, "module.")}},
        {"ema": {"model": {"module": EMA}}},
        {"ema": {"shadow": EMA}},
        {"swa_state_dict": EMA},
        {"callbacks": {"EMAWeightAveraging": {"ema_weights": network(50.0, "model.")}}},
    ],
    ids=str,
)
def test_of_averaged_and_raw_weights_the_request_chooses(ema: dict[str, Any]) -> None:
    both = {"model": RAW, **ema}
    averaged, raw = unwrapped(both, WANTED, "ema"), unwrapped(both, WANTED, "raw")
    assert (value(averaged.tensors), averaged.take) == (50.0, "ema")
    assert (value(raw.tensors), raw.take, raw.wrapper) == (1.0, "raw", "model")
    assert '"take": "raw" takes those under \'model\'' in averaged.notes[0]
    assert "model" in averaged.left_out
    assert next(iter(ema)) in raw.left_out
    alone = unwrapped({"model": None, **ema}, WANTED, "raw")
    assert (value(alone.tensors), alone.take) == (50.0, "ema")
    assert "only averaged (EMA) weights" in alone.notes[0]


def test_both_may_lie_in_one_dict() -> None:
    both = {**network(1.0, "online_model."), **network(50.0, "ema_model."), "initted": torch.ones(1)}
    found = unwrapped(both, WANTED, "ema")
    assert (value(found.tensors), found.prefix) == (50.0, "ema_model.")
    assert found.left_out == ["initted", *sorted(f"online_model.{key}" for key in KEYS)]


def test_statistics_that_an_average_of_parameters_lacks_are_the_raw_ones() -> None:
    parameters = {key: tensor for key, tensor in EMA.items() if not key.endswith("running_mean")}
    found = unwrapped({"model": RAW, "ema": parameters}, WANTED, "ema")
    assert value(found.tensors) == 50.0
    assert float(found.tensors[KEYS[1]][0]) == 2.0
    assert "1 running statistics are those under 'model'" in found.notes[1]
    lacking = {key: tensor for key, tensor in EMA.items() if key != KEYS[0]}
    assert unwrapped({"model": RAW, "ema": lacking}, WANTED, "ema").tensors.keys() == lacking.keys()


@pytest.mark.parametrize(
    ("keys", "prefix", "left_out"),
    [
        (network(1.0, "module."), "module.", []),
        (network(1.0, "module.") | {"n_averaged": torch.tensor(7)}, "module.", ["n_averaged"]),
        (network(1.0, "model._orig_mod."), "model._orig_mod.", []),
        (network(1.0, "_orig_mod.module.model."), "_orig_mod.module.model.", []),
        (network(1.0, "detector.") | {"loss.weight": torch.ones(3)}, "detector.", ["loss.weight"]),
        (network(1.0, "module.", KEYS[:2]) | {KEYS[2]: torch.full((2,), 3.0)}, "module.", []),
    ],
    ids=["DDP", "AveragedModel", "compiled", "nested", "Lightning", "not every key"],
)
def test_prefixes_are_taken_off_key_by_key(keys: dict[str, Tensor], prefix: str, left_out: list[str]) -> None:
    for loaded in (keys, {"state_dict": keys}):
        found = unwrapped(loaded, WANTED, "ema")
        assert (value(found.tensors), found.prefix) == (1.0, prefix)
        assert found.left_out == [f"state_dict.{key}" if "state_dict" in loaded else key for key in left_out]
        assert all(float(found.tensors[key][0]) == 1.0 + place for place, key in enumerate(KEYS))


def test_a_part_that_was_compiled_or_wrapped_alone_is_unwrapped() -> None:
    inside = {key.replace("backbone.", "backbone._orig_mod.").replace("head.", "head.module."): tensor
              for key, tensor in RAW.items()}  # fmt: skip
    found = unwrapped(inside, WANTED, "ema")
    assert value(found.tensors) == 1.0
    assert found.notes == ["wrappers such as '_orig_mod.' were removed within 3 of 3 keys"]


def test_what_lies_among_the_tensors_of_the_network_stays_to_be_refused() -> None:
    surplus = {"extra.weight": torch.ones(1), "n_averaged": torch.ones(1)}
    wrapped = network(1.0, "module.") | {"module.extra.weight": torch.ones(1), "n_averaged": torch.ones(1)}
    for loaded in (RAW | surplus, {"model": RAW | surplus}, {"model": wrapped}):
        assert unwrapped(loaded, WANTED, "ema").tensors.keys() == {*KEYS, "extra.weight"}


def test_several_networks_that_fit_are_named_and_none_is_guessed() -> None:
    for loaded in ({"student": RAW, "teacher": EMA}, network(1.0, "student.") | network(50.0, "teacher.")):
        with pytest.raises(WeightsError, match="under 'student', 'teacher'; keep the one"):
            unwrapped(loaded, WANTED, "raw")
    assert value(unwrapped({"best": EMA, "model": RAW}, WANTED, "ema").tensors) == 1.0, "under the usual word"
    assert value(unwrapped({"a": RAW, "b": {**RAW}}, WANTED, "ema").tensors) == 1.0, "the same twice"


def test_two_tensors_for_one_key_are_refused_unless_they_are_the_same() -> None:
    with pytest.raises(WeightsError, match=f"two tensors for {KEYS[0]}"):
        unwrapped(RAW | {f"module.{KEYS[0]}": torch.zeros(2)}, WANTED, "ema")
    assert value(unwrapped(RAW | network(1.0, "module."), WANTED, "ema").tensors) == 1.0
    endless = torch.zeros(1)
    with pytest.raises(WeightsError, match="two tensors"):
        unwrapped({KEYS[0]: endless.expand(2**42), f"module.{KEYS[0]}": endless.expand(2**42)}, WANTED, "ema")


def test_a_file_without_the_network_keeps_its_own_names() -> None:
    found = unwrapped({"model": {"a.b": torch.ones(1), "c": torch.ones(1)}, "x": torch.ones(1)}, WANTED, "ema")
    assert found.tensors.keys() == {"a.b", "c"}
    assert found.left_out == ["x"]


def test_dicts_that_hold_themselves_and_names_that_are_none_are_survived() -> None:
    loaded: dict[Any, Any] = {"model": RAW, 2**5000: {"y": torch.ones(1)}, None: 1, "k" * 5000: torch.ones(1)}
    loaded["again"] = loaded
    laughs: dict[str, Any] = dict(RAW)
    for _ in range(40):
        laughs = {"a": laughs, "b": laughs}
    assert value(unwrapped(loaded, WANTED, "ema").tensors) == 1.0
    assert all(len(name) <= 200 for name in unwrapped(loaded, WANTED, "ema").left_out)
    with pytest.raises(WeightsError, match="expected a state dict"):
        named_tensors(laughs)


@pytest.mark.parametrize(
    ("loaded", "says"),
    [
        (torch.zeros(3), "contains a Tensor"),
        ({}, "an empty dict"),
        ({"model": None, "epoch": 3}, "'model' is not a tensor, nor a dict of tensors"),
        ([torch.zeros(3)], "contains a list"),
    ],
)
def test_a_file_without_named_tensors_says_what_it_holds(loaded: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        unwrapped(loaded, WANTED, "ema")
