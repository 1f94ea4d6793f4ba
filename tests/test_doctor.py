"""The doctor finds what is fit, and what is not."""

import os
from pathlib import Path
from typing import Any

import pytest
from kdcache.stages import train_student, train_teacher

from kdcache import doctor
from kdcache.config import StudentConfig
from kdcache.doctor import FAULT, HINT, WELL, Recipes, examine
from kdcache.machine import cores
from kdcache.run.folder import FinishedRun
from tests.processes import kdcache

RECIPES = Recipes(train_teacher, train_student)
ABOUT = ["versions", "devices", "precision", "threads", "memory", "disk", "datasets", "self-test"]


def test_a_fit_machine_gets_a_line_for_each_finding_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "pets" / "train").mkdir(parents=True)
    (tmp_path / "datasets" / "cifar-100-python").mkdir()
    done = kdcache("doctor", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0].split()[1] for line in lines] == ABOUT
    assert {line.split()[0] for line in lines} <= {WELL, HINT}
    assert "fashion-mini, cifar100, folder:datasets/pets" in lines[6]
    assert "the same bits when repeated" in lines[7]
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_a_machine_that_is_not_fit_is_told_and_exits_with_1(tmp_path: Path) -> None:
    done = kdcache("doctor", "--device", "cpu", "--runs", "/proc/runs", cwd=tmp_path)
    assert done.returncode == 1
    assert "problem disk: " in done.stdout
    assert done.stderr.splitlines() == ["kdcache: this machine is not fit: got disk"]


def findings(recipes: Recipes, tmp_path: Path, **options: Any) -> dict[str, doctor.Finding]:
    return {finding.about: finding for finding in examine(recipes, runs=tmp_path / "runs", **options)}


def test_a_student_that_forgets_or_differs_is_a_fault(tmp_path: Path) -> None:
    def forgetful(config: StudentConfig) -> FinishedRun:
        return train_student(config.model_copy(update={"cache": "off"}))

    def restless(config: StudentConfig) -> FinishedRun:
        seed = 1 if config.out is not None and config.out.name == "again" else 0
        return train_student(config.model_copy(update={"seed": seed, "view_seed": 0}))

    found = findings(Recipes(train_teacher, forgetful), tmp_path, device="cpu", precision="float32")["self-test"]
    assert found.state == FAULT
    assert "384 questions asked twice" in found.text
    found = findings(Recipes(train_teacher, restless), tmp_path, device="cpu", precision="float32")["self-test"]
    assert found.state == FAULT
    assert found.text.endswith("the same run twice has other bits")


def test_what_is_raised_is_a_finding(tmp_path: Path) -> None:
    found = findings(RECIPES, tmp_path, device="mps")
    assert [found[about].state for about in ("precision", "self-test")] == [FAULT, FAULT]
    assert "--device" in found["precision"].text
    assert found["versions"].state == WELL


def test_the_threads_and_the_arithmetic_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: cores() + 1)
    found = doctor.threads()
    assert found.state == HINT
    assert f"set OMP_NUM_THREADS={cores()}" in found.text
    monkeypatch.setattr(doctor.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(doctor, "cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.5, 0.0, 0.0))
    assert "others use 3.5: OMP_NUM_THREADS=2 for each of two" in doctor.threads().text
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert doctor.threads().state == WELL

    for capabilities, expected in (
        ({"amx_bf16": True}, "bfloat16 on cpu, because the processor has amx_bf16"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(doctor.torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert doctor.arithmetic("cpu", "auto").text.startswith(expected)
    assert doctor.arithmetic("cpu", "bfloat16").state == HINT  # it would be slow
    assert doctor.arithmetic("cpu", "float32").state == WELL
