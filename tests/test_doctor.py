"""``kdcache doctor`` on machines with and without problems."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kdcache.stages import train_student, train_teacher

from kdcache import doctor, machine, self_test
from kdcache.config import StudentConfig
from kdcache.doctor import HINT, OK, PROBLEM, Finding, run_checks
from kdcache.machine import _is_training, other_trainings
from kdcache.run.folder import FinishedRun
from kdcache.self_test import TrainFunctions, training_checks
from tests.processes import kdcache

QUICK = ["versions", "threads", "memory", "disk", "datasets"]
TRAINING = ["devices", "precision", "self-test"]


@pytest.mark.parametrize("options", [[], ["--train", "--device", "cpu"]])
def test_a_machine_without_problems_gets_a_line_per_check_and_nothing_is_left(
    options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "datasets" / "pets" / "train").mkdir(parents=True)
    (tmp_path / "datasets" / "cifar-100-python").mkdir()
    done = kdcache("doctor", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    if options:
        assert "the same bits when repeated" in lines[7]
    else:
        assert "kdcache doctor --train" in lines.pop()
    assert [line.split(":")[0].split()[1] for line in lines] == [*QUICK, *(TRAINING if options else [])]
    assert {line.split()[0] for line in lines} <= {OK, HINT}
    assert "fashion-mini, cifar100, folder:datasets/pets" in lines[4]
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_a_machine_with_a_problem_exits_with_1(tmp_path: Path) -> None:
    done = kdcache("doctor", "--runs", "/proc/runs", cwd=tmp_path)
    assert done.returncode == 1
    assert "problem disk: " in done.stdout
    assert done.stderr.splitlines() == ["kdcache: this machine has problems with disk"]


def findings(recipes: TrainFunctions, tmp_path: Path, device: str, precision: str = "auto") -> dict[str, Finding]:
    checks = training_checks(recipes, tmp_path / "runs", device, precision)
    return {finding.check: finding for finding in run_checks(checks)}


def test_a_student_that_ignores_the_store_or_differs_is_a_problem(tmp_path: Path) -> None:
    def without_store(config: StudentConfig) -> FinishedRun:
        return train_student(config.model_copy(update={"cache": "off"}))

    def with_another_seed(config: StudentConfig) -> FinishedRun:
        seed = 1 if config.out is not None and config.out.name == "second" else 0
        return train_student(config.model_copy(update={"seed": seed, "view_seed": 0}))

    found = findings(TrainFunctions(train_teacher, without_store), tmp_path, "cpu", "float32")["self-test"]
    assert found.state == PROBLEM
    assert "384 teacher forwards in spite of the store" in found.text
    found = findings(TrainFunctions(train_teacher, with_another_seed), tmp_path, "cpu", "float32")["self-test"]
    assert found.state == PROBLEM
    assert found.text.endswith("the same run twice gave other bits")


def test_a_check_that_raises_is_a_problem(tmp_path: Path) -> None:
    found = findings(TrainFunctions(train_teacher, train_student), tmp_path, "mps")
    assert [found[name].state for name in TRAINING] == [OK, PROBLEM, PROBLEM]
    assert "--device" in found["precision"].text


def test_threads_are_compared_with_cores_and_load(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("cores", 4), ("_physical_cores", 4), ("busy_cores", 0.0), ("other_trainings", [])):
        monkeypatch.setattr(machine, name, lambda value=value: value)
    monkeypatch.setattr(doctor, "cores", machine.cores)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    found = doctor.check_threads()
    assert found.state == HINT
    assert "5 threads share 4 cores, which is slow: start with --threads 4" in found.text
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert doctor.check_threads().state == OK
    monkeypatch.setattr(machine, "busy_cores", lambda: 2.4)
    found = doctor.check_threads()
    assert found.state == HINT
    assert "Other programs use 2.4 of 4 cores: start with --threads 2" in found.text
    monkeypatch.setattr(machine, "other_trainings", lambda: [77])
    found = doctor.check_threads()
    each = "start each with --threads 2, or OMP_NUM_THREADS=2, or each is"
    assert f"Another training of kdcache runs on this machine (4 cores): {each}" in found.text
    monkeypatch.setattr(machine, "other_trainings", lambda: [77, 78, 79])
    found = doctor.check_threads()
    assert "3 other trainings of kdcache run on this machine (4 cores): start each with --threads 1" in found.text
    assert found.text.endswith("; processes 77, 78, 79")


def test_the_threads_are_those_that_torch_starts() -> None:
    code = (
        "import torch; from kdcache.machine import default_threads; print(torch.get_num_threads(), default_threads())"
    )
    cases = ({}, {"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "1,2"}, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"})
    for variables in cases:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        done = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **variables}, capture_output=True, text=True, check=True
        )
        threads, found = done.stdout.split(maxsplit=1)
        assert f"({threads}," in found, variables


def test_a_training_is_told_from_its_command_line() -> None:
    command = "kdcache student-train --aug standard"
    running = (command, f"/bin/python /bin/{command}", f"python -X -m {command}", "kdcache --debug cache fill")
    others = (f"timeout 5 {command}", f"python torchrun -m {command}", "kdcache cache info", "kdcache", "")
    assert [line for line in running if not _is_training(line.split())] == []
    assert [line for line in others if _is_training(line.split())] == []


def test_another_training_is_counted_once_with_its_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kdcache").write_text("import os, sys; os.fork(); os.write(1, b'up\\n'); sys.stdin.read()")
    command = [sys.executable, str(tmp_path / "kdcache"), "student-train"]
    all_processes = machine._training_processes
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        # Other tests start trainings at the same time.
        def own_processes() -> list[tuple[int, int]]:
            return [pair for pair in all_processes() if process.pid in pair]

        monkeypatch.setattr(machine, "_training_processes", own_processes)
        assert process.stdout is not None
        assert process.stdin is not None
        assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        assert len(own_processes()) == 2
        assert other_trainings() == [process.pid]
        process.stdin.close()
    assert other_trainings() == []


def test_the_precision_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"amx_bf16": True}, "bfloat16 on cpu, because the processor has amx_bf16"),
        ({}, "float32"),
    ]
    for capabilities, expected in cases:
        monkeypatch.setattr(self_test.torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        assert self_test.check_precision("cpu", "auto").text.startswith(expected)
    assert self_test.check_precision("cpu", "bfloat16").state == HINT  # it would be slow
    assert self_test.check_precision("cpu", "float32").state == OK
