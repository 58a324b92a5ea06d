"""Methods of other packages: what their entry points of the group "fgd.methods" name. Knows no torch.

    [project.entry-points."fgd.methods"]
    cosine = "fgd_cosine.spec:ChannelCosine"

An entry point names a spec class, a `Method_` with a `kind` of its own, whose `implementation` says as "module:Class"
which `fgd.methods.base.Method` it becomes: that is imported by the trainer alone. What is wrong with one is reported as
a warning when this module is imported; the others, and the service, go on without it.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fgd.errors import SpecError
from fgd.method_specs import Method_, MethodSpec
from fgd.spec_fields import members

GROUP = "fgd.methods"


def found(names: list[EntryPoint], taken: frozenset[str]) -> Iterator[type[Method_]]:
    """The spec classes of entry points, by name; of one that cannot be used a warning instead.

    taken: kinds that others have.
    """
    used = set(taken)
    for each in sorted(names, key=lambda entry: (entry.name, entry.value)):
        try:
            spec = each.load()
            fault = fault_of(spec, used)
        except Exception as error:  # whatever a stranger's module does when it is imported
            fault = f"it cannot be imported: {type(error).__name__}: {error}"
        if fault is None:
            used.add(spec.model_fields["kind"].default)
            yield spec
            continue
        package = f" of {each.dist.name}" if each.dist is not None else ""
        warnings.warn(f"the method {each.name}{package} ({each.value}) is left out: {fault}", stacklevel=2)


def fault_of(spec: Any, taken: set[str]) -> str | None:
    """Why a class cannot be a method's spec."""
    if not (isinstance(spec, type) and issubclass(spec, Method_)):
        return "it is not a subclass of fgd.method_specs.Method_"
    kind = spec.model_fields.get("kind")
    if kind is None or not isinstance(kind.default, str):
        return 'it has no field kind: Literal["NAME"] = "NAME"'
    if kind.default in taken:
        return f'another method has the kind "{kind.default}"'
    module, colon, name = spec.implementation.partition(":")
    if not (module and colon and name.isidentifier()):
        return 'its implementation is not "module:Class"'
    return None


def implementation_of(spec: Method_) -> Any:
    """The class that a plug-in's spec names. Raises SpecError where it cannot be imported."""
    module, _, name = spec.implementation.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        kind = type(spec).model_fields["kind"].default
        raise SpecError(
            f"the method {kind} is implemented by {spec.implementation}, which cannot be imported: {error}", "/methods"
        ) from error


if TYPE_CHECKING:
    AnyMethod = MethodSpec
else:
    BUILT_IN = members(MethodSpec)
    KINDS = frozenset(each.model_fields["kind"].default for each in BUILT_IN)
    AnyMethod = Annotated[
        reduce(or_, (*BUILT_IN, *found(list(entry_points(group=GROUP)), KINDS))), Field(discriminator="kind")
    ]
"""`MethodSpec`, and the methods of the packages that are installed."""
