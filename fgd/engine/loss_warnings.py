"""What the sizes of a training's losses say against its weights. Knows nothing of networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fgd.events import Note

MOST_OF_DISTILLATION = 0.9
MOST_TIMES_DETECTION = 10.0


def loss_warnings(losses: Mapping[str, float]) -> Iterator[Note]:
    """losses: means over an epoch, detection/<term>, pseudo/<term> and <method>/<term>, weighted."""
    detection = sum(value for name, value in losses.items() if name.startswith("detection/"))
    terms = {name: value for name, value in losses.items() if not name.startswith(("detection/", "pseudo/"))}
    distillation = sum(terms.values())
    if not terms or not distillation > 0:
        return
    name, largest = max(terms.items(), key=lambda term: term[1])
    if len(terms) > 1 and largest > MOST_OF_DISTILLATION * distillation:
        share = largest / distillation
        message = f"{name} is {100 * share:.0f} % of the distillation loss; the other terms hardly count"
        yield Note(code="term_dominates", message=message, data={"term": name, "share": share}, level="warning")
    if distillation > MOST_TIMES_DETECTION * detection > 0:
        times = distillation / detection
        message = (
            f"the distillation loss is {times:.0f} times the detection loss: the student learns to imitate, and hardly "
            'to detect. Give the methods smaller weights, or "rho"'
        )
        yield Note(code="distillation_dominates", message=message, data={"times": times}, level="warning")
