"""Boxes drawn into a picture, side by side for each network. Knows no HTTP and no torch."""

from __future__ import annotations

from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont, ImageOps

from fgd.predicted import NetworkDetections, PredictionResult

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")
"""Of the classes in the order of their labels, again from the first after the last."""
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
LEAST_TEXT = 12
"""Pixels."""


def draw(picture: Path, found: PredictionResult, to: Path) -> None:
    """Write a PNG with one picture for each network, its role above it."""
    with Pillow.open(picture) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGB")
    size = max(LEAST_TEXT, min(upright.size) // 40)
    font, head = ImageFont.load_default(size), 2 * size
    width, height = upright.size
    sheet = Pillow.new("RGB", (width * len(found.networks), height + head), "white")
    for place, network in enumerate(found.networks):
        sheet.paste(drawn(upright, network, font, size), (place * width, head))
        title = f"{network.role}: {len(network.detections)}"
        ImageDraw.Draw(sheet).text((place * width + size // 2, size // 2), title, "black", font)
    to.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(to, "PNG")


def drawn(picture: Pillow.Image, network: NetworkDetections, font: Font, size: int) -> Pillow.Image:
    copy = picture.copy()
    pen = ImageDraw.Draw(copy)
    for each in reversed(network.detections):  # the surest on top
        colour = COLOURS[(each.label - 1) % len(COLOURS)]
        left, top, right, bottom = each.box
        pen.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=max(1, size // 6))
        text, at = f"{each.name} {each.score:.2f}", (left, max(0.0, top - size))
        pen.rectangle(pen.textbbox(at, text, font), fill=colour)
        pen.text(at, text, "white", font)
    return copy
