"""What a request may hold besides a job: bodies that the API alone reads. Knows no HTTP, no SQL, no torch.

The body of `POST /v1/jobs` is `fgd.spec.SubmitJob`.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fgd.budget import FindStudent, is_question
from fgd.class_names import BACKGROUND, is_placeholder
from fgd.data.format_list import FormatName
from fgd.detector_specs import DetectorSpec
from fgd.exported import ExportFormat
from fgd.result_files import Which
from fgd.spec import SubmitJob
from fgd.spec_fields import INVISIBLE, DatasetId, Float, Int, JobId, ModelId, Name, Path, PositiveFloat, Spec

# --- data sets ------------------------------------------------------------------------------------------------


class SubmitDataset(Spec):
    """The body of POST /v1/datasets."""

    name: Name
    format: FormatName = "auto"
    """"auto" detects it by content."""
    path: Path | None = None
    """Absolute folder or .zip on the server's host, below one of FGD_DATA_ROOTS. It is copied to the store; later
    changes to it have no effect. Leave it out to upload a zip of the folder to /v1/datasets/{id}/content."""
    verify: Literal["full", "headers"] = "full"
    """"full" decodes every image at import; "headers" reads only their headers."""
    val_fraction: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Share of the training images that become the val split if the data set has none. Default: 0.1."""
    group_by: Literal["none", "prefix"] = "none"
    """How images are grouped when a val split is made. "prefix" keeps images together whose names differ only after the
    last ".", "_" or "-", such as crops and copies of one photograph."""


# --- models ---------------------------------------------------------------------------------------------------

ClassName = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=rf"^[^{INVISIBLE}]+$")]
Channels = tuple[Float, Float, Float]
AnchorSizes = Annotated[tuple[Annotated[Int, Field(ge=1, le=8192)], ...], Field(min_length=1, max_length=16)]
"""Of one level."""


