"""What a detector finds in one picture. Knows nothing of data sets, and opens no file."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image as Pillow

from fgd.data.transforms import Sample, Transform
from fgd.detectors import Detector
from fgd.errors import UserError
from fgd.predicted import Detection

UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
"""EXIF's orientation -> what turns the stored pixels upright."""


def upright(picture: Pillow.Image, orientation: int) -> Pillow.Image:
    return picture.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else picture


@torch.no_grad()
def predict(detector: Detector, picture: Pillow.Image, least_score: float) -> tuple[Detection, ...]:
    """Resized as evaluation does it; the surest first. Raises UserError where nothing would be left of the picture."""
    recipe = detector.recipe
    transform = Transform(recipe.min_size, recipe.max_size, recipe.image_mean, recipe.image_std)
    if min(transform.size_of(picture.height, picture.width)) < 1:
        raise UserError(f"a picture of {picture.width}x{picture.height} is too elongated: nothing would be left of it")
    pixels_CHW = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    nothing = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64)
    batch = transform([Sample(0, pixels_CHW, *nothing)])
    detector.eval()
    (found,) = detector.detect(detector.predict(detector.features(batch.images_NCHW), batch), batch)
    rows = zip(found.boxes_K4.tolist(), found.scores_K.tolist(), found.labels_K.tolist(), strict=True)
    kept = [
        Detection(box=tuple(box), score=score, name=recipe.classes[label - 1], label=label)
        for box, score, label in rows
        if score >= least_score and label > 0  # one-stage heads may find the background
    ]
    return tuple(sorted(kept, key=lambda each: -each.score))
