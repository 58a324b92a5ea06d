"""Rules of the structure that a reader relies on: unions and dicts agree, and torch stays where it belongs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import get_args

import grimp
import pytest
from pydantic import ValidationError

import fgd
from api.core import request_bodies
from fgd.detector_specs import DetectorSpec
from fgd.detectors import DETECTORS
from fgd.method_specs import MethodSpec
from fgd.methods import METHODS
from fgd.presets import PRESETS
from fgd.spec_fields import Spec

ROOT = Path(fgd.__path__[0]).parent
Imports = Mapping[str, set[str]]
"""By module: the modules that it imports, wherever in its text it does."""
TORCH = {"torch", "torchvision", "safetensors"}
LOAD_TORCH = (
    "fgd.engine", "fgd.methods", "fgd.detectors", "fgd.types", "fgd.data.augment", "fgd.data.loader",
    "fgd.data.transforms", "fgd.evaluation", "fgd.export", "fgd.inspection", "fgd.parity", "fgd.plan", "fgd.train",
    "worker.model_importer", "worker.prediction_child",
)  # fmt: skip
"""The trainer's modules, and the programs that train, measure, export or open weights. No other may."""


@pytest.fixture(scope="module")
def imports() -> Imports:
    graph = grimp.build_graph("api", "worker", "fgd", "deploy", include_external_packages=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def loaded_with(module: str, imports: Imports) -> set[str]:
    """All that is imported with a module: what it imports, their packages, and so on."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        if (each := ahead.pop()) in found:
            continue
        found.add(each)
        ahead += [*imports.get(each, ()), *packages_of(each)]
    return found


def packages_of(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def loads_torch(module: str) -> bool:
    return any(module == each or module.startswith(f"{each}.") for each in LOAD_TORCH)


def test_no_modules_import_each_other_in_a_circle(imports: Imports) -> None:
    TopologicalSorter(imports).prepare()  # raises CycleError, which names them


def test_only_the_trainers_modules_load_torch(imports: Imports) -> None:
    found = {module for module in imports if not loads_torch(module) and loaded_with(module, imports) & TORCH}
    assert found - TORCH == set()


@pytest.mark.parametrize("part", LOAD_TORCH)
def test_what_may_load_torch_does(imports: Imports, part: str) -> None:
    below = [module for module in imports if module == part or module.startswith(f"{part}.")]
    assert any(loaded_with(module, imports) & TORCH for module in below)


@pytest.mark.parametrize("child", ["worker.model_importer", "worker.prediction_child"])
def test_nobody_imports_the_children_that_open_strangers_files(imports: Imports, child: str) -> None:
    assert child in imports
    assert [module for module, imported in imports.items() if child in imported] == []


def members(union: object) -> set[object]:
    """The classes of a (discriminated) union, or the one class."""
    inner = get_args(union)
    if not inner:
        return {union}
    return set(get_args(inner[0])) or {inner[0]}


def test_every_method_spec_has_its_module_and_its_numbers() -> None:
    assert set(METHODS) == members(MethodSpec)
    for family, numbers in PRESETS.items():
        assert set(numbers) == {method for method in members(MethodSpec) if method.needs <= family.offers}  # type: ignore[attr-defined]


def test_every_detector_spec_has_its_family_and_its_presets() -> None:
    assert set(DETECTORS) == members(DetectorSpec)
    assert set(PRESETS) == members(DetectorSpec)


def test_a_spec_is_exportable_exactly_where_its_family_has_a_graph() -> None:
    """The service, which loads no torch, refuses by the spec what a worker could not export."""
    assert {spec: family.onnx is not None for spec, family in DETECTORS.items()} == {
        spec: spec.exportable for spec in DETECTORS
    }


def sources() -> Iterator[tuple[str, ast.Module]]:
    root = Path(fgd.__path__[0]).parent
    for package in ("fgd", "api", "worker", "deploy"):
        for file in sorted((root / package).rglob("*.py")):
            yield file.relative_to(root).as_posix(), ast.parse(file.read_text())


def test_nobody_asks_which_family_or_method_it_is() -> None:
    """What depends on it stands in its record, its spec and its module: a new one then needs no edit elsewhere."""
    names = kinds(DetectorSpec) | kinds(MethodSpec)
    asked = [
        f"{name}: {ast.unparse(node)}"
        for name, tree in sources()
        for node in ast.walk(tree)
        for part in (node.keys if isinstance(node, ast.Dict) else [node])
        if isinstance(node, ast.Compare | ast.pattern | ast.Dict) and part is not None
        if any(isinstance(each, ast.Constant) and each.value in names for each in ast.walk(part))
    ]
    assert asked == []


def test_the_docs_name_every_family_and_method() -> None:
    text = (Path(fgd.__path__[0]).parent / "docs/using.md").read_text()
    (families,) = [line for line in text.splitlines() if line.startswith("| `student` |")]
    (methods,) = [line for line in text.splitlines() if line.startswith("| `methods` |")]
    assert kinds(DetectorSpec) <= set(re.findall(r"\w+", families))
    assert kinds(MethodSpec) <= set(re.findall(r'"kind": "(\w+)"', methods))


def kinds(union: object) -> set[str]:
    return {spec.model_fields["kind"].default for spec in members(union)}  # type: ignore[attr-defined]


def test_every_field_of_a_spec_says_what_it_does() -> None:
    for spec in (*members(MethodSpec), *members(DetectorSpec)):
        fields = spec.model_fields  # type: ignore[attr-defined]
        silent = [name for name, field in fields.items() if name != "kind" and not field.description]
        assert not silent, (spec, silent)


@pytest.mark.parametrize(
    "module",
    [
        "api.main",
        "worker.app",
        "worker.__main__",
        "deploy.__main__",
        "deploy.api",
        "deploy.local",
        "deploy.backup",
        "fgd.cli.main",
        "fgd.client",
        "fgd.cli.demo",
        "fgd.spec",
    ],
)
def test_server_worker_client_and_command_line_load_no_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def specs(base: type[Spec] = Spec) -> set[type[Spec]]:
    found = {base}.union(*(specs(sub) for sub in base.__subclasses__())) - {Spec}
    # not those of a query, whose numbers come as text
    return {spec for spec in found if spec.__module__.startswith(("fgd.", request_bodies.__name__))}


def test_a_retired_field_is_no_field_and_stands_in_no_schema() -> None:
    for spec in specs():
        assert not spec.retired.keys() & {field.alias or name for name, field in spec.model_fields.items()}, spec
        assert not {"retired", *spec.retired} & spec.model_json_schema(by_alias=True).get("properties", {}).keys(), spec


def refuses(spec: type[Spec], field: str, value: object) -> bool:
    try:
        spec.model_validate({field: value})
    except ValidationError as error:
        return any(each["loc"][:1] == (field,) for each in error.errors())
    return False


def test_a_number_is_never_taken_from_text_or_truth_values() -> None:
    """Text and truth where a number belongs are slips; such a field says so by its type (Int, Float)."""
    for spec in specs():
        for name, field in spec.model_fields.items():
            sent = field.alias or name
            numbers = [n for n in (1, 64, 0.5) if not refuses(spec, sent, n)]
            for number in numbers:
                taken = [slip for slip in (str(number), True) if not refuses(spec, sent, slip)]
                assert not taken or field.annotation is bool, (spec, name, taken)


def test_whatever_starts_servers_lies_where_make_test_looks_for_it() -> None:
    """Its second part collects two folders only, for the whole tree takes half a minute."""
    (command,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if '-m "e2e and' in line]
    folders = tuple(f"{folder}/" for folder in command.rpartition('"')[2].split())
    files = {str(path.relative_to(ROOT)): path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    marked = {file for file, text in files.items() if re.search(r"pytest\.mark\.e2e", text)}
    assert len(marked) > 5
    assert not [file for file in marked if not file.startswith(folders)]
