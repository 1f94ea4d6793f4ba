"""Networks on the Hugging Face Hub: pushed with a card, and taken from there as weights."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from kdcache import datasets
from kdcache.cli import cli
from kdcache.errors import KdcacheError
from kdcache.models import checkpoint
from kdcache.models.load import find_network
from kdcache.models.sources import locate_named
from tests.fake_hub import fake_hub
from tests.samples import refusal

library = pytest.importorskip("huggingface_hub")


def push(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["push", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_network_is_pushed_and_loaded_by_its_name(
    teacher: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = tmp_path / "shown"
    assert "README.md, config.json, model.safetensors" in push(teacher, "some/student", "--dry-run", shown)
    data = datasets.load(f"folder:{pictures}", image_size=32, crop="padded")
    with fake_hub(monkeypatch, tmp_path / "cache") as files:
        push(teacher, "hf-hub:some/student")
        assert files == {file.name: file.read_bytes() for file in shown.iterdir()}
        found = find_network("hf-hub:some/student", data)
    assert found.origin == {"weights": "hf-hub:some/student"}
    expected = checkpoint.load(teacher / "model.safetensors").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.network.state_dict().items())
    # What this machine has is taken without the network.
    monkeypatch.setattr(library, "HfApi", None)
    assert find_network("hf-hub:some/student", data).network.name == found.network.name
    card = (shown / "README.md").read_text()
    header = dict(line.split(": ", 1) for line in card.split("---\n")[1].splitlines())
    assert json.loads(header["library_name"]) == "kdcache"
    (index,) = json.loads(header["model-index"])
    assert index["results"][0]["metrics"][0]["value"] == json.loads((teacher / "summary.json").read_text())["last_top1"]
    assert str(tmp_path) not in card
    assert str(pictures) not in card
    assert json.loads((shown / "config.json").read_text())["class_names"] == list(data.class_names)


def test_weights_in_the_form_of_timm_name_their_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub(monkeypatch, tmp_path) as files:
        files |= {"pytorch_model.bin": b"weights", "config.json": b'{"architecture": "resnet18"}'}
        file, model = locate_named("hf-hub:some/student", None)
        assert (Path(file).read_bytes(), model) == (b"weights", "timm:resnet18")
        assert locate_named("hf-hub:some/student", "timm:resnet34") == (file, "timm:resnet34")
        files.clear()
        message = refusal(lambda: locate_named("hf-hub:some/other", None))
        assert "expected model.safetensors or pytorch_model.bin, got neither" in message
    assert locate_named("timm:resnet18.a1_in1k", None) == ("a1_in1k", "timm:resnet18")
    assert locate_named("timm:resnet18", "timm:resnet18") == ("pretrained", "timm:resnet18")
    assert "expected those of resnet8" in refusal(lambda: locate_named("timm:resnet18.a1_in1k", "resnet8"))


def test_what_is_not_there_is_said_in_one_line(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_hub(monkeypatch, tmp_path):
        pass  # no server any more
    message = refusal(lambda: locate_named("hf-hub:some/student", None), KdcacheError)
    assert message.startswith("could not download hf-hub:some/student: got ")
    assert "Without a network connection, copy the files" in message
    assert "Add --download" in refusal(lambda: locate_named("hf-hub:some/student", None, may_download=False))
    assert "as in hf-hub:timm/resnet18" in refusal(lambda: locate_named("hf-hub:a/b/c", None))
    assert "repository: expected ORG/NAME, got student" in refusal(lambda: push(teacher, "student"))
    with pytest.raises(KdcacheError, match=r"could not push to some/student: got .* log in with"):
        push(teacher, "some/student")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = refusal(lambda: locate_named("hf-hub:some/student", None))
    assert message.endswith("huggingface_hub is not installed. Run pip install 'kdcache[hf]'.")
