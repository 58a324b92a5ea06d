"""Every setting of the service with its unit and default, read once from FGD_* variables. Knows nothing else."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AliasChoices,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from fgd.tracking.names import ADDRESS, EXPERIMENT

MIN_KEY_CHARS = 32


def _also(name: str) -> Any:
    """Of a setting that others know by another name."""
    ours = name.replace("MLFLOW_TRACKING_", "FGD_MLFLOW_")
    return Field(validation_alias=AliasChoices(ours, name))


def complaint(error: ValidationError) -> str:
    """What is wrong with the settings, a line for each variable."""
    lines = [
        f"FGD_{'_'.join(map(str, found['loc'])).upper()}: {found['msg']}" if found["loc"] else found["msg"]
        for found in error.errors(include_input=False)
        if found["type"] != "default_factory_not_called"  # a default that follows from what is wrong
    ]
    return "\n".join(["a setting is wrong", *lines])


class UnsafeBind(ValueError):
    """The server would be reachable from elsewhere without a key."""


class Settings(BaseSettings):
    """Times are seconds. Tests of faults shrink them; beat_s < freeze_s < kill_s < lease_s holds always."""

    model_config = SettingsConfigDict(
        env_prefix="FGD_", frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True,
        populate_by_name=True, allow_inf_nan=False, hide_input_in_errors=True,  # a mistyped value may be a secret
    )  # fmt: skip

    home: Path = Path(".fgd")
    """Folder of everything the embedded service writes."""
    database_url: Annotated[str, Field(default_factory=lambda data: f"sqlite:///{data['home']}/fgd.db", repr=False)]
    """SQLAlchemy URL: sqlite:///file or postgresql+psycopg://..."""
    broker_url: Annotated[str | None, Field(repr=False)] = None
    """Celery broker. None: workers are not notified and find jobs by polling."""
    blobs: Annotated[Path, Field(default_factory=lambda data: data["home"] / "blobs")]
    """Folder of the blob store."""
    store_url: str | None = None
    """s3://bucket/prefix: blobs and checkpoints are kept there instead of in `blobs`."""
    store_endpoint: str | None = None
    """http(s)://host:port of an S3-compatible server. None: AWS's own."""
    store_region: str = "us-east-1"
    store_key_id: SecretStr | None = None
    store_secret: SecretStr | None = None
    """The S3 account. If neither is set: the AWS_* variables or the host's role."""
    store_proxy: bool = True
    """Downloads from S3 pass through the API. False: the API answers 307 to a signed URL that is valid for 15 minutes;
    clients must reach store_endpoint themselves, and both parts of the account must be set."""
    data_roots: Annotated[tuple[Path, ...], NoDecode] = ()
    """Folders, separated as in PATH, below which the API may read data sets and teachers."""
    api_key: SecretStr | None = None
    """At least 32 characters. When set, every request needs it, even from this host."""
    host: str = "127.0.0.1"
    """Address the server listens on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    root_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    """A prefix that a proxy leaves on the addresses that it passes on, such as /fgd. One that it takes off need not be
    named."""
    public_url: str | None = None
    """http(s)://... where people open the dashboard, for links in other programs (MLflow). None: no links."""
    mlflow_tracking_uri: str | None = None
    """http(s)://host:port of an MLflow server, to which the API brings every job: settings, figures and files. None:
    off."""
    mlflow_experiment: str = EXPERIMENT
    """Where their runs go; it is made if there is none."""
    mlflow_username: Annotated[str | None, _also("MLFLOW_TRACKING_USERNAME")] = None
    mlflow_password: Annotated[SecretStr | None, _also("MLFLOW_TRACKING_PASSWORD")] = None
    mlflow_token: Annotated[SecretStr | None, _also("MLFLOW_TRACKING_TOKEN")] = None
    """MLflow's account: a name and a password, or a token. Each is also read under MLflow's own name for it."""

    beat_s: PositiveFloat = 3.0
    """Between heartbeats of a running attempt."""
    lease_s: PositiveFloat = 20.0
    """Without a heartbeat for this long, the attempt is lost and the worker counts as dead."""
    freeze_s: PositiveFloat = 12.0
    """Without a successful heartbeat for this long, a supervisor stops its trainer (SIGSTOP)."""
    kill_s: PositiveFloat = 16.0
    """... and kills it. Shorter than lease_s, so that two trainers of one job never run at once."""
    sweep_s: PositiveFloat = 5.0
    """Between sweeps for expired leases."""
    poll_s: PositiveFloat = 5.0
    """How often a worker looks for jobs by itself."""
    grace_s: PositiveFloat = 120.0
    """Between asking a trainer to end and killing it."""
    drain_s: PositiveFloat | None = None
    """How long trainers may take to save when their worker shuts down; then they are killed, and their jobs continue
    elsewhere. None: grace_s."""
    stall_s: PositiveFloat = 300.0
    """Without a step for this long (or ten median steps) a trainer counts as stalled."""
    changes_s: PositiveFloat = 1.0
    """How often the API looks for changes of jobs that clients wait for."""
    ping_s: PositiveFloat = 15.0
    """An idle stream sends a comment after this time, so that no proxy cuts it."""
    max_streams: PositiveInt = 256
    """Event streams that one API process keeps open, at most half of them for one client address; the next gets a
    429."""
    max_waiters: PositiveInt = 256
    """Long polls (Prefer: wait) that one API process keeps open, at most half of them for one client address; the next
    gets a 429."""
    max_queued_jobs: PositiveInt = 1000
    """Jobs that may be queued at once; the next gets a 429."""
    max_study_jobs: PositiveInt = 200
    """Jobs that one study may have: arms x students x seeds."""
    max_waiting_imports: PositiveInt = 100
    """Data sets, and likewise models, that may wait for their content or their import; the next gets a 429."""
    max_waiting_plans: PositiveInt = 20
    """Plans that may wait to be measured; the next gets a 429. A worker measures one in about ten seconds."""
    max_waiting_tasks: PositiveInt = 100
    """Evaluations, and likewise exports and predictions, that may wait or be at a worker; the next gets a 429."""

    upload_bytes: PositiveInt = 20 * 1024**3
    """Maximum size of an uploaded zip, in bytes."""
    max_model_bytes: PositiveInt = 2 * 1024**3
    """Maximum size of uploaded weights, in bytes."""
    max_picture_bytes: PositiveInt = 32 * 1024**2
    """Maximum size of a picture that is sent for a prediction, in bytes."""
    uploads: Annotated[Path, Field(default_factory=lambda data: data["home"] / "uploads")]
    """The API's folder for incomplete uploads. If it is on the disk of `blobs`, a complete file becomes a blob without
    being copied."""

    slots: PositiveInt = 1
    """Jobs a worker runs at once."""
    threads: PositiveInt | None = None
    """Processor threads per slot. None: all cores, shared among the slots."""
    import_minutes: PositiveFloat = 60.0
    """The import of a data set or a model that takes longer on a worker is rejected, and not tried again."""
    cache_bytes: PositiveInt = 20 * 1024**3
    """Maximum size of a worker host's cache of inputs, in bytes."""
    min_free_bytes: Annotated[int, Field(ge=0)] = 256 * 1024**2
    """A worker with less free disk below `home` takes no job, and an API no new job, plan, data set or model; it is not
    ready then, and what ends work (cancel, delete, results) goes on. Uploads leave twice as much."""
    full_s: PositiveFloat = 60.0
    """After a job found the disk full, its worker takes no jobs for this long, so that another worker can."""
    weights_dir: Path | None = None
    """Folder on a worker's host with torchvision's weight files, for hosts without internet; the worker passes it to
    its trainers. None: torch hub's cache, with downloads into it."""
    trainer: tuple[str, ...] | None = None
    """JSON list: the command that replaces `python -m fgd.train`."""

    @model_validator(mode="after")
    def _a_silent_trainer_dies_before_its_lease_ends(self) -> Self:
        if not self.beat_s < self.freeze_s < self.kill_s < self.lease_s:
            raise ValueError(
                f"FGD_BEAT_S={self.beat_s:g}, FGD_FREEZE_S={self.freeze_s:g}, FGD_KILL_S={self.kill_s:g}, "
                f"FGD_LEASE_S={self.lease_s:g}: each must be less than the next. A worker that cannot reach the "
                "database stops its trainer, then kills it, before the lease ends and another worker begins: only so "
                "do two trainers of one job never live at once"
            )
        return self

    @field_validator("database_url", mode="after")
    @classmethod
    def _database_is_known(cls, url: str) -> str:
        if re.match(r"(sqlite|postgresql)(\+\w+)?://", url) is None:
            raise ValueError("FGD_DATABASE_URL begins with sqlite:/// or postgresql+psycopg://")
        return url

    @field_validator("store_url", mode="after")
    @classmethod
    def _store_is_known(cls, url: str | None) -> str | None:
        if url is not None and re.fullmatch(r"s3://[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9](/[\w.\-]+)*/?", url) is None:
            raise ValueError("FGD_STORE_URL is s3://bucket or s3://bucket/prefix")
        return url

    @field_validator("store_endpoint", mode="after")
    @classmethod
    def _endpoint_is_a_server(cls, url: str | None) -> str | None:
        if url is not None and re.fullmatch(r"https?://[^/@?#]+/?", url) is None:
            raise ValueError("FGD_STORE_ENDPOINT is http(s)://host:port, without a path or an account")
        return url.rstrip("/") if url else None

    @field_validator("public_url", "mlflow_tracking_uri", mode="after")
    @classmethod
    def _address_is_plain(cls, url: str | None, info: ValidationInfo) -> str | None:
        if url and ADDRESS.fullmatch(url) is None:
            raise ValueError(
                f"FGD_{str(info.field_name).upper()} is http(s)://host:port, without an account or a query"
            )
        return url or None

    @model_validator(mode="after")
    def _account_is_whole(self) -> Self:
        if (self.store_key_id is None) != (self.store_secret is None):
            raise ValueError("FGD_STORE_KEY_ID and FGD_STORE_SECRET go together")
        if not self.store_proxy and self.store_url is not None and self.store_secret is None:
            raise ValueError("FGD_STORE_PROXY=false needs FGD_STORE_KEY_ID and FGD_STORE_SECRET, to sign the URLs")
        return self

    @field_validator("data_roots", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("data_roots", mode="after")
    @classmethod
    def _roots_are_absolute(cls, roots: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(root.expanduser().resolve() for root in roots)

    @field_validator("home", "blobs", "uploads", "weights_dir", mode="after")
    @classmethod
    def _folders_are_absolute(cls, folder: Path | None) -> Path | None:
        # Child processes run elsewhere; a relative folder would be another one there.
        return folder.expanduser().resolve() if folder is not None else None

    @field_validator("weights_dir", mode="before")
    @classmethod
    def _empty_is_none(cls, value: Any) -> Any:
        return value or None

    @field_validator("api_key", mode="after")
    @classmethod
    def _key_is_long(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < MIN_KEY_CHARS:
            raise ValueError(f"FGD_API_KEY needs at least {MIN_KEY_CHARS} characters; try `openssl rand -hex 32`")
        return key


def is_loopback(host: str) -> bool:
    """True where only this host can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def check_bind(settings: Settings) -> None:
    """Raise UnsafeBind if other hosts could reach the server without a key. Call it before binding."""
    if settings.api_key is None and not is_loopback(settings.host):
        raise UnsafeBind(
            f"refusing to listen on {settings.host}: other hosts can reach it and FGD_API_KEY is not set. "
            "Set FGD_API_KEY to at least 32 random characters (openssl rand -hex 32), or bind 127.0.0.1."
        )
