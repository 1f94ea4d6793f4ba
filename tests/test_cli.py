"""The command line in real processes: exit codes, output, and the files that it writes."""

import os
import platform
import re
import runpy
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.config.settings import GROUPS, SET_BY_PRESET
from tests.processes import Command, kdcache, without_advice

DOCS = Path(__file__).parents[1] / "docs"


def small(pictures: Path) -> list[str]:
    images = f"--dataset folder:{pictures} --image-size 32 --crop padded"
    words = f"{images} --model resnet8 --epochs 1 --batch-size 24 --device cpu"
    return words.split()


def test_the_page_of_the_command_line_is_up_to_date() -> None:
    written = (DOCS / "cli.md").read_text("utf-8")
    assert written == runpy.run_path(str(DOCS / "write_cli_pages.py"))["pages"]()


@pytest.mark.parametrize("width", [80, 120])
def test_help_of_a_training_is_in_groups_with_short_types(width: int) -> None:
    command = cli.get_command(click.Context(cli), "student-train")
    assert command is not None
    context = click.Context(command, terminal_width=width, max_content_width=width)
    lines = command.get_help(context).splitlines()
    headings = [line.removesuffix(" options:").lower() for line in lines if line.endswith("options:")]
    assert headings == list(GROUPS)
    assert all(len(line) <= width for line in lines)
    options = [line for line in lines if line.startswith("  -")]
    found = [re.fullmatch(r"  (?:-h, )?--[a-z-]+(?: / --no-[a-z-]+)?(?: (\S+))?(?:  .*)?", line) for line in options]
    types = {match[1] for match in found if match is not None and match[1]}
    assert None not in found
    assert {"INTEGER", "FLOAT", "PATH", "TEXT", "SIZE", "[error|skip]"} <= types
    assert all(len(name) <= 24 for name in types)


