"""What the study runs, as data. Frozen before the first run; docs/study.md says why each number is what it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fgd.detector_specs import FCOS, OF_THE_HEAD, DetectorSpec, FasterRCNN, RetinaNet
from fgd.method_specs import (
    CWD,
    FGD,
    FGFI,
    FKD,
    FRS,
    GID,
    MGD,
    PKD,
    TADF,
    Chen2017,
    CrossKD,
    DeFeat,
    MethodSpec,
    Mimic,
    MimicRoI,
    Relations,
)
from fgd.presets import resolve
from fgd.spec import AdamW, JobSpec, Resources, Schedule
from fgd.spec_fields import FromPath, TeacherFromPath

EQUAL_COMPUTE = 1.25
"""Time of a step with FGD by that of the control's, teacher included: what its epochs are multiplied by."""
CACHE_GIB = 2.0
"""For the teacher's maps, in the training's folder."""
DATA, RUNS = "data", "runs"
"""Folders of the study's own folder, where its trainings are started: the paths of its specs begin with them."""


@dataclass(frozen=True)
class Arm:
    """What is done to a student of a setting."""

    methods: tuple[MethodSpec, ...] = ()
    inherit: bool = False
    """Begin with the teacher's neck and head."""
    longer: float = 1.0
    """Times the setting's epochs."""


@dataclass(frozen=True)
class Setting:
    """A set, a teacher and a student; every arm of it shares them and the schedule."""

    data: str
    student: DetectorSpec
    schedule: Schedule
    seeds: dict[str, int]
    """Arm -> how many seeds, from 0."""
    teacher: DetectorSpec | None = None
    teacher_epochs: int = 0
    taught_by: str | None = None
    """The setting whose teacher is used, instead of an own."""
    control: str | None = None
    """The setting that has this one's control: its student, data and schedule are the same."""


@dataclass(frozen=True)
class Run:
    setting: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setting}/{self.arm}/{self.seed}"


TEACHER, CONTROL = "teacher", "control"

ARMS: dict[str, Arm] = {
    TEACHER: Arm(),
    CONTROL: Arm(),
    "longer": Arm(longer=EQUAL_COMPUTE),
    "inherit": Arm(inherit=True),
    "fgd": Arm((FGD(),)),
    "fgd-inherit": Arm((FGD(),), inherit=True),
    "focal": Arm((FGD().but(lambda_=0.0),)),
    "global": Arm((FGD(alpha=0.0, beta=0.0, gamma=0.0),)),
    "unsplit": Arm((FGD(split=False),)),
    "perplexity-0.3": Arm((FGD(temperature="auto", perplexity=0.3),)),
    "perplexity-0.7": Arm((FGD(temperature="auto", perplexity=0.7),)),
    "official": Arm((FGD(compat="official"),)),
    "mimic": Arm((Mimic(),)),
    "pkd": Arm((PKD(),)),
    "cwd": Arm((CWD(),)),
    "mgd": Arm((MGD(),)),
    "fkd": Arm((FKD(),)),
    "defeat": Arm((DeFeat(),)),
    "fgfi": Arm((FGFI(),)),
    "frs": Arm((FRS(),)),
    "crosskd": Arm((CrossKD(),)),
    "gid": Arm((GID(),)),
    "chen2017": Arm((Chen2017(),)),
    "mimic-roi": Arm((MimicRoI(),)),
    "tadf": Arm((TADF(),)),
    "relations": Arm((Relations(),)),
}
DESCRIBED = dict.fromkeys(("cwd", "mgd", "fkd", "defeat", "fgfi", "frs", "gid", "mimic-roi", "tadf", "relations"), 3)
"""Methods of three seeds on one set, without intervals."""
LAST = {*DESCRIBED, "crosskd"}
"""What is trained last, and dropped first."""


def schedule_of(epochs: int, every: int, min_size: int, max_size: int, flip: str = "horizontal") -> Schedule:
    return Schedule(
        epochs=epochs,
        batch_size=4,
        min_size=min_size,
        max_size=max_size,
        flip=flip,  # type: ignore[arg-type]
        optimizer=AdamW(lr=6e-4),
        evaluate_every=every,
    )


BCCD = {"min_size": 144, "max_size": 192}
FACES = {"min_size": 160, "max_size": 224}

