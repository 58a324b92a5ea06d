from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fgd.export import measure

MODEL = """
import torch
from torch import nn

class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return [{"boxes": self.scale.max() * image.new_ones(1, 4)} for image in images]

def build():
    return Detector()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    save_file({"scale": torch.full((3,), 2.0)}, tmp_path / "student.safetensors")
    return tmp_path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6)).save(path)
    return path


def test_parameters_and_times_are_printed_as_json(
    folder: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure.main([str(folder), str(folder), "--images", str(image), "--passes", "4"])
    said = json.loads(capsys.readouterr().out)
    assert said["passes"] == 4
    assert said["threads"] == torch.get_num_threads()
    assert [network["parameters"] for network in said["networks"]] == [3, 3]
    assert all(network["ms"] > 0 for network in said["networks"])


def test_a_slow_machine_makes_fewer_passes(folder: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure.main([str(folder), "--images", str(image), "--passes", "100", "--limit-s", "0"])
    assert json.loads(capsys.readouterr().out)["passes"] == 1


@pytest.mark.parametrize("tensors", [{}, {"scale": torch.ones(3), "more": torch.ones(1)}, {"scale": torch.ones(4)}])
def test_weights_that_do_not_fit_exactly_are_refused(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "student.safetensors")
    with pytest.raises(RuntimeError, match=r"scale|more"):
        measure.load(folder)


def test_a_network_that_finds_nonsense_is_refused(folder: Path, image: Path) -> None:
    save_file({"scale": torch.full((3,), float("nan"))}, folder / "student.safetensors")
    with pytest.raises(RuntimeError, match="not finite"):
        measure.main([str(folder), "--images", str(image)])
