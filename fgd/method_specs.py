"""The methods of distillation: what a request says of each, and what it takes of detectors. Knows no torch.

Numbers left out are None and come from `fgd.presets.resolve`; a weight of 0 switches its term off. What a method
computes, and where its default departs from its authors' code, is in `fgd/methods/`, a file each.

Over 500 lines, most of them the docstrings that users read in the catalogue.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fgd.detector_specs import DetectorSpec, Need
from fgd.method_fields import Attention, FGDShares, Perplexity, Softmax, Temperature
from fgd.spec_fields import (
    Bool,
    Float,
    Int,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Spec,
    TeacherName,
    is_none,
    members,
)


class Method_(Spec):
    """What every method has."""

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    """What it takes of student and teacher; it is for families that offer all of it."""
    source: ClassVar[str] = ""
    """The paper, and the code that was followed."""
    golden: ClassVar[bool] = False
    """Whether `compat` "official" is checked against numbers that the authors' code gave."""

    implementation: ClassVar[str] = ""
    """Of a method of another package: "module:Class", the Method that it becomes (`fgd.plugins`)."""
    weight_fields: ClassVar[tuple[str, ...]] = ("weight",)
    """Its fields that are the weights of terms."""

    teacher: TeacherName | None = Field(default=None, exclude_if=is_none)
    """The name in `teachers` of the one that it learns from. Default: the job's `teacher`."""
    rho: NonNegativeFloat | None = None
    """How strong it is beside the detection loss: the norm of its gradient at the maps that student and teacher share,
    as a multiple of the detection loss's. Measured once on 32 batches, after a warm-up of one epoch, or 200
    steps, by the detection loss alone; then it grows from 0 over as many steps. 0: the weights count as they are.
    Default: the family's where no weight is given, else 0."""

    @model_validator(mode="after")
    def _official_is_as_its_authors_have_it(self) -> Self:
        if getattr(self, "compat", "default") == "official":
            found = [each for each in ("rho", "perplexity", "shares") if getattr(self, each, None)]
            found += ["temperature"] if getattr(self, "temperature", None) == "auto" else []
            if found:
                raise PydanticCustomError(
                    "not_official",
                    'compat "official" has its authors\' strength and temperature, and nothing is measured for it: '
                    "leave {at} out, or compat",
                    {"at": found[0]},
                )
        return self

    @model_validator(mode="after")
    def _perplexity_is_what_auto_aims_at(self) -> Self:
        temperature = getattr(self, "temperature", None)
        if getattr(self, "perplexity", None) is not None and temperature not in (None, "auto"):
            raise PydanticCustomError(
                "perplexity_without_auto",
                'perplexity is what "temperature": "auto" aims at, and temperature is {temperature}: leave out one of '
                "the two",
                {"at": "perplexity", "temperature": temperature},
            )
        return self

    def takes(self) -> frozenset[Need]:
        """`needs`, and what terms take that are off by default."""
        return self.needs

    def teaches(self) -> bool:
        """Whether any term is on: a weight that is left out comes from the preset."""
        return any(getattr(self, each, None) != 0 for each in self.weight_fields)

    def teacher_attention(self) -> Attention | None:
        """Where it weighs by softmaxes of the teacher's maps."""
        return None

    def finest(self) -> int | None:
        """How many of the shared levels it compares, the finest first; None: all."""
        return None

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        """The layer that it trains at a level of these widths, in words; "none" where it trains none."""
        del student_channels, teacher_channels
        return "none"

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        """Why it cannot carry knowledge from this teacher to this student, though both offer what it needs."""
        del student, teacher
        return None


def convolution_if_unlike(student_channels: int, teacher_channels: int) -> str:
    """Of a method that needs maps of one width and no other layer: what `Method_.adapter` says."""
    return "none" if student_channels == teacher_channels else "1x1 convolution"


