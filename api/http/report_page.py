"""A job's report as one page that opens offline: style, charts and pictures are in it, and nothing is loaded or run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from api.core.paired_runs import Interval
from api.core.report_views import Comparison, ControlRequest, JobReport, ReportedNetwork
from api.http import charts, report_pictures
from api.http.charts import Bar, Line, text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"
"""A browser that opens the file runs nothing and loads nothing, whatever names are in it."""
MOST_BARS = 40
"""Classes in the chart; the table has all."""
COLOURS = {"teacher": "--teacher", "control": "--control", "student": "--student"}
FIGURES = {
    "ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_s": "AP small", "ap_m": "AP medium", "ap_l": "AP large",
    "ar1": "AR, 1 detection", "ar10": "AR, 10 detections", "ar100": "AR, 100 detections",
}  # fmt: skip

STYLE = """
:root { --ground: #fff; --text: #1a2129; --dim: #55606c; --rule: #d9dee4; --raised: #f3f5f7;
  --student: #0b5fa5; --control: #a14a00; --teacher: #5b4a9c; --warn: #855600; }
@media (prefers-color-scheme: dark) { :root { --ground: #101418; --text: #e4e9ee; --dim: #a0acb8; --rule: #2d3640;
  --raised: #1b2128; --student: #6db5f2; --control: #f0a35e; --teacher: #b6a5f5; --warn: #e3b04f; } }
@media print { :root { --ground: #fff; --text: #000; --dim: #444; --rule: #bbb; --raised: #f3f3f3;
  --student: #0b5fa5; --control: #a14a00; --teacher: #5b4a9c; --warn: #855600; }
  section, svg, tr { break-inside: avoid; } body { padding: 0; } pre { white-space: pre-wrap; } }
body { background: var(--ground); color: var(--text); max-width: 62rem; margin: 0 auto; padding: 1rem 1.25rem 3rem;
  font: 15px/1.5 system-ui, sans-serif; }
h1 { margin: 0 0 .3rem; line-height: 1.2; overflow-wrap: anywhere; } h2 { margin: 2rem 0 .5rem; }
p { margin: .4rem 0; } .dim { color: var(--dim); } .warn { color: var(--warn); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--rule);
  overflow-wrap: anywhere; }
td.n, th.n { text-align: right; white-space: nowrap; }
pre { background: var(--raised); padding: .7rem; overflow-x: auto; font-size: 12px; } code { font-size: .92em; }
bdi { unicode-bidi: isolate; } .wide { overflow-x: auto; }
svg { max-width: 40rem; width: 100%; height: auto; display: block; } svg text { fill: var(--text); font-size: 11px; }
.grid { stroke: var(--rule); } .zero { stroke: var(--dim); stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 2; } .whisker { stroke: var(--student); stroke-width: 3; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .35em; }
td.hit { background: color-mix(in srgb, var(--student) 22%, transparent); }
"""
STYLE += report_pictures.STYLE


def page(report: JobReport) -> str:
    """The whole file."""
    title = f"Report of {report.name}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{text(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(_sections(report))
        + "\n</body>\n</html>\n"
    )


def _sections(report: JobReport) -> Iterator[str]:
    yield _head(report)
    yield _section("Networks", _networks(report))
    yield _section("Against the control", _against(report))
    yield _section("Figures", _figures(report))
    yield _section("Each class", _classes(report))
    yield _section("Precision and recall", _curves(report))
    yield _section("Which class is taken for which", _confusions(report))
    yield _section("Pictures", report_pictures.section(report))
    yield _section("Training", _training(report))
    yield _section("Warnings", _warnings(report))
    yield _section("How it was made", _made(report))


def _head(report: JobReport) -> str:
    when = f", {report.finished_at:%Y-%m-%d %H:%M} UTC" if report.finished_at else ""
    pending = (
        f'<p class="warn">Not all is worked out yet ({report.pending} to come): ask for this report again in a few '
        "seconds.</p>"
        if report.pending
        else ""
    )
    return (
        f"<h1>{_name(report.name)}</h1>\n"
        f'<p class="dim">{text(report.job)}, {text(report.state)}{when}. Data set {_name(report.dataset_name)} '
        f"({text(report.dataset)}), {text(report.split)} images. AP: 0 to 100, as COCO has it.</p>{pending}"
    )


def _networks(report: JobReport) -> Iterator[str]:
    batches = sorted({speed.batch for each in report.networks for speed in each.speeds})
    columns = ("", "network", "AP", "parameters", "MB", "GFLOPs", *(f"ms, batch of {batch}" for batch in batches))
    rows = (_network(each, batches) for each in report.networks)
    yield _table(columns, rows, numbers=range(2, 6 + len(batches)))
    for each in report.networks:
        if each.latency:
            yield f"<p>{text(each.role)}: {_budget(each.latency)}.</p>"
    yield f'<p class="dim">{_measured(report)}</p>'


def _measured(report: JobReport) -> str:
    found = report.inspection
    if found is None:
        return "Operations and latency are measured once the job has succeeded."
    if found.input is None:
        return f"Operations and latency were not measured: {text(found.reason or 'nobody knows why')}."
    height, width = found.input
    beside = f" {text(found.not_timed[:1].upper() + found.not_timed[1:])}." if found.not_timed else ""
    return (
        f"GFLOPs and times are of images of {height}x{width} pixels, from the pixels to the final boxes, a "
        "multiplication with its addition as two operations. Times are those of a batch in torch on "
        f"{text(found.device)}, {_threads(found.threads)}, median and in brackets the 10th and 90th percentile; "
        f"the networks took turns, and what other processes took of the processor is left out.{beside}"
    )


def _threads(count: int | None) -> str:
    return f"{text(count)} thread{'s' * (count != 1)}"


def _network(each: ReportedNetwork, batches: Sequence[int]) -> list[str]:
    seed = f", seed {each.seed}" if each.seed is not None else ""
    where = f'<br><span class="dim">{text(each.job or each.model or "")}{seed}</span>'
    return [
        f"{_key(each.role)}{each.role}",
        f"{_name(each.name)}<br>{text(each.title or '')}{where}",
        _number(each.ap),
        "not known" if each.parameters is None else f"{each.parameters:,}",
        "not known" if each.bytes is None else f"{each.bytes / 1e6:.1f}",
        "not counted" if each.gflops is None else f"{each.gflops:.1f}",
        *(_time(each, batch) for batch in batches),
    ]


def _time(each: ReportedNetwork, batch: int) -> str:
    found = next((speed.time for speed in each.speeds if speed.batch == batch), None)
    if found is None:
        return "not measured"
    return f'{found.median_ms:.1f}<br><span class="dim">({found.p10_ms:.1f} to {found.p90_ms:.1f})</span>'


def _budget(told: Mapping[str, Any]) -> str:
    if told.get("median_ms") is None:
        return f"latency not known: {text(told.get('reason', 'it could not be measured'))}"
    holds = {True: "holds", False: "is missed"}.get(told.get("holds"), "is not known to hold")  # type: ignore[arg-type]
    return (
        f"{told['median_ms']:.1f} ms (p10 {told['p10_ms']:.1f}, p90 {told['p90_ms']:.1f}) in {text(told['runtime'])} "
        f"on {text(told['threads'])} threads; the budget of {text(told['budget_ms'])} ms {holds}"
    )


def _against(report: JobReport) -> Iterator[str]:
    if report.comparison is not None:
        yield from _compared(report.comparison)
    elif report.control_request is not None:
        yield from _no_control(report.control_request)
    else:
        yield "<p>This job has no teacher: it can be the control of others.</p>"


def _compared(found: Comparison) -> Iterator[str]:
    if found.study:
        yield (
            f"<p>Study {text(found.study)}: {_name(found.arm or '')} against {_name(found.against or '')}, seeds "
            f"{text(', '.join(map(str, found.difference.seeds)) if found.difference else 'none yet')}.</p>"
        )
    rows = [
        ("over seeds", found.difference),
        ("over seeds and images", found.difference_over_images),
    ]
    shown = [(name, each.value, each.low, each.high) for name, each in rows if each is not None]
    if shown:
        yield charts.intervals("Student minus control with 95 % intervals", "AP points", shown)
    table = [
        *((f"AP points above the control, {name}", each) for name, each in rows),
        ("share of the gap to the teacher closed, over seeds", found.gap_closed),
        ("share of the gap to the teacher closed, over seeds and images", found.gap_closed_over_images),
    ]
    yield _table(("", "value", "95 % interval"), ([name, *_interval(each)] for name, each in table), numbers=(1, 2))
    if found.images_reason:
        yield f'<p class="dim">No interval over images: {text(found.images_reason)}.</p>'
    yield (
        '<p class="dim">Runs are paired by seed. Over seeds: Student\'s t, from two seeds on. Over images: a bootstrap '
        "that draws seeds and images again; with one seed, images alone. An interval that has 0 in it shows no "
        "difference. The gap is known for a teacher that was evaluated on these images and is at least one AP point "
        "above the control.</p>"
    )


def _interval(found: Interval | None) -> tuple[str, str]:
    if found is None:
        return "not known", ""
    ends = f"{found.low:+.2f} to {found.high:+.2f}" if found.low is not None and found.high is not None else ""
    return f"{found.value:+.2f}", ends or "one pair: no interval"


def _no_control(request: ControlRequest) -> Iterator[str]:
    yield (
        "<p><strong>No control was run</strong>: the same student, trained without the teacher with the same data, "
        "schedule and seed. Without it nobody knows what the teacher was worth. This trains it:</p>"
    )
    yield f"<pre>{text_of_lines(request.command)}</pre>"
    yield "<p>or, with the service's address in API (as in <code>API=http://127.0.0.1:8000/v1</code>):</p>"
    yield f"<pre>{text_of_lines(request.curl)}</pre>"


def text_of_lines(told: str) -> str:
    return "\n".join(map(text, told.split("\n")))


def _figures(report: JobReport) -> Iterator[str]:
    shown = [each for each in report.networks if each.figures is not None]
    if shown:
        yield _table(
            ("", *(f"{each.role} {each.name}" if each.role == "teacher" else each.role for each in shown)),
            ([title, *(_number(getattr(each.figures, figure)) for each in shown)] for figure, title in FIGURES.items()),
            numbers=range(1, len(shown) + 1),
        )
    for each in report.networks:
        if each.figures_reason:
            yield f'<p class="dim">{text(each.role)}: {text(each.figures_reason)}.</p>'


def _classes(report: JobReport) -> Iterator[str]:
    shown = [each for each in report.networks if each.figures is not None]
    by_class = [{found.name: found for found in each.figures.per_class} for each in shown if each.figures is not None]
    names = list(dict.fromkeys(name for classes in by_class for name in classes))
    if not names:
        yield '<p class="dim">There are no figures of classes.</p>'
        return
    groups = [
        (
            name,
            [
                Bar(f"{each.role}: {name}", ap, COLOURS[each.role])
                for each, classes in zip(shown, by_class, strict=True)
                if name in classes and (ap := classes[name].ap) is not None
            ],
        )
        for name in names[:MOST_BARS]
    ]
    yield _legend(shown)
    yield charts.bars("AP of each class", groups, most=100.0)
    boxes = {name: found.boxes for classes in by_class for name, found in classes.items()}
    rows = (
        [
            _name(name),
            str(boxes[name]),
            *(_number(classes[name].ap if name in classes else None) for classes in by_class),
        ]
        for name in names
    )
    yield _table(("class", "boxes", *(each.role for each in shown)), rows, numbers=range(1, len(shown) + 2))


def _curves(report: JobReport) -> Iterator[str]:
    shown = [each for each in report.networks if each.figures is not None and each.figures.precision_recall]
    if not shown:
        yield '<p class="dim">There are no curves.</p>'
        return
    yield _legend(shown)
    names = list(dict.fromkeys(curve.name for each in shown if each.figures for curve in each.figures.precision_recall))
    for name in names[: 1 + MOST_BARS]:
        curves = [
            Line(each.role, COLOURS[each.role], [(n / 100, p) for n, p in enumerate(curve.precision)])
            for each in shown
            if each.figures is not None
            for curve in each.figures.precision_recall
            if curve.name == name
        ]
        title = f"Class {name}" if name else "Mean of the classes"
        chart = charts.lines(f"Precision and recall: {title}", "recall", "precision", curves, x_most=1.0, y_most=1.0)
        yield f"<h3>{_name(title)}, IoU 0.5</h3>{chart}"


def _confusions(report: JobReport) -> Iterator[str]:
    shown = [(each, each.figures.confusion) for each in report.networks if each.figures and each.figures.confusion]
    if not shown:
        yield '<p class="dim">There is no table: there are no figures, or more than 100 classes.</p>'
        return
    for each, found in shown:
        names = [_name(name) for name in found.classes]
        rows = []
        for place, (row, counts) in enumerate(zip([*names, "no box"], found.counts, strict=True)):
            cells = [f'<td class="n{" hit" if place == at else ""}">{count}</td>' for at, count in enumerate(counts)]
            rows.append(f"<tr><th>{row}</th>{''.join(cells)}</tr>")
        head = "".join(f'<th class="n">{name}</th>' for name in [*names, "not found"])
        yield f"<h3>{_key(each.role)}{text(each.role)}</h3>"
        yield (
            f'<div class="wide"><table><thead><tr><th>box of</th>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )
    iou, score = shown[0][1].iou, shown[0][1].score
    yield (
        f'<p class="dim">Rows: the class of a box. Columns: the class of the detection on it, with at least {iou:g} of '
        f"overlap (IoU) and a score of at least {score:g}.</p>"
    )


def _training(report: JobReport) -> Iterator[str]:
    shown = [each for each in report.networks if each.curve and each.role != "teacher"]
    known = {each.role: [(p.step, p.ap) for p in each.curve if p.ap is not None] for each in shown}
    most = max((ap for points in known.values() for _, ap in points), default=0.0)
    if not most:
        yield '<p class="dim">There are no evaluations with an AP above 0.</p>'
        return
    yield _legend(shown)
    lines = [Line(role, COLOURS[role], points) for role, points in known.items()]
    yield charts.lines("AP on the validation images", "step", "AP on val", lines, y_most=min(100.0, most * 1.1))


def _warnings(report: JobReport) -> Iterator[str]:
    if not report.warnings:
        yield "<p>None.</p>"
        return
    yield "<ul>" + "".join(f"<li>{text(each.message)}</li>" for each in report.warnings) + "</ul>"


def _made(report: JobReport) -> Iterator[str]:
    told = [("seeds", ", ".join(map(str, report.seeds)))]
    told += [(name, str(value)) for facts in (report.machine, report.versions) for name, value in facts.items()]
    yield _table(("", ""), ([text(name), text(value)] for name, value in told))
    yield "<h3>SHA-256</h3>"
    yield _table(("of", ""), ([text(name), f"<code>{text(digest)}</code>"] for name, digest in report.digests.items()))
    yield f"<h3>Spec</h3><pre>{text_of_lines(json.dumps(report.spec, indent=2))}</pre>"


def _section(title: str, inside: Iterable[str]) -> str:
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(inside) + "\n</section>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """columns: plain words; rows: cells that are escaped already."""
    right = set(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=n' if at in right else ''}>{cell}</{tag}>" for at, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = cells("th", [text(column) for column in columns])
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _legend(shown: Sequence[ReportedNetwork]) -> str:
    return "<p>" + " &nbsp; ".join(f"{_key(each.role)}{each.role}" for each in shown) + "</p>"


def _key(role: str) -> str:
    return f'<span class="key" style="background:var({COLOURS[role]})"></span>'


def _name(name: str) -> str:
    """Of a stranger: it may be of any script, without turning what stands around it."""
    return f"<bdi>{text(name)}</bdi>"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
