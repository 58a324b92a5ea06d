"""A copy of the packages to which methods, a family, a format and a noun are added, file by file as docs/extending.md
lists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fgd
from fgd.recipe import Recipe

ROOT = Path(fgd.__path__[0]).parent
HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs/extending.md"
METHODS = {"Correlation": "correlation", "Soft": "more_methods", "Cross": "more_methods", "Asked": "more_methods"}
"""Spec -> its module's file."""
OFFERED = {"FCOS": ("Correlation", "Soft", "Cross"), "RetinaNet": ("Correlation", "Soft", "Cross"),
           "FasterRCNN": ("Correlation", "Soft", "Asked"), "Pan": ("Correlation", "Soft", "Cross")}  # fmt: skip
OF_PAN = "FGD: fgd_for_fcos(), **of_points(), "


class Copy:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.edited: set[str] = set()
        for package in ("fgd", "api", "worker", "deploy"):
            shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))

    def write(self, file: str, text: str) -> None:
        self.edited.add(file)
        (self.root / file).write_text(text)

    def edit(self, file: str, *changes: tuple[str, str]) -> None:
        """Each pattern stands there once."""
        text = (self.root / file).read_text()
        for pattern, instead in changes:
            text, count = re.subn(pattern, lambda found, instead=instead: found.expand(instead), text, flags=re.M)
            assert count == 1, (file, pattern, count)
        self.write(file, text)

    def run(self, *command: str, input: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        text = json.dumps(input) if input is not None else None
        return subprocess.run(
            [sys.executable, *command], cwd=self.root, env=environment, input=text, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip

    def answer(self, script: str, **about: Any) -> Any:
        """What a script prints as JSON, which gets `about` as JSON on its standard input."""
        done = self.run("-c", script, input=about)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def save_untrained(folder: Path, detector: Mapping[str, Any]) -> None:
    """A teacher that never learned, as a result's folder."""
    import torch

    from fgd.detectors import build
    from fgd.engine import weights

    torch.manual_seed(1)
    recipe = {"detector": detector, "classes": ("0", "7"), "min_size": 64, "max_size": 64}
    weights.export(folder, build(Recipe.model_validate(recipe)).eval(), {}, None)


def with_methods(root: Path) -> Copy:
    """ "To add a method", four times."""
    copy = Copy(root)
    *methods, _ = spec_classes()
    above = "".join(methods)
    copy.edit("fgd/method_specs.py", (r"^MethodSpec = Annotated\[", above + r"\g<0>" + alternatives(METHODS)))
    for file in dict.fromkeys(METHODS.values()):
        copy.write(f"fgd/methods/{file}.py", (HERE / f"{file}.py").read_text())
    imports = [
        f"from fgd.methods.{file} import {kind}Loss\nfrom fgd.method_specs import {kind}\n"
        for kind, file in METHODS.items()
    ]
    entries = "".join(f"{kind}: {kind}Loss, " for kind in METHODS)
    copy.edit("fgd/methods/__init__.py", (r"^METHODS: .* = \{", "".join(imports) + r"\g<0>" + entries))
    with_presets(copy, {family: kinds for family, kinds in OFFERED.items() if family != "Pan"})
    return copy


def with_family(copy: Copy) -> None:
    """ "To add a family of detectors"."""
    pan = spec_classes()[-1]
    in_union = (r"^DetectorSpec = Annotated\[", r"\g<0>Pan | ")
    copy.edit("fgd/detector_specs.py", (r"^KIND_IF_UNSAID", pan + r"\g<0>"), in_union)
    copy.write("fgd/detectors/pan.py", (HERE / "pan.py").read_text())
    imports = "from fgd.detectors import pan\nfrom fgd.detector_specs import Pan\n"
    copy.edit("fgd/detectors/__init__.py", (r"^DETECTORS: .* = \{", imports + r"\g<0>\n    Pan: pan.FAMILY,"))
    numbers = OF_PAN + "".join(f"{kind}: {kind}(weight=0.1), " for kind in OFFERED["Pan"])
    entry = f"from fgd.detector_specs import Pan\n\\g<0>\n    Pan: {{{numbers}}},"
    copy.edit("fgd/presets.py", (r"^PUBLISHED: .* = \{", entry))


def with_format(root: Path) -> Copy:
    """ "To add a data format", with the very code of the docs."""
    copy = Copy(root)
    reader, imports, entry = code_of("A data format")
    copy.write("fgd/data/tsv.py", reader)
    copy.edit("fgd/data/format_list.py", (r"^FORMATS = \{", f"{imports}\n\n\\g<0>\n{entry.rstrip()}"))
    return copy


def with_presets(copy: Copy, offered: Mapping[str, tuple[str, ...]]) -> None:
    names = ", ".join(METHODS)
    changes = [(r"^PUBLISHED: ", f"from fgd.method_specs import {names}\n\\g<0>")]
    for family, kinds in offered.items():
        numbers = "".join(f"{kind}: {kind}(weight=0.1), " for kind in kinds)
        changes.append((rf"^    {family}: \{{", r"\g<0>" + numbers))
    copy.edit("fgd/presets.py", *changes)


def alternatives(kinds: Mapping[str, str]) -> str:
    return "".join(f"{kind} | " for kind in kinds)


def spec_classes() -> list[str]:
    """Of specs.py, in order; the family comes last."""
    text = (HERE / "specs.py").read_text()
    first, *others = re.split(r"^(?=class )", text, flags=re.M)
    assert "class" not in first.partition('"""')[2].partition('"""')[2]
    return [each.rstrip("\n") + "\n\n\n" for each in others]


def listed(section: str) -> set[str]:
    """The files that the docs name for it."""
    return set(re.findall(r"^\d\. `([^`]+)`", text_of(section), flags=re.M))


def code_of(section: str) -> list[str]:
    """The blocks of Python that the docs have for it, in order."""
    return re.findall(r"^```python\n(.*?)^```$", text_of(section), flags=re.M | re.S)


def text_of(section: str) -> str:
    _, _, after = PAGE.read_text().partition(f"\n## {section}\n")
    return after.partition("\n## ")[0]
