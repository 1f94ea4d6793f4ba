"""``kdcache cache`` and ``kdcache views`` as commands."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import zarr

from kdcache.answers.store import CLEAN, AnswerStore
from kdcache.answers.table import fill_missing
from tests.answers import stored
from tests.processes import Command, kdcache

SAMPLES = 90


def words(pictures: Path, teacher: Path, store: Path, *more: str) -> list[str]:
    given = f"--dataset folder:{pictures} --image-size 32 --teacher {teacher} --store {store}"
    return [*given.split(), *more]


def forwards(output: str) -> int:
    found = re.search(r"(\d+) of them computed now", output)
    assert found, output
    return int(found[1])


def test_the_plan_counts_what_happens(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    given = words(pictures, teacher, store, "--aug", "cutmix-pick", "--epochs", "3")
    plan = kdcache("cache", "plan", *given, "--students", "4", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    rows = {cells[1]: cells for line in plan.stdout.splitlines() if len(cells := line.replace("│", "|").split("|")) > 4}
    rows = {name.strip(): [cell.strip() for cell in cells] for name, cells in rows.items()}
    assert rows["off"][2:4] == [str(9 * SAMPLES), str(36 * SAMPLES)]
    assert rows["replay"][2:5] == [str(9 * SAMPLES), str(9 * SAMPLES), "4.00"]
    assert int(rows["standard"][2]) < 9 * SAMPLES
    assert not store.exists()

    fill = kdcache("cache", "fill", *given, "--cache", "replay", cwd=tmp_path)
    assert fill.returncode == 0, fill.stderr
    assert forwards(fill.stdout) == 9 * SAMPLES
    shutil.rmtree(store / "replay" / "seed-0" / "epoch-0001" / "cutmix-2" / "commits" / "c")
    again = kdcache("cache", "plan", *given, cwd=tmp_path)
    assert re.search(rf"off\s*│\s*{9 * SAMPLES}\s*│", again.stdout), again.stdout
    assert re.search(rf"replay\s*│\s*{SAMPLES}\s*│", again.stdout), again.stdout
    student = kdcache(
        "student-train", *given, *["--model", "resnet8", "--batch-size", "30", "--out", "run"], cwd=tmp_path
    )
    assert f"{SAMPLES} teacher forwards, {8 * SAMPLES} cache hits" in student.stdout, student.stderr


def test_info_verify_and_prune(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    given = words(pictures, teacher, store, "--aug", "cutmix-pick", "--epochs", "2")
    assert kdcache("cache", "fill", *given, cwd=tmp_path).returncode == 0

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return kdcache("cache", *more, str(teacher), "--store", str(store), cwd=tmp_path)

    info = run("info")
    parts = ("resnet8", "float16", "cutmix-1, view seed 0", "100 %")
    assert [part for part in parts if part not in info.stdout] == []
    sound = run("verify", "--all")
    assert sound.returncode == 0, sound.stderr
    assert f"intact: {6 * SAMPLES} views compared, max error 0, 0" in sound.stdout

    group = zarr.open_group(store, path="replay/seed-0/epoch-0001/cutmix-1", mode="r+")
    chunk = store / group.path / "logits" / "c" / "0" / "0"
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    damaged = run("verify", "--samples", "1")
    assert damaged.returncode == 1
    assert "1 damaged" in damaged.stderr
    assert "epoch-0001/cutmix-1 is damaged" in damaged.stderr

    commit = store / "replay" / "seed-0" / "epoch-0000" / "cutmix-2" / "commits"
    (commit / "c" / "0" / "0").write_bytes(b"")
    (store / "replay" / "seed-0" / "epoch-0000" / "standard" / "commits" / "zarr.json").unlink()
    worse = run("verify", "--samples", "1")
    assert worse.returncode == 1
    assert "3 damaged" in worse.stderr

    assert run("prune").returncode == 2
    assert "deleted 2 tables" in run("prune", "--kind", "cutmix-1").stdout
    kinds = ("cutmix-2", "standard")
    assert AnswerStore(store).table_paths() == [
        f"replay/seed-0/epoch-000{epoch}/{kind}" for epoch in (0, 1) for kind in kinds
    ]
    assert "deleted 2 tables" in run("prune", "--after-epoch", "1").stdout
    assert "deleted 2 tables" in run("prune", "--all").stdout
    assert run("verify").returncode == 0


def test_wrong_logits_with_correct_checksums_are_found(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    shutil.copytree(stored(teacher), store)
    table = AnswerStore(store).table(CLEAN)
    columns = table.read(0)
    assert columns is not None
    columns["logits"][7, 1] += 3
    shutil.rmtree(store / CLEAN)
    list(fill_missing([(AnswerStore(store).table(CLEAN), lambda span: columns)]))
    found = kdcache("cache", "verify", str(teacher), "--store", str(store), "--all", cwd=tmp_path)
    assert found.returncode == 1
    assert re.search(r"got 0 damaged and (3|2\.99|3\.0)", found.stderr), found.stderr


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("cache info nowhere", ["nowhere"]),
        ("cache info --store nowhere", ["a store that exists", "nowhere"]),
        ("cache verify", ["no finished teacher"]),
        ("cache prune --all", ["no finished teacher"]),
        ("cache fill --cache off", ["no finished teacher"]),
        ("cache fill --cache-limit much", ["--cache-limit", "much"]),
        ("cache plan --topk 10", ["--topk", "fewer than the 10", "10"]),
        ("student-train --topk 0", ["--topk", "0"]),
        ("student-train --cache some", ["--cache", "replay", "some"]),
        ("views --samples 65", ["--samples", "65"]),
    ],
)
def test_usage_errors_are_one_line_and_write_nothing(command: str, parts: list[str], tmp_path: Path) -> None:
    done = kdcache(*command.split(), cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert [part for part in parts if part not in line] == []
    assert list(tmp_path.iterdir()) == []


def test_a_fill_that_would_store_nothing_is_refused(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    given = words(pictures, teacher, tmp_path / "store.zarr", "--aug", "cutmix", "--epochs", "30")
    for more, part in (
        ("--cache off", "--cache: expected auto, standard or replay, which store logits of these views, got off"),
        ("--cache clean", "got clean"),
        ("--cache-limit 1kB", "expected at least"),
        ("--cache-limit 30kB", "Use --cache replay to store a part."),
    ):
        done = kdcache("cache", "fill", *given, *more.split(), cwd=tmp_path)
        assert done.returncode == 2
        assert part in done.stderr
        assert list(tmp_path.iterdir()) == []
    part = kdcache("cache", "fill", *given, "--cache", "replay", "--cache-limit", "30kB", cwd=tmp_path)
    assert part.returncode == 0, part.stderr
    assert re.search(rf"(\d+) of {60 * SAMPLES} views", part.stdout), part.stdout


def test_views_prints_rows_and_draws_them(tmp_path: Path) -> None:
    words = ["views", "--aug", "cutmix-pick", "--epoch", "3", "--samples", "4", "--out", "drawn.png"]
    done = kdcache(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "View seed 0, epoch 3" in done.stdout
    assert len([line for line in done.stdout.splitlines() if line.startswith("│ ")]) >= 4
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


def test_two_fills_at_once_share_the_work(pictures: Path, teacher: Path, tmp_path: Path) -> None:
    more = ("--aug", "cutmix-pick", "--epochs", "60")
    fills = [
        Command(("cache", "fill", *words(pictures, teacher, tmp_path / "store.zarr", *more)), tmp_path)
        for _ in range(2)
    ]
    counts = []
    for fill in fills:
        done = fill.wait()
        assert done.returncode == 0, done.stderr
        counts.append(forwards(done.stdout))
    assert sum(counts) == 180 * SAMPLES