SETTINGS: dict[str, Setting] = {
    "bccd-fcos": Setting(
        data="bccd",
        teacher=FCOS(backbone="resnet34", fpn_channels=128),
        teacher_epochs=24,
        student=FCOS(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(16, 2, **BCCD),
        seeds={CONTROL: 6, "fgd": 6}
        | dict.fromkeys(("mimic", "focal", "global", "unsplit", "longer"), 4)
        | dict.fromkeys(("perplexity-0.3", "perplexity-0.7", "official", "pkd"), 3)
        | DESCRIBED,
    ),
    "digits-fcos": Setting(
        data="digits",
        teacher=FCOS(backbone="resnet34", fpn_channels=96),
        teacher_epochs=12,
        student=FCOS(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(12, 1, 96, 96, flip="none"),  # a digit mirrored is another digit, or none
        seeds={CONTROL: 5, "fgd": 5, "mimic": 3, "unsplit": 3},
    ),
    "bccd-retinanet": Setting(
        data="bccd",
        teacher=RetinaNet(backbone="resnet34", fpn_channels=128),
        teacher_epochs=40,
        student=RetinaNet(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(24, 3, **BCCD),
        seeds={CONTROL: 5, "fgd": 5, "mimic": 3, "pkd": 3},
    ),
    "facemask-fcos": Setting(
        data="facemask",
        teacher=FCOS(backbone="resnet34", fpn_channels=128),
        teacher_epochs=24,
        student=FCOS(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(12, 2, **FACES),
        seeds={CONTROL: 5, "fgd": 5, "mimic": 3, "unsplit": 3},
    ),
    "bccd-faster-rcnn": Setting(
        data="bccd",
        teacher=FasterRCNN(backbone="resnet34", fpn_channels=128),
        teacher_epochs=12,
        student=FasterRCNN(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(9, 1, **BCCD),
        seeds={CONTROL: 5, "fgd": 5, "mimic": 3, "pkd": 3, "chen2017": 3},
    ),
    "bccd-fcos-wide": Setting(  # inheriting copies tensors of equal shape: the student's pyramid is as wide
        data="bccd",
        taught_by="bccd-fcos",
        student=FCOS(backbone="resnet18", fpn_channels=128),
        schedule=schedule_of(16, 2, **BCCD),
        seeds=dict.fromkeys((CONTROL, "fgd", "inherit", "fgd-inherit"), 4) | {"crosskd": 3},  # whose maps must fit
    ),
    "pear-fcos": Setting(  # confirmation: nothing is chosen on it
        data="pear",
        teacher=FCOS(backbone="resnet34", fpn_channels=128),
        teacher_epochs=32,
        student=FCOS(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(16, 2, 192, 192),
        seeds={CONTROL: 3, "fgd": 3},
    ),
    "bccd-fcos-weak": Setting(  # the student's own network, half trained, is its teacher
        data="bccd",
        teacher=FCOS(backbone="resnet18", fpn_channels=64),
        teacher_epochs=3,
        student=FCOS(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(16, 2, **BCCD),
        seeds={"fgd": 3},
        control="bccd-fcos",
    ),
    "bccd-fcos-small-gap": Setting(  # and wholly trained
        data="bccd",
        teacher=FCOS(backbone="resnet18", fpn_channels=64),
        teacher_epochs=16,
        student=FCOS(backbone="resnet18", fpn_channels=64),
        schedule=schedule_of(16, 2, **BCCD),
        seeds={"fgd": 3},
        control="bccd-fcos",
    ),
    "bccd-fcos-better-trunk": Setting(
        data="bccd",
        taught_by="bccd-fcos-small-gap",
        student=FCOS(backbone="resnet34", fpn_channels=128),
        schedule=schedule_of(16, 2, **BCCD),
        seeds={CONTROL: 3, "fgd": 3},
    ),
}


def spec_of(run: Run) -> JobSpec:
    """The run's job, every number in it; its paths are relative to the study's folder."""
    setting, arm = SETTINGS[run.setting], ARMS[run.arm]
    schedule = setting.schedule
    student = setting.student
    taught_by = f"{RUNS}/{teacher_of(run).name}/result"
    if run.arm == TEACHER:
        assert setting.teacher is not None
        schedule, student = schedule.but(epochs=setting.teacher_epochs), setting.teacher
    if arm.inherit:
        student = student.but(inherit=FromPath(path=taught_by))
    if arm.longer != 1:
        schedule = schedule.but(epochs=round(arm.longer * schedule.epochs))
    spec = JobSpec(
        name=run.name.replace("/", " "),
        teacher=TeacherFromPath(path=taught_by) if arm.methods else None,
        student=student,
        dataset=FromPath(path=f"{DATA}/{setting.data}"),
        methods=arm.methods,
        schedule=schedule,
        resources=Resources(device="cpu", threads=1, teacher_cache_gib=CACHE_GIB if cached(arm) else None),
        seed=run.seed,
    )
    return resolve(spec)


def cached(arm: Arm) -> bool:
    """Whether the teacher's maps can be kept: not where its head runs. They are the same to the bit."""
    return bool(arm.methods) and not any(each.takes() & (OF_THE_HEAD | {"proposals"}) for each in arm.methods)


def control_of(setting: str, arm: str) -> tuple[str, str]:
    """Setting and arm that this one is compared with: it begins alike."""
    begins = "inherit" if ARMS[arm].inherit and ARMS[arm].methods else CONTROL
    return SETTINGS[setting].control or setting, begins


def teacher_of(run: Run) -> Run:
    return Run(SETTINGS[run.setting].taught_by or run.setting, TEACHER, 0)


def runs() -> Iterator[Run]:
    """In the order of work, setting by setting; a teacher before the first that it teaches. What ends early has answers
    of the settings that are done, and of the last one up to a seed."""
    begun: set[Run] = set()
    for described in (False, True):
        for name, setting in SETTINGS.items():
            counts = {arm: count for arm, count in setting.seeds.items() if (arm in LAST) == described}
            for seed in range(max(counts.values(), default=0)):
                for arm, count in counts.items():
                    if seed < count:
                        run = Run(name, arm, seed)
                        teacher = teacher_of(run)
                        if needs_teacher(run) and teacher not in begun:
                            begun.add(teacher)
                            yield teacher
                        yield run


def needs_teacher(run: Run) -> bool:
    return bool(ARMS[run.arm].methods or ARMS[run.arm].inherit)
