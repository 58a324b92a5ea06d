from __future__ import annotations

from typing import Any

import pytest

from fgd.cli.files import fields_of
from fgd.cli.settings import WrongSetting, settle

FIELDS = fields_of("job")


@pytest.mark.parametrize(
    ("before", "settings", "after"),
    [
        ({"schedule": {"epochs": 12, "flip": 0}}, ["schedule.epochs=24"], {"schedule": {"epochs": 24, "flip": 0}}),
        ({}, ["methods.0.kind=fgd", "methods.0.lambda=0"], {"methods": [{"kind": "fgd", "lambda": 0}]}),
        (
            {"methods": [{"kind": "fgd"}]},
            ["methods.1={kind: mimic}"],
            {"methods": [{"kind": "fgd"}, {"kind": "mimic"}]},
        ),
        ({"methods": [{"kind": "fgd"}]}, ["methods=[]", "teacher="], {"methods": [], "teacher": None}),
        ({"teacher": None}, ["teacher.job=job_1"], {"teacher": {"job": "job_1"}}),
        ({}, ["metadata.owner=ada=b"], {"metadata": {"owner": "ada=b"}}),
        ({}, ["teachers.big.model=mdl_1"], {"teachers": {"big": {"model": "mdl_1"}}}),
        ({}, ["methods.0.kind=of_a_plugin", "methods.0.x=1"], {"methods": [{"kind": "of_a_plugin", "x": 1}]}),
    ],
)
def test_a_setting_changes_one_field(before: dict[str, Any], settings: list[str], after: dict[str, Any]) -> None:
    as_it_was = str(before)
    assert settle(before, settings, FIELDS) == after
    assert str(before) == as_it_was


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["scedule.epochs=1"], "a spec has no field 'scedule'; the nearest is schedule"),
        (["student.kind=fcos", "student.fpn_chanels=8"], "the nearest is student.fpn_channels"),
        (["methods.0.kind=mimic", "methods.0.lambda=0"], "methods.0 has no field 'lambda'"),
        (["methods.kind=fgd"], "methods is a list of 0: write methods.0, which is the first"),
        (["methods.1.kind=fgd"], "methods is a list of 0"),
        (["seed.x=1"], "seed is a value without fields"),
        (["seed=1", "seed.x=2"], "seed is 1, which has no fields"),
        (["schedule.epochs"], "write PATH=VALUE"),
        (["schedule..epochs=1"], "write PATH=VALUE"),
        (["seed=[1"], "the value is not YAML"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_meant(settings: list[str], says: str) -> None:
    with pytest.raises(WrongSetting, match=f"^--set {settings[-1]}: ".replace("[", r"\[")) as refused:
        settle({}, settings, FIELDS)
    assert says in str(refused.value)


def test_a_study_has_arms_in_place_of_methods() -> None:
    arms = ["arms.0.name=a", "arms.0.methods.0.kind=fgd", "students.0.kind=fcos", "seeds=[0, 1]"]
    assert settle({}, arms, fields_of("study"))["arms"] == [{"name": "a", "methods": [{"kind": "fgd"}]}]
    with pytest.raises(WrongSetting, match="the nearest is seeds"):
        settle({}, ["seed=1"], fields_of("study"))