def refuse_unlike_widths(method: MethodSpec, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
    """Of a method without adapters: levels must have one width in both networks."""
    widths = {level.stride: level.channels for level in teacher.levels()}
    for level in student.levels():
        if (width := widths.get(level.stride, level.channels)) != level.channels:
            return (
                f"{method.kind} as its authors have it compares maps of one width, and {level.name} has "
                f"{level.channels} channels in the student and {width} in the teacher; leave compat out, or take "
                f"fpn_channels {width}"
            )
    return None


def refuse_unlike_families(method: MethodSpec, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
    """Of a method that compares the heads' outputs place by place."""
    if type(student) is type(teacher):
        return None
    return (
        f"{method.kind} compares what the heads say place by place, so both networks must be of one family; the "
        f"student is {student.kind}, the teacher {teacher.kind}"
    )


class FGD(Method_):
    """Focal and Global Knowledge Distillation for Detectors (arXiv 2111.11837), equations 1-13.

    Focal only: {"lambda": 0}. Global only: {"alpha": 0, "beta": 0, "gamma": 0}. Foreground only: {"beta": 0}. Unsplit:
    {"split": false}. One attention alone: {"attend": "spatial"}.
    """

    source = "arXiv 2111.11837; yzd-v/FGD@c03a6cf"
    golden = True
    weight_fields = ("alpha", "beta", "gamma", "lambda_")

    kind: Literal["fgd"] = "fgd"
    alpha: NonNegativeFloat | None = None
    """Weight of the foreground's feature term (equation 8)."""
    beta: NonNegativeFloat | None = None
    """Weight of the background's feature term (equation 8)."""
    gamma: NonNegativeFloat | None = None
    """Weight of the attention term (equation 9)."""
    lambda_: NonNegativeFloat | None = Field(default=None, alias="lambda")
    """Weight of the global term (equation 12)."""
    temperature: Temperature | None = None
    """T of both attentions (equations 6 and 7). "auto": of each level and attention the T at which it has the
    perplexity below, found on 64 training images before the first step."""
    perplexity: Perplexity | None = None
    """For "temperature": "auto", which is meant where this alone is given: on what share of the cells, and of the
    channels, the teacher's attentions rest. Default: 0.95."""
    compat: Literal["default", "official"] = "default"
    """"official": the numbers of the reference code, its box geometry and its raw sums included. "default": boxes
    relative to the padded input and clamped, features brought to a common scale, sums scaled to the reference
    geometry, so that the weights mean the same at any size and width."""
    box_cells: Literal["tight", "inclusive"] | None = None
    """Which cells belong to a box: "tight" those whose centre lies in it, "inclusive" every cell it touches and
    one more, as the reference does. Default: tight; official is always inclusive."""
    freeze_teacher_gc: Bool = False
    """Keep the teacher's context block as initialised; the reference trains it along with the student's."""
    split: Bool = True
    """Boxes and background apart, as the paper has it. false: all cells in one mean of weight 7.3 alpha + beta."""
    attend: Literal["both", "spatial", "channel", "none"] = "both"
    """Which attentions weigh the feature terms, and are compared in the attention term."""
    attention: Literal["absmean", "absmax", "sq"] = "absmean"
    """What the attentions are softmaxes of: mean |F|, as the paper has it, the largest |F|, or the mean F^2."""
    global_module: Literal["gc", "non_local", "relation"] = "gc"
    """What the global term compares maps through: the paper's context block, a non-local block, or the relations
    between an image's boxes."""
    shares: FGDShares | None = None
    """With `rho`: what share of it each term has, as {"fg": 1, "bg": 1, "attention": 0.5, "global": 2}; the gradient of
    each is measured by itself. Default where no weight is given: 1, 1, 0.1, 1; else alpha to lambda decide the mixture,
    and only the sum is measured."""

    def terms(self) -> tuple[str, ...]:
        """Those that are on, as fields of `FGDShares`; a weight that is left out comes from the preset."""
        on = {
            "fg": self.split and self.alpha != 0,
            "bg": self.split and self.beta != 0,
            "unsplit": not self.split and (self.alpha != 0 or self.beta != 0),
            "attention": self.gamma != 0 and self.attend != "none",
            "global_": self.lambda_ != 0,
        }
        return tuple(name for name, is_on in on.items() if is_on)

    def teacher_attention(self) -> Attention | None:
        of: dict[str, tuple[Softmax, ...]] = {"both": ("spatial", "channel"), "spatial": ("spatial",)}
        softmaxes = of | {"channel": ("channel",), "none": ()}
        if not softmaxes[self.attend] or not set(self.terms()) - {"global_"}:
            return None
        return Attention(
            softmaxes[self.attend],
            self.temperature,
            self.perplexity,
            statistic=self.attention,
            official=self.compat == "official",
        )

    @model_validator(mode="after")
    def _shares_are_of_terms_that_are_on(self) -> Self:
        if self.shares is None:
            return self
        if self.rho == 0 or (self.rho is None and any(getattr(self, each) for each in self.weight_fields)):
            raise PydanticCustomError(
                "shares_without_rho",
                'shares divide what "rho" gives the method, which is 0 here: give it as well, as in "rho": 100, or '
                "leave the weights out",
                {"at": "shares"},
            )
        off = [name for name in self.shares.by_term() if name not in {term.removesuffix("_") for term in self.terms()}]
        if off:
            raise PydanticCustomError(
                "share_of_nothing",
                "the term {term} is off, so it can have no share: leave its share out, or switch it on",
                {"at": f"shares/{off[0]}", "term": off[0]},
            )
        return self

    def varied(self) -> bool:
        """Whether a choice is another than the paper's."""
        chosen = (self.split, self.attend, self.attention, self.global_module)
        return chosen != (True, "both", "absmean", "gc")

    @model_validator(mode="after")
    def _official_is_not_varied(self) -> Self:
        if self.compat == "official" and self.varied():
            raise ValueError(
                'compat "official" is the paper\'s FGD; leave out split, attend, attention and global_module'
            )
        return self

    @model_validator(mode="after")
    def _official_is_inclusive(self) -> Self:
        if self.compat == "official" and self.box_cells == "tight":
            raise ValueError('compat "official" counts cells inclusively; leave out box_cells')
        return self

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)


class Mimic(Method_):
    """Plain imitation of the neck's maps, FitNets' hint applied to detectors: the baseline FGD must beat."""

    source = "arXiv 1412.6550, on a detector's pyramid"

    kind: Literal["mimic"] = "mimic"
    weight: NonNegativeFloat | None = None
    """Weight of the squared error, summed over channels and averaged over valid cells."""
    where: Literal["everywhere", "inside", "outside"] = "everywhere"
    """Which cells are imitated: all, those of the boxes, or the others; the mean is over them."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)


Compat = Literal["default", "official"]


class PKD(Method_):
    """Pearson knowledge distillation: half the squared difference of maps that are standardised channel by channel."""

    source = "arXiv 2207.02039; open-mmlab/mmrazor@90c7af1"
    golden = True

    kind: Literal["pkd"] = "pkd"
    weight: NonNegativeFloat | None = None
    """Weight of the term, a mean over cells and channels, added up over levels."""
    levels: PositiveInt | None = None
    """How many of the shared levels, the finest first. The authors leave out the coarsest of five."""
    compat: Compat = "default"
    """"official": the authors' numbers, for networks of one width. "default": only cells of the image count, a channel
    that is almost constant is not blown up, and a 1x1 convolution brings other widths to the teacher's."""

    def finest(self) -> int | None:
        return self.levels

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        return refuse_unlike_widths(self, student, teacher) if self.compat == "official" else None


class CWD(Method_):
    """Channel-wise distillation: where each channel is active, as a distribution over the cells."""

    source = "arXiv 2011.13256; open-mmlab/mmrazor@90c7af1"
    golden = True

    kind: Literal["cwd"] = "cwd"
    weight: NonNegativeFloat | None = None
    """Weight of tau^2 times the KL divergence, a mean over channels, added up over levels."""
    temperature: PositiveFloat | None = None
    """tau of both softmaxes."""
    compat: Compat = "default"
    """"official": the authors' numbers, for networks of one width. "default": maps of a common scale, only cells of
    the image, a 1x1 convolution between other widths."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        return refuse_unlike_widths(self, student, teacher) if self.compat == "official" else None


class MGD(Method_):
    """Masked generative distillation: from the student's map with random cells left out, a small generator makes the
    teacher's."""

    source = "arXiv 2205.01529; yzd-v/MGD@2c9da0b"
    golden = True
    weight_fields = ("alpha",)

    kind: Literal["mgd"] = "mgd"
    alpha: NonNegativeFloat | None = None
    """Weight of the squared error, which is a sum over channels and cells."""
    lambda_: Annotated[Float, Field(ge=0, le=1)] | None = Field(default=None, alias="lambda")
    """Share of the cells that are left out; others in each step."""
    compat: Compat = "default"
    """"official": the authors' numbers. "default": maps of a common scale, only cells of the image, the sum scaled to
    the reference geometry."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        unlike = "" if student_channels == teacher_channels else "1x1 convolution, "
        return f"{unlike}generator of two 3x3 convolutions"


class FKD(Method_):
    """Feature-based knowledge distillation: attention-weighted maps, pooled maps, and what non-local blocks make of
    them. Each term is a norm, not its square."""

    source = "Zhang and Ma, ICLR 2021 (openreview uKhGRvM8QNH); open-mmlab/mmrazor@90c7af1"
    golden = True
    weight_fields = ("feature", "channel", "spatial", "non_local")

    kind: Literal["fkd"] = "fkd"
    feature: NonNegativeFloat | None = None
    """Weight of the maps' difference, weighted by where both are active."""
    channel: NonNegativeFloat | None = None
    """Weight of the difference of the channels' means."""
    spatial: NonNegativeFloat | None = None
    """Weight of the difference of the cells' means."""
    non_local: NonNegativeFloat | None = None
    """Weight of the non-local blocks' difference."""
    temperature: Temperature | None = None
    """T of the attention. "auto": of each level the T at which it has the perplexity below, found on 64 training images
    before the first step."""
    perplexity: Perplexity | None = None
    """For "temperature": "auto", which is meant where this alone is given: on what share of the cells the teacher's
    attention rests. Default: 0.95."""
    levels: PositiveInt | None = None
    """How many of the shared levels, the finest first."""
    compat: Compat = "default"
    """"official": the authors' numbers, for networks of one width. "default": maps of a common scale, only cells of
    the image, norms of each image scaled to the reference geometry, layers that bring other widths to the teacher's."""

    def finest(self) -> int | None:
        return self.levels

    def adapter(self, student_channels: int, teacher_channels: int) -> str:  # noqa: ARG002
        layers = {
            "1x1 convolution": self.feature,
            "linear": self.channel,
            "3x3 convolution": self.spatial,
            "two non-local blocks and a 1x1 convolution": self.non_local,
        }
        return ", ".join(layer for layer, weight in layers.items() if weight != 0)

    def teacher_attention(self) -> Attention | None:
        if self.feature == 0:
            return None
        official = self.compat == "official"
        return Attention(("spatial",), self.temperature, self.perplexity, levels=self.levels, official=official)

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        return refuse_unlike_widths(self, student, teacher) if self.compat == "official" else None


class DeFeat(Method_):
    """Decoupled features: imitation inside and outside the boxes with weights of their own, each box on one level."""

    source = "arXiv 2103.14475; ggjy/DeFeat.pytorch@c46a793"
    golden = True
    weight_fields = ("foreground", "background", "head_foreground", "head_background")

    kind: Literal["defeat"] = "defeat"
    foreground: NonNegativeFloat | None = None
    """Weight of the cells in boxes, a mean over them."""
    background: NonNegativeFloat | None = None
    """Weight of the other cells, a mean over them."""
    head_foreground: NonNegativeFloat = 0.0
    """Weight of the class scores of regions with an object, for families with proposals; the authors have 2, switched
    off in the configuration that they ship."""
    head_background: NonNegativeFloat = 0.0
    """Weight of the class scores of regions without."""
    compat: Compat = "default"
    """"official": the authors' numbers, for networks of one width. "default": maps of a common scale, only cells of
    the image, cells whose centre lies in a box, means of each image."""

    def takes(self) -> frozenset[Need]:
        return self.needs | {"proposals"} if self.head_foreground or self.head_background else self.needs

    def adapter(self, student_channels: int, teacher_channels: int) -> str:  # noqa: ARG002
        return "3x3 convolution" if self.foreground != 0 or self.background != 0 else "none"

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        return refuse_unlike_widths(self, student, teacher) if self.compat == "official" else None


class FGFI(Method_):
    """Fine-grained feature imitation: of the cells near objects, by how well their anchors cover a box."""

    needs = frozenset({"features", "anchors"})
    source = "arXiv 1906.03609; twangnh/Distilling-Object-Detectors@c6583f3"
    golden = True

    kind: Literal["fgfi"] = "fgfi"
    weight: NonNegativeFloat | None = None
    """Weight of half the squared error, summed over channels, averaged over the chosen cells."""
    threshold: Annotated[Float, Field(gt=0, lt=1)] = 0.5
    """A cell is chosen where an anchor's IoU with a box is above this share of the best that the box has."""
    compat: Compat = "default"
    """"official": the authors' numbers, each level by itself, the best IoU of a box that of the level. "default": maps
    of a common scale, only cells of the image, the best IoU over all levels, means of each image."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:  # noqa: ARG002
        return "3x3 convolution, ReLU"


class FRS(Method_):
    """Feature richness scores: imitation of maps and class scores where the teacher expects any object."""

    needs = frozenset({"features", "logits"})
    source = "arXiv 2111.00674; duzhixing/FRS@decd60c"
    golden = True
    weight_fields = ("feature", "scores")

    kind: Literal["frs"] = "frs"
    feature: NonNegativeFloat | None = None
    """Weight of the squared error, summed over channels, a mean weighted by the teacher's highest score."""
    scores: NonNegativeFloat | None = None
    """Weight of the cross-entropy of the class scores; of two stages, of the first one's."""
    compat: Compat = "default"
    """"official": the authors' numbers, without their linear ramp over 500 steps. "default": maps of a common scale,
    only cells of the image, the sum over channels scaled to the reference width."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:  # noqa: ARG002
        return "3x3 convolution" if self.feature != 0 else "none"

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        return refuse_unlike_families(self, student, teacher)


class CrossKD(Method_):
    """Cross-head distillation: the student's maps go through the rest of the teacher's head, whose predictions from
    them shall be those from its own."""

    needs = frozenset({"features", "logits", "boxes", "anchors", "towers"})
    source = "arXiv 2306.11369; jbwang1997/CrossKD@87e156a"
    golden = True
    weight_fields = ("scores", "boxes")

    kind: Literal["crosskd"] = "crosskd"
    scores: NonNegativeFloat | None = None
    """Weight of the class scores' quality focal loss."""
    boxes: NonNegativeFloat | None = None
    """Weight of the boxes' IoU loss."""
    first: NonNegativeInt | None = None
    """Convolution of the teacher's towers that the student's maps go into; 0: its neck's maps go into the first."""
    compat: Compat = "default"
    """"official": the authors' numbers. "default": only places of the image count, and batches without objects too."""

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        if why := refuse_unlike_families(self, student, teacher):
            return why
        widths = {level.stride: level.channels for level in teacher.levels()}
        for level in student.levels():
            if (width := widths.get(level.stride, level.channels)) != level.channels:
                return (
                    f"crosskd puts the student's maps into the teacher's head, and at {level.name} they have "
                    f"{level.channels} channels where the head takes {width}; take fpn_channels {width}"
                )
        return None


class LD(Method_):
    """Localisation distillation: the box sides' distributions over bins, at objects and near them."""

    needs = frozenset({"features", "logits", "distributions", "anchors"})
    source = "arXiv 2102.12252, 2204.05957; HikariTJU/LD@4287990"
    golden = True
    weight_fields = ("main", "valuable", "scores", "imitation")

    kind: Literal["ld"] = "ld"
    main: NonNegativeFloat = 0.25
    """Weight of the distributions at places that shall find a box."""
    valuable: NonNegativeFloat = 0.25
    """Weight of those at places near them: the valuable localisation region."""
    scores: NonNegativeFloat = 10.0
    """Weight of the class scores at places that shall find a box."""
    imitation: NonNegativeFloat = 0.0
    """Weight of the maps' squared error, a mean over chosen cells and channels, for networks of one width. The authors'
    configuration has 2."""
    region: Literal["fine_grained", "inside", "general_instances"] = "fine_grained"
    """Which cells are imitated: near a box by their anchors, inside one, or where the networks disagree."""
    temperature: PositiveFloat = 10.0
    """T of the distributions."""
    scores_temperature: PositiveFloat = 2.0
    """T of the class scores."""
    compat: Compat = "default"
    """"official": the authors' numbers, sums over places. "default": divided by the number of places that shall find a
    box."""

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        if why := refuse_unlike_families(self, student, teacher):
            return why
        return refuse_unlike_widths(self, student, teacher) if self.imitation else None


class GID(Method_):
    """General instances: boxes where student and teacher disagree most; their features, relations and responses."""

    needs = frozenset({"features", "logits", "boxes", "anchors"})
    source = "arXiv 2103.02340; daixinghome/Distill_GID_detectron2@9118c54, the first author's port"
    golden = True
    weight_fields = ("feature", "relation", "scores", "boxes")

    kind: Literal["gid"] = "gid"
    feature: NonNegativeFloat | None = None
    """Weight of the pooled maps' squared error, summed over channels."""
    relation: NonNegativeFloat | None = None
    """Weight of the difference of the distances between instances."""
    scores: NonNegativeFloat | None = None
    """Weight of the class scores' cross-entropy at anchors on instances."""
    boxes: NonNegativeFloat | None = None
    """Weight of the coded boxes' difference there."""
    instances: Annotated[Int, Field(ge=1, le=100)] = 10
    """Of each image at most."""
    compat: Compat = "default"
    """"official": the authors' numbers, for networks of one width. "default": maps of a common scale, the sum over
    channels scaled to the reference width, instances of each image by themselves, a 1x1 convolution between other
    widths."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        if self.feature == 0 and self.relation == 0:
            return "none"
        return convolution_if_unlike(student_channels, teacher_channels)

    def refusal(self, student: DetectorSpec, teacher: DetectorSpec) -> str | None:
        if why := refuse_unlike_families(self, student, teacher):
            return why
        return refuse_unlike_widths(self, student, teacher) if self.compat == "official" else None


class Chen2017(Method_):
    """Chen et al. 2017 for two stages: a hint on the neck, class scores of regions with the background weighted, and
    a bound on the boxes. There is no original code: its numbers are checked against its formulas."""

    needs = frozenset({"features", "proposals"})
    source = "Chen et al., Learning Efficient Object Detection Models with Knowledge Distillation, NeurIPS 2017"
    weight_fields = ("hint", "soft", "bounded")

    kind: Literal["chen2017"] = "chen2017"
    hint: NonNegativeFloat | None = None
    """Weight of the maps' squared error, a mean over cells and channels."""
    soft: NonNegativeFloat | None = None
    """Weight of the soft cross-entropy beside the detector's own: (1 - mu) / mu of the paper."""
    bounded: NonNegativeFloat | None = None
    """Weight of the boxes' bounded regression: nu of the paper."""
    background_weight: PositiveFloat = 1.5
    """w of the background in the soft cross-entropy; that of a class is 1."""
    margin: NonNegativeFloat = 0.0
    """m: by how much squared error the student must be better than the teacher to be left alone."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels) if self.hint != 0 else "none"


class MimicRoI(Method_):
    """Mimick (Li et al. 2017): imitation of the maps inside regions alone. There is no original code: its numbers are
    checked against its formula."""

    source = "Li et al., Mimicking Very Efficient Network for Object Detection, CVPR 2017"

    kind: Literal["mimic_roi"] = "mimic_roi"
    weight: NonNegativeFloat | None = None
    """Weight of half the squared error, a mean over regions, cells and channels."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)


class TADF(Method_):
    """Task adaptive regularisation's feature term: imitation under a Gaussian in each box. There is no original code:
    its numbers are checked against its formula."""

    source = "arXiv 2006.13108"

    kind: Literal["tadf"] = "tadf"
    weight: NonNegativeFloat | None = None
    """Weight of half the squared error, summed over channels, a mean weighted by the Gaussians."""
    spread: PositiveFloat = 2.0
    """Width of a Gaussian in half sides of its box: at the edge it is exp(-1 / spread^2)."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)


class Relations(Method_):
    """Relations between an image's objects: how alike the pooled maps of its boxes are, in both networks."""

    source = "the relation of arXiv 1711.11575 as a loss; there is no original code"

    kind: Literal["relations"] = "relations"
    weight: NonNegativeFloat | None = None
    """Weight of the mean difference of the cosines between each two boxes."""

    def adapter(self, student_channels: int, teacher_channels: int) -> str:
        return convolution_if_unlike(student_channels, teacher_channels)


MethodSpec = Annotated[
    FGD
    | Mimic
    | PKD
    | CWD
    | MGD
    | FKD
    | DeFeat
    | FGFI
    | FRS
    | CrossKD
    | LD
    | GID
    | Chen2017
    | MimicRoI
    | TADF
    | Relations,
    Field(discriminator="kind"),
]


def title(method: MethodSpec) -> str:
    """What its terms are called by: the kind, and the teacher's name where it has one."""
    return method.kind if method.teacher is None else f"{method.kind}@{method.teacher}"


def unserved(method: MethodSpec, detector: DetectorSpec) -> str | None:
    """Why a network of this family cannot be student or teacher of `method`."""
    lacking = [need for need in get_args(Need) if need in method.takes() - detector.offers]
    if not lacking:
        return None
    return (
        f"{method.kind} needs {' and '.join(lacking)} of student and teacher, but {detector.kind} has no "
        f"{' and no '.join(lacking)}; families that have them: {', '.join(families_with(method.takes())) or 'none'}"
    )


def families_for(method: type[Method_]) -> list[str]:
    """The kinds of detectors that offer what it takes."""
    return families_with(method.needs)


def families_with(needs: frozenset[Need]) -> list[str]:
    return [family.model_fields["kind"].default for family in members(DetectorSpec) if needs <= family.offers]