@pytest.mark.parametrize("words", [["--help"], ["student-train", "--help"], ["--version"], ["models"], ["doctor"]])
def test_help_and_quick_commands_import_no_torch(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom kdcache.cli import main\nsys.argv = ['kdcache', *sys.argv[1:]]\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept_for_reuse() -> None:
    code = (
        "import resource, sys\nfrom kdcache.cli import main\nsys.argv = ['kdcache', '--version']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "for _ in range(2):\n    bytearray(2**26)\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    once, twice = map(int, done.stdout.splitlines()[-2:])
    assert twice - once < 10, "64 MiB were allocated page by page again"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("student-train --aug cutnix", ["--aug", "cutmix-pick", "cutnix"]),
        ("student-train --dataset imagenette", ["--dataset", "cifar100", "imagenette"]),
        ("teacher-train --model resnet9", ["--model", "resnet8", "resnet9"]),
        ("student-train --alpha 1.5", ["--alpha", "1.5"]),
        ("student-train --alpha nan", ["--alpha", "nan"]),
        ("student-train --temperature 0", ["--temperature", "greater than 0"]),
        ("student-train --aug cutmix --batch-size 1", ["--batch-size", "2", "got 1"]),
        ("student-train --aug none --pick kld", ["--pick", "mixup, cutmix", "kld"]),
        ("student-train --aug cutmix+cutmix", ["--aug", "cutmix+mixup", "autoaugment", "standard"]),
        ("student-train --aug cutmix:2+mixup", ["--aug", "cutmix:2+mixup"]),
        ("student-train --aug standard --candidates 2", ["--candidates", "mixup, cutmix", "got 2"]),
        ("student-train --aug cutmix+mixup --candidates 1", ["--candidates", "each kind", "got 1"]),
        ("student-train --aug cutmix --keep 0.3", ["--keep", "--pick", "got 0.3"]),
        ("student-train --loss ce --aug cutmix-pick", ["--pick", "random", "--loss ce"]),
        ("student-train --config nowhere.toml", ["--config", "mini", "nowhere.toml"]),
        ("teacher-train --dataset folder:nowhere", ["nowhere"]),
        ("teacher-train --dataset cifar100", ["datasets", "--download"]),
        ("teacher-train --dataset imagenet", ["datasets", "kdcache data fetch imagenet"]),
        ("data fetch imagenet", ["imagenet", "ILSVRC2012_img_train.tar"]),
        ("student-train", ["no finished teacher", "kdcache teacher-train", "--teacher"]),
        ("student-train --teacher nowhere", ["nowhere"]),
        ("analyze disagreement", ["no finished teacher"]),
        ("analyze disagreement --teacher nowhere", ["nowhere"]),
        ("analyze disagreement --teacher torchvision:resnet34", ["--dataset"]),
        ("analyze teacher --aug cutnix --dataset fashion-mini", ["no finished teacher"]),
        ("analyze curves nowhere", ["nowhere", "a folder that a training wrote"]),
        ("report nowhere", ["nowhere", "a folder that a training wrote"]),
        ("teacher-train --no-such-option", ["--no-such-option"]),
        ("student-trian", ["No such command 'student-trian'. Did you mean student-train?"]),
        ("student-train --model ResNet20", ["got ResNet20. Did you mean resnet20?"]),
        ("student-train --loss crd:1+fitnets", ["got crd:1+fitnets. Did you mean fitnet?"]),
        ("student-train --aug cutmix_pick", ["got cutmix_pick. Did you mean cutmix-pick?"]),
        ("teacher-train --track mlfow", ["--track: expected one of", "Did you mean mlflow?"]),
        ("student-train --teacher shipped", ["kdcache teacher-load --weights shipped"]),
    ],
)
def test_wrong_use_prints_one_line_and_writes_nothing(words: str, parts: list[str], tmp_path: Path) -> None:
    done = kdcache(*words.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert [part for part in parts if part not in lines[0]] == []
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_a_config_are_reported_together_with_file_and_key(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(
        'batch = 3\nlr = -1\n[student]\ntemprature = 4\naug = "x"\n[teacher]\nalpha = 1\n'
    )
    done = kdcache("student-train", "--config", "own.toml", "--alpha", "7", cwd=tmp_path)
    assert done.returncode == 2
    for part in (
        "key batch",
        "key student.temprature",
        "key teacher.alpha",
        "own.toml: lr",
        "own.toml: aug",
        "--alpha",
    ):
        assert part in done.stderr
    assert len(done.stderr.splitlines()) == 6


def test_the_three_commands_of_the_readme(pictures: Path, tmp_path: Path) -> None:
    teacher = kdcache("teacher-train", *small(pictures), cwd=tmp_path)
    assert teacher.returncode == 0, teacher.stderr
    student = kdcache("student-train", "--aug", "cutmix-pick", *small(pictures), cwd=tmp_path)
    assert student.returncode == 0, student.stderr
    runs = {path.name.split("-")[0]: path for path in (tmp_path / "runs").iterdir()}
    assert "270 teacher forwards" in student.stdout  # x and two x' of 90 images
    assert student.stdout.rstrip().endswith(str(runs["student"].relative_to(tmp_path)))

    found = kdcache("analyze", "disagreement", "--samples", "100", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "52.1" in found.stdout
    assert (runs["teacher"] / "disagreement.png").stat().st_size > 1000

    again = kdcache("teacher-train", *small(pictures), "--out", str(runs["teacher"]), cwd=tmp_path)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr
    over = kdcache("teacher-train", *small(pictures), "--out", str(runs["teacher"]), "--overwrite", cwd=tmp_path)
    assert over.returncode == 0, over.stderr


def test_ctrl_c_prints_a_line_and_writes_no_summary(pictures: Path, tmp_path: Path) -> None:
    words = [*small(pictures), "--epochs", "100000", "--out", "run"]
    command = Command(("teacher-train", *words), tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not metrics.exists() and command.process.is_alive():
        time.sleep(0.05)
    assert command.process.pid is not None
    os.kill(command.process.pid, signal.SIGINT)
    done = command.wait(60)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    # A line that ends ^C on the terminal, the message, and an empty one.
    assert len(without_advice(done.stderr).split("\n")) <= 3
    assert not (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_an_image_that_cannot_be_decoded_is_named(pictures: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / "data" / split / name / "good.png")
    (tmp_path / "data" / "train" / "b" / "bad.png").write_bytes(b"no picture")
    done = kdcache("teacher-train", "--dataset", "folder:data", "--crop", "padded", cwd=tmp_path)
    assert done.returncode == 2
    assert "bad.png" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_help_has_the_value_of_each_preset() -> None:
    shown = " ".join(CliRunner().invoke(cli, ["student-train", "--help"]).output.split())
    for text in (
        "Optimizer. [default by preset: adamw (pictures), sgd (others)]",
        "Highest learning rate. [default by preset: 0.1 (imagenet), 0.001 (pictures), 0.05 (others)]",
        "in place of --epochs. [default by preset: 600 (pictures)]",
        "Passes over the training set. [default by preset: 20 (mini), 100 (imagenet), 240 (cifar100, tiny-imagenet)]",
        "the first beta of AdamW. [default: 0.9]",
        "Learning rate at the end of a cosine. [default: 0.0]",
        "Part of each label that is spread over all classes, in cross-entropy. [default: 0.0]",
    ):
        assert text in shown


def test_every_preset_has_the_settings_that_the_help_says_it_has() -> None:
    for preset in (DOCS.parent / "configs").glob("*.toml"):
        document = tomllib.loads(preset.read_text("utf-8"))
        for table in ("teacher", "student"):
            config = {"teacher": TeacherConfig, "student": StudentConfig}[table]
            fields: dict[str, Any] = config.model_fields
            by_preset = {name for name, field in fields.items() if field.json_schema_extra["shown"] == SET_BY_PRESET}
            assert len(by_preset) == 8
            loaded = config.load(preset)
            needed = by_preset - loaded.unused.keys() - {"epochs"} | {loaded.length.unit}  # a cosine has no milestones
            assert needed <= document.keys() | document[table].keys(), (preset.name, table)
        TeacherConfig.load(preset)
        StudentConfig.load(preset)
