"""hf:// addresses: huggingface_hub itself, against a hub on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from huggingface_hub import constants

from fgd.cli import hub
from fgd.data import formats, zips
from tests.unit.data.test_huggingface import Folder, Shards
from tests.unit.http_fake import closed_port
from tests.unit.hub_server import COMMIT, Hub


@pytest.fixture
def server() -> Iterator[Hub]:
    with closing(Hub()) as server:
        yield server


@pytest.fixture
def here(server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """This process asks that hub; HF_ENDPOINT and HF_HOME are read when the library is loaded."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return server


def test_parquet_comes_through_the_cache_whole(here: Hub, tmp_path: Path) -> None:
    shards = Shards(tmp_path / "set")
    shards.read()
    here.put("datasets/ada/cells", shards.root)
    fetched = hub.fetch_dataset(hub.dataset_address("hf://datasets/ada/cells"))
    assert fetched.address == hub.Address("ada/cells", None, COMMIT)
    assert zips.pack(fetched.path, tmp_path / "a.zip", fetched.cache) == 2
    zips.unpack(tmp_path / "a.zip", tmp_path / "out")
    _, report, _ = formats.read(tmp_path / "out")
    assert report.defect_counts == {}


def test_only_links_into_the_cache_are_packed(tmp_path: Path) -> None:
    for name in ("cache/blobs/one", "secret"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    snapshot = tmp_path / "cache/snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "a.jpg").symlink_to("../../blobs/one")
    (snapshot / "b.jpg").symlink_to(tmp_path / "secret")
    assert zips.pack(snapshot, tmp_path / "a.zip", tmp_path / "cache") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf://ada/none", "has no such repository, or it is private; if so, set HF_TOKEN"),
        ("hf://ada/cells@v9", "has no revision v9"),
    ],
)
def test_what_the_hub_has_not_is_told_in_one_line(here: Hub, tmp_path: Path, text: str, words: str) -> None:
    here.put("datasets/ada/cells", Folder(tmp_path / "set").write())
    with pytest.raises(hub.HubError, match=words) as told:
        hub.fetch_dataset(hub.dataset_address(text))
    assert "\n" not in str(told.value)


def test_a_missing_file_is_told(here: Hub, tmp_path: Path) -> None:
    here.put("models/ada/net", Folder(tmp_path / "set").write())
    with pytest.raises(hub.HubError, match=r"has no file none\.pth"):
        hub.fetch_file(hub.file_address("hf://ada/net/none.pth"))


@pytest.mark.parametrize("offline", [True, False])
def test_no_network_is_told(here: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(hub.HubError, match="offline" if offline else "does not answer"):
        hub.fetch_dataset(hub.dataset_address("hf://ada/cells"))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(hub.HubError, match=r'pip install "fgd-service\[hf\]"'):
        hub.fetch_dataset(hub.dataset_address("hf://ada/cells"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://ada/net/a.pth", ("ada/net", "a.pth", None)),
        ("hf://ada/net/sub/a.pth@refs/pr/1", ("ada/net", "sub/a.pth", "refs/pr/1")),
        ("hf://models/ada/net/a.pth", ("ada/net", "a.pth", None)),
    ],
)
def test_addresses_of_files(text: str, address: tuple[str, str, str | None]) -> None:
    assert hub.file_address(text) == hub.Address(*address)


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf:///", "hf://a/b/c", "hf://ada/cells@", "hf://ada/..%2f", "hf://a b/c", "hf://ada/cells@a/b/c d"],
)
def test_what_is_no_data_set_of_the_hub_is_refused(text: str) -> None:
    with pytest.raises(hub.HubError, match="hf://"):
        hub.fetch_dataset(hub.dataset_address(text))


@pytest.mark.parametrize("text", ["hf://ada/net", "hf://net.pth", "hf://ada/net/../../x", "hf://ada/net/"])
def test_what_is_no_file_of_the_hub_is_refused(text: str) -> None:
    with pytest.raises(hub.HubError, match="hf://"):
        hub.file_address(text)


def test_what_is_gated_needs_a_token(here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.put("datasets/ada/cells", Folder(tmp_path / "set").write()).gated = True
    address = hub.dataset_address("hf://ada/cells")
    with pytest.raises(hub.HubError, match=r"hf://ada/cells is gated: accept its terms .* set HF_TOKEN"):
        hub.fetch_dataset(address)
    monkeypatch.setenv("HF_TOKEN", "hf_let_me_in")
    assert (hub.fetch_dataset(address).path / "train/a.png").is_file()


def test_only_files_of_a_data_set_are_downloaded_and_offline_the_cache_is_enough(
    here: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.put("datasets/ada/cells", Folder(tmp_path / "set").write()).files["weights.bin"] = b"not asked for"
    address = hub.dataset_address("hf://ada/cells@v1")
    fetched = hub.fetch_dataset(address)
    assert not [asked for asked in here.asked if "weights.bin" in asked.path]
    here.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch_dataset(address) == fetched
    assert here.asked == []
