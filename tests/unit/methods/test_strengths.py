"""What a request says of strength, temperature and shares: what is filled in, and what is refused, with its pointer."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from fgd.detector_specs import FCOS, FasterRCNN, RetinaNet
from fgd.engine.identity import without_defaults
from fgd.method_specs import FGD, FKD, MethodSpec
from fgd.presets import PRESETS, PUBLISHED, complete
from fgd.spec_fields import members
from fgd.text.pointers import faults_of_spec

METHODS: TypeAdapter[tuple[MethodSpec, ...]] = TypeAdapter(tuple[MethodSpec, ...])
FAMILIES = (FCOS, RetinaNet, FasterRCNN)


def refused(**method: Any) -> list[str]:
    """Pointers of what is wrong with one method."""
    body = [method]
    with pytest.raises(ValidationError) as raised:
        METHODS.validate_python(body)
    return [fault.pointer for fault in faults_of_spec(raised.value.errors(), body)]


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"shares": {"fg": 1.0}, "alpha": 1e-3}, "shares"),
        ({"shares": {"fg": 1.0}, "rho": 0.0}, "shares"),
        ({"shares": {"fg": 0.0}, "rho": 1.0}, "shares/fg"),
        ({"shares": {"fg": 1.0}, "rho": 1.0, "alpha": 0.0}, "shares/fg"),
        ({"shares": {"bg": 1.0}, "rho": 1.0, "beta": 0.0}, "shares/bg"),
        ({"shares": {"attention": 1.0}, "rho": 1.0, "gamma": 0.0}, "shares/attention"),
        ({"shares": {"attention": 1.0}, "rho": 1.0, "attend": "none"}, "shares/attention"),
        ({"shares": {"global": 1.0}, "rho": 1.0, "lambda": 0.0}, "shares/global"),
        ({"shares": {"fg": 1.0}, "rho": 1.0, "split": False}, "shares/fg"),
        ({"shares": {"unsplit": 1.0}, "rho": 1.0}, "shares/unsplit"),
        ({"shares": {"focal": 1.0}, "rho": 1.0}, "shares/focal"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": "auto", "perplexity": 1.0}, "perplexity"),
        ({"temperature": "auto", "perplexity": 0.0}, "perplexity"),
        ({"temperature": 0.5, "perplexity": 0.7}, "perplexity"),
        ({"compat": "official", "temperature": "auto"}, "temperature"),
        ({"compat": "official", "perplexity": 0.7}, "perplexity"),
        ({"compat": "official", "rho": 0.5}, "rho"),
        ({"compat": "official", "rho": 0.5, "shares": {"fg": 1.0}}, "rho"),
    ],
)
def test_what_cannot_be_is_refused_where_it_stands(fields: dict[str, Any], pointer: str) -> None:
    assert refused(kind="fgd", **fields) == [f"/0/{pointer}"]


@pytest.mark.parametrize(
    "kind", [each.model_fields["kind"].default for each in members(MethodSpec) if "compat" in each.model_fields]
)
def test_nothing_is_measured_for_official_methods(kind: str) -> None:
    assert refused(kind=kind, compat="official", rho=0.5) == ["/0/rho"]
    METHODS.validate_python([{"kind": kind, "compat": "official", "rho": 0.0}])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [FGD, FKD])
def test_auto_aims_at_a_perplexity_and_a_perplexity_means_auto(kind: Any, family: Any) -> None:
    assert complete(kind(temperature="auto"), family).perplexity == 0.95
    assert complete(kind(perplexity=0.3), family).temperature == "auto"
    numeric = complete(kind(temperature=2.0), family)
    assert (numeric.temperature, numeric.perplexity) == (2.0, None)
    for each in (kind(temperature="auto"), kind(perplexity=0.3), kind(temperature=2.0)):
        assert complete(complete(each, family), family) == complete(each, family)


def test_presets_with_auto_leave_a_number_alone_and_the_official_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = PRESETS[FCOS][FGD].but(temperature="auto", perplexity=0.4)
    monkeypatch.setitem(PRESETS, FCOS, {**PRESETS[FCOS], FGD: tuned})
    chosen = {
        each: (found.temperature, found.perplexity)
        for each, found in (
            ("nothing", complete(FGD(), FCOS)),
            ("number", complete(FGD(temperature=2.0), FCOS)),
            ("perplexity", complete(FGD(perplexity=0.9), FCOS)),
            ("official", complete(FGD(compat="official"), FCOS)),
        )
    }
    assert chosen == {
        "nothing": ("auto", 0.4),
        "number": (2.0, None),
        "perplexity": ("auto", 0.9),
        "official": (0.8, None),
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"fg": 1.0, "bg": 1.0, "attention": 0.1, "global": 1.0}),
        ({"shares": {"attention": 0.25}}, {"fg": 1.0, "bg": 1.0, "attention": 0.25, "global": 1.0}),
        ({"lambda": 0.0, "shares": {"bg": 3.0}}, {"fg": 1.0, "bg": 3.0, "attention": 0.1}),
        ({"split": False, "shares": {"unsplit": 4.0}}, {"unsplit": 4.0, "attention": 0.1, "global": 1.0}),
        ({"split": False}, {"unsplit": 2.0, "attention": 0.1, "global": 1.0}),
        ({"rho": None, "shares": {"fg": 2.0}}, {"fg": 2.0, "bg": 1.0, "attention": 0.1, "global": 1.0}),
    ],
)
def test_every_term_that_is_on_gets_a_share(fields: dict[str, Any], expected: dict[str, float]) -> None:
    (method,) = METHODS.validate_python([{"kind": "fgd", "rho": 1.0, "shares": {}, **fields}])
    found = complete(method, FCOS)
    assert isinstance(found, FGD)
    assert found.shares is not None
    assert found.shares.by_term() == expected
    assert complete(found, FCOS) == found


def test_shares_of_a_preset_are_for_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = complete(FGD(), FCOS).but(rho=2.0, shares={"fg": 2.0, "bg": 1.0, "attention": 0.5, "global": 1.0})
    monkeypatch.setitem(PRESETS, FCOS, {**PRESETS[FCOS], FGD: tuned})

    def shares(**fields: Any) -> dict[str, float] | None:
        found = complete(FGD.model_validate(fields), FCOS)
        assert isinstance(found, FGD)
        assert complete(found, FCOS) == found
        return found.shares.by_term() if found.shares is not None else None

    assert shares() == {"fg": 2.0, "bg": 1.0, "attention": 0.5, "global": 1.0}
    assert shares(gamma=0.0) == {"fg": 2.0, "bg": 1.0, "global": 1.0}
    assert shares(split=False) == {"unsplit": 3.0, "attention": 0.5, "global": 1.0}
    assert shares(alpha=1e-3) is None
    assert shares(alpha=1e-3, rho=1.0) is None, "the weights that are given decide the mixture"
    assert shares(rho=0.0) is None
    assert shares(compat="official") is None


def test_a_spec_without_them_is_the_spec_that_it_was() -> None:
    """A checkpoint of an earlier version belongs to it still."""
    for kind in (FGD, FKD):
        earlier = PUBLISHED[FCOS][kind].but(rho=0.0)
        assert complete(earlier, FCOS) == earlier
        assert not {"perplexity", "shares"} & without_defaults(earlier).keys()
