"""Files of the Hugging Face hub, downloaded on this machine: only the client does so, the service fetches no address.

    hf://owner/name[@revision]              a data set; also hf://datasets/owner/name
    hf://owner/name/path/file[@revision]    a file of a model

huggingface_hub does it, so HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and its cache mean what they always mean.
Needs the extra `hf`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgd.data.format_list import NAMES, SUFFIXES
from fgd.errors import UserError

SCHEME = "hf://"
EXTRA = 'pip install "fgd-service[hf]"'
WANTED = [*(f"*{suffix}" for suffix in sorted(SUFFIXES)), *sorted(NAMES)]
"""What a data set consists of; a repository may have much else."""
_PART = re.compile(r"[\w.-]{1,96}", re.ASCII)


class HubError(UserError):
    """What was asked of the hub cannot be had; the message is one line."""


class HubAway(HubError):
    """Nobody answered, or the answer broke off."""


@dataclass(frozen=True)
class Address:
    repository: str
    file: str | None
    revision: str | None

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"{SCHEME}{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class Download:
    path: Path
    cache: Path
    """Its links lead to files in here."""
    address: Address
    """With the commit for a revision: the same again, whatever happens to the branch."""


def is_address(text: str) -> bool:
    return text.startswith(SCHEME)


def dataset_address(text: str) -> Address:
    """Raises HubError."""
    parts, revision = _split(text)
    parts = parts[1:] if parts[:1] == ["datasets"] and len(parts) > 1 else parts
    if len(parts) not in (1, 2) or not all(map(_PART.fullmatch, parts)):
        raise HubError(f"{text}: a data set is hf://owner/name, or hf://owner/name@revision")
    return Address("/".join(parts), None, revision)


def file_address(text: str) -> Address:
    """Raises HubError."""
    parts, revision = _split(text)
    parts = parts[1:] if parts[:1] == ["models"] and len(parts) > 3 else parts
    if len(parts) < 3 or not all(map(_PART.fullmatch, parts[:2])) or not all(p.strip(".") for p in parts[2:]):
        raise HubError(f"{text}: weights are hf://owner/name/file.safetensors, or the same with @revision at its end")
    return Address("/".join(parts[:2]), "/".join(parts[2:]), revision)


def _split(text: str) -> tuple[list[str], str | None]:
    path, at, revision = text.removeprefix(SCHEME).partition("@")
    if at and not revision:
        raise HubError(f"{text}: name the revision behind @: a branch, a tag or a commit")
    return path.strip("/").split("/"), revision or None


def fetch_dataset(address: Address) -> Download:
    """All files of a data set, in the hub's cache. Raises HubError."""
    hub = _hub()
    found = _ask(
        address,
        lambda: hub.snapshot_download(
            address.repository, repo_type="dataset", revision=address.revision, allow_patterns=WANTED
        ),
    )
    return _fetched(address, Path(found), Path(found))


def fetch_file(address: Address) -> Download:
    """One file of a model, in the hub's cache. Raises HubError."""
    hub = _hub()
    found = _ask(address, lambda: hub.hf_hub_download(address.repository, address.file, revision=address.revision))
    path = Path(found)
    snapshot = path.parents[(address.file or "").count("/")]
    return _fetched(address, path, snapshot)


def _fetched(address: Address, path: Path, snapshot: Path) -> Download:
    """snapshot: models--owner--name/snapshots/<commit>, as the cache has it."""
    return Download(path, snapshot.parents[1], Address(address.repository, address.file, snapshot.name))


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(f"hf:// needs huggingface_hub, which is not installed here: {EXTRA}") from error
    return huggingface_hub


def _ask(address: Address, call: Callable[[], str]) -> str:
    """Raises HubError for everything that the hub's client raises, in one line that says what to do."""
    from huggingface_hub import constants, errors

    try:
        return call()
    except errors.GatedRepoError as error:
        raise HubError(
            f"{address} is gated: accept its terms at {constants.ENDPOINT}, and set HF_TOKEN (or hf auth login)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{address}: {constants.ENDPOINT} has no such repository, or it is private; if so, set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{address}: the repository has no revision {address.revision}") from error
    except errors.LocalEntryNotFoundError as error:
        cause = "offline" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise HubAway(f"{address}: {cause}, and the hub's cache does not contain all of it") from error
    except errors.EntryNotFoundError as error:
        raise HubError(f"{address}: the repository has no file {address.file}") from error
    except OSError as error:
        raise HubAway(f"{address}: {' '.join(str(error).split())[:300]}") from error
    except Exception as error:  # its transport's own errors, which are of no common kind
        raise HubAway(f"{address}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