class UploadModel(Spec):
    """The body of POST /v1/models before weights are uploaded: what a state dict does not contain."""

    name: Name
    detector: DetectorSpec
    """The network that the file must fit, key by key and shape by shape."""
    classes: Annotated[tuple[ClassName, ...], Field(min_length=1, max_length=10_000)]
    """Label k (1, 2, ...) means classes[k - 1]; 0 is background and is not named (a first "__background__" is left
    out). A placeholder such as "N/A" may stand for several unused labels."""
    min_size: Annotated[Int, Field(ge=32, le=8192)] = 800
    """Shorter side after resizing, when the model is used; a job's schedule has its own. Default: torchvision's."""
    max_size: Annotated[Int, Field(ge=32, le=8192)] = 1333
    """Longest side after resizing."""
    image_mean: Channels = (0.485, 0.456, 0.406)
    image_std: Channels = (0.229, 0.224, 0.225)
    """Standard deviation of RGB in 0..1 that the network was trained with; a teacher's pixels are normalised this
    way."""
    anchor_sizes: Annotated[tuple[AnchorSizes, ...], Field(min_length=1, max_length=16)] | None = None
    """For RetinaNet and Faster R-CNN: square roots of the anchors' areas in pixels, for each of the five levels, finest
    first, as in torchvision's AnchorGenerator. A state dict does not contain them. Default: torchvision's."""
    anchor_ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1, max_length=16)] | None = None
    """Height divided by width of the anchors, the same at each level: aspect_ratios[0] of the AnchorGenerator. Default:
    0.5, 1 and 2."""
    take: Literal["ema", "raw"] = "ema"
    """Which weights to take of a file that holds both an average (EMA, SWA) and the raw ones of the last step. A file
    with one kind gives that; the report says what was taken."""

    @field_validator("anchor_sizes", "anchor_ratios", mode="after")
    @classmethod
    def _are_of_a_family_with_anchors(cls, value: Any, info: ValidationInfo) -> Any:
        detector = info.data.get("detector")  # absent where it is at fault itself
        if value is not None and detector is not None and not detector.anchor_levels:
            raise ValueError(f"{detector.kind} has no anchors; leave it out")
        return value

    @field_validator("anchor_sizes", mode="after")
    @classmethod
    def _make_equal_heads(
        cls, sizes: tuple[AnchorSizes, ...] | None, info: ValidationInfo
    ) -> tuple[AnchorSizes, ...] | None:
        detector = info.data.get("detector")
        if sizes is not None and detector is not None and len(sizes) != detector.anchor_levels:
            raise ValueError(f"{detector.anchor_levels} levels have anchors, but {len(sizes)} are given")
        if sizes is not None and len({len(level) for level in sizes}) > 1:
            raise ValueError(
                "all levels share one head, so each needs the same number of sizes; these have "
                f"{[len(level) for level in sizes]}"
            )
        return sizes

    @field_validator("detector", mode="after")
    @classmethod
    def _is_finished(cls, detector: DetectorSpec) -> DetectorSpec:
        if detector.inherit is not None or not isinstance(detector.weights, str):
            raise ValueError("inherit and weights say how training starts; leave them out for a finished model")
        return detector

    @field_validator("classes", mode="after")
    @classmethod
    def _are_different(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if classes[0] == BACKGROUND:  # torchvision's lists begin with it
            classes = classes[1:]
        if not classes:
            raise ValueError("name at least one class other than the background")
        twice = [name for name, count in Counter(classes).items() if count > 1 and not is_placeholder(name)]
        if twice:
            raise ValueError(f"each class may be named once; {twice[0]!r} is not")
        return classes

    @field_validator("image_std", mode="after")
    @classmethod
    def _divides(cls, std: Channels) -> Channels:
        if min(std) <= 0:
            raise ValueError("image_std must be positive")
        return std

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size {self.min_size} is larger than max_size {self.max_size}")
        return self


class PromoteModel(Spec):
    """The body of POST /v1/models for the student of a finished job."""

    name: Name
    job: JobId
    which: Literal["last", "best"] = "last"
    """The weights of the last step, or those with the best AP on the validation images."""


def _model_kind(body: Any) -> str:
    names_job = "job" in body if isinstance(body, dict) else isinstance(body, PromoteModel)
    return "promote" if names_job else "upload"


SubmitModel = Annotated[
    Annotated[UploadModel, Tag("upload")] | Annotated[PromoteModel, Tag("promote")], Discriminator(_model_kind)
]


# --- plans ----------------------------------------------------------------------------------------------------


def _plan_kind(body: Any) -> str:
    return "student" if is_question(body) else "job"


SubmitPlan = Annotated[
    Annotated[SubmitJob, Tag("job")] | Annotated[FindStudent, Tag("student")], Discriminator(_plan_kind)
]
"""A body that names a student is a job's; one that names a latency and no student looks for one."""


# --- what a worker works out ----------------------------------------------------------------------------------

Side = Annotated[Int, Field(ge=32, le=8192)]


class OfModelOrJob(Spec):
    """Names a model, or a job."""

    model: ModelId | None = None
    """A model of this service; or name a job."""
    job: Annotated[JobId | None, Field(validate_default=True)] = None
    """A job of this service; or name a model. It must have succeeded, unless you ask for its teacher."""
    which: Which = "last"
    """Which weights of the student: those of the last step, or those with the best AP on the validation images."""

    @field_validator("job", mode="after")
    @classmethod
    def _is_one_of_two(cls, job: str | None, info: ValidationInfo) -> str | None:
        if "model" in info.data and (job is None) == (info.data["model"] is None):  # absent where it is at fault itself
            raise ValueError(
                'name a model or a job: {"model": "mdl_..."} or {"job": "job_..."}'
                if job is None
                else "a model is named as well; name one of the two"
            )
        return job

    @field_validator("which", mode="after")
    @classmethod
    def _is_of_a_job(cls, which: str, info: ValidationInfo) -> str:
        if which == "best" and info.data.get("model") is not None:
            raise ValueError("a model has one set of weights; leave it out, or name a job")
        return which


class OfNetwork(OfModelOrJob):
    """Names one network: a model, or the student or the teacher of a job."""

    network: Literal["student", "teacher"] = "student"
    """Which network of the job."""

    @field_validator("network", mode="after")
    @classmethod
    def _is_one_that_there_is(cls, network: str, info: ValidationInfo) -> str:
        if network == "teacher" and info.data.get("model") is not None:
            raise ValueError("a model is one network; leave it out, or name a job")
        if network == "teacher" and info.data.get("which") == "best":
            raise ValueError("a teacher has one set of weights; leave out which")
        return network


class SubmitPrediction(OfModelOrJob):
    """What is asked of a picture; its bytes are the body of POST /v1/predictions."""

    score: Annotated[Float, Field(ge=0, le=1)] = 0.3
    """Detections with a lower score are left out."""


Pixels = Annotated[Int, Field(ge=32, le=4096)]


class SubmitExport(OfNetwork):
    """The body of POST /v1/exports."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"job": "job_0192f0c1a7b87cc2a3d4e5f60718293a", "which": "best", "format": "onnx"},
                {"model": "mdl_0192f0c1a7b87cc2a3d4e5f60718293a", "size": [480, 640], "batch": "dynamic"},
                {"job": "job_0192f0c1a7b87cc2a3d4e5f60718293a", "format": "onnx-int8", "max_ap_loss": 0.5},
            ]
        }
    )

    format: ExportFormat = "onnx"
    """"onnx-int8" is smaller and, on most processors, faster: weights and activations have 8 bits wherever that costs
    little AP."""
    size: tuple[Pixels, Pixels] | None = None
    """Height and width of the images that go in. Default: what evaluation makes of the data set's commonest size;
    without a data set min_size x max_size."""
    batch: Annotated[Int, Field(ge=1, le=64)] | Literal["dynamic"] = 1
    """Images at once; "dynamic" leaves it open, which Faster R-CNN cannot."""
    opset: Annotated[Int, Field(ge=16, le=20)] = 18
    """Version of ONNX's operators."""
    dataset: DatasetId | None = None
    """On pictures of this data set the file is compared with torch. Default: the job's own; a model is compared on a
    synthetic picture. INT8 is calibrated on its training images and judged on its validation images."""
    max_ap_loss: Annotated[Float, Field(ge=0, le=100)] | None = None
    """Of format "onnx-int8": AP of 100 that the file may lose against the float32 one. Layers that lose more stay
    float32. Default: 0.5."""

    @field_validator("max_ap_loss", mode="after")
    @classmethod
    def _is_of_int8(cls, max_ap_loss: float | None, info: ValidationInfo) -> float | None:
        if max_ap_loss is not None and info.data.get("format") == "onnx":
            raise ValueError('only a file in INT8 loses AP; leave it out, or ask for "format": "onnx-int8"')
        return max_ap_loss


class SubmitEvaluation(OfNetwork):
    """The body of POST /v1/evaluations."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"job": "job_0192f0c1a7b87cc2a3d4e5f60718293a", "split": "test"},
                {"model": "mdl_0192f0c1a7b87cc2a3d4e5f60718293a", "dataset": "ds_0192f0c1a7b87cc2a3d4e5f60718293a"},
            ]
        }
    )

    dataset: DatasetId | None = None
    """A data set that is ready. Default: the job's own."""
    split: Literal["train", "val", "test"] = "val"
    min_size: Side | None = None
    """Shorter side after resizing. Default: as the network was trained or registered."""
    max_size: Side | None = None
    """Longest side after resizing. Default: as the network was trained or registered."""
    batch_size: Annotated[Int, Field(ge=1, le=256)] = 4
    """Images at once. The figures do not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU where one is free."""
    confusion_score: Annotated[Float, Field(ge=0, le=1)] = 0.3
    """The confusion matrix counts detections with at least this score."""
