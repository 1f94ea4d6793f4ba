"""Several teachers as one: the mean of their logits, each from a store of its own."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from kdcache.stages import precompute_answers, train_student, train_teacher

import kdcache
from kdcache.analysis.evaluation_inputs import load_evaluation_inputs
from kdcache.analysis.inputs import load_analysis_inputs
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Split
from kdcache.models import checkpoint
from kdcache.run.folder import FinishedRun
from tests.samples import refusal
from tests.stubs import stub

Settings = dict[str, Any]


@pytest.fixture(scope="module")
def second(small: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("second") / "run"
    return train_teacher(TeacherConfig.load(**{**small, "seed": 10, "out": out})).path


def student(small: Settings, out: Path, **settings: Any) -> FinishedRun:
    return train_student(StudentConfig.load(**{**small, "aug": "cutmix", "seed": 5, "out": out, **settings}))


def tensors(run: FinishedRun) -> dict[str, torch.Tensor]:
    return checkpoint.load(run.network_file).state_dict()


def same(one: FinishedRun, other: FinishedRun) -> bool:
    return all(torch.equal(value, tensors(other)[name]) for name, value in tensors(one).items())


@pytest.mark.parametrize("temperature", [None, 4.0])
def test_the_mean_of_logits_or_of_probabilities(noise: Split, temperature: float | None, tmp_path: Path) -> None:
    views = kdcache.Views.of_images(noise, "cutmix", batch_size=150)
    batch = next(views.epoch(0))
    each = [kdcache.open_teacher(stub(seed), views).logits(batch) for seed in range(2)]
    options: Settings = {"weights": (3, 1), "temperature": temperature}
    ensemble = kdcache.open_ensemble([stub(0), stub(1)], views, tmp_path, **options)
    found = ensemble.logits(batch)
    if temperature is None:
        torch.testing.assert_close(found, 0.75 * each[0] + 0.25 * each[1])
    else:
        mean = sum(share * (one / 4).softmax(1) for share, one in zip((0.75, 0.25), each, strict=True))
        torch.testing.assert_close((found / 4).softmax(1), mean)
    assert ensemble.pop_counts().as_metrics() == {"teacher_forwards": 600, "cache_hits": 0}
    again = kdcache.open_ensemble([stub(1), stub(0)], views, tmp_path)
    again.logits(batch)
    assert again.pop_counts().as_metrics() == {"teacher_forwards": 0, "cache_hits": 600}


def test_probabilities_are_averaged_at_any_temperature(noise: Split) -> None:
    views = kdcache.Views.of_images(noise)
    batch = next(views.epoch(0))
    found = kdcache.open_ensemble([stub(0), stub(1)], views, temperature=1e-4).logits(batch)
    assert found.isfinite().all()


def test_teachers_with_stored_logits_need_no_forward(
    small: Settings, teacher: Path, second: Path, tmp_path: Path
) -> None:
    alone = [student(small, tmp_path / one.parent.name, teacher=one) for one in (teacher, second)]
    both = student(small, tmp_path / "both", teacher=teacher, further_teachers=[second])
    weighted = student(
        small,
        tmp_path / "weighted",
        teacher=teacher,
        further_teachers=[second],
        teacher_weights="1,3",
        teacher_mean="probabilities",
    )
    assert both.summary["teacher_forwards"] == weighted.summary["teacher_forwards"] == 0
    assert both.summary["cache_hits"] == 2 * alone[0].summary["cache_hits"] + 2 * alone[0].summary["teacher_forwards"]
    runs = (*alone, both, weighted)
    assert not any(same(one, other) for place, one in enumerate(runs) for other in runs[:place])


def test_a_teacher_beside_its_own_copy_teaches_the_same(small: Settings, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "copy")
    alone = student(small, tmp_path / "alone", teacher=teacher)
    both = student(small, tmp_path / "both", teacher=teacher, further_teachers=[tmp_path / "copy"])
    assert same(alone, both)


def test_a_run_resumes_with_the_same_teachers(
    small: Settings, teacher: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"teacher": teacher, "further_teachers": [second], "epochs": 2}
    whole = student(small, tmp_path / "whole", **two)
    from kdcache.run.writer import RunWriter

    def stop(self: RunWriter, **record: Any) -> FinishedRun:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunWriter, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            student(small, tmp_path / "part", **{**two, "epochs": 1})
    resumed = {"resume": True, **two}
    shutil.copytree(teacher, tmp_path / "copy")
    for others in ([tmp_path / "copy"], []):
        other = {**resumed, "further_teachers": others}
        assert "teacher" in refusal(lambda other=other: student(small, tmp_path / "part", **other))
    found = student(small, tmp_path / "part", resume=True, epochs=2)
    assert same(whole, found)


def test_what_several_teachers_cannot_do_is_refused(
    small: Settings, teacher: Path, second: Path, tmp_path: Path
) -> None:
    two = {**small, "teacher": teacher, "further_teachers": [second], "out": tmp_path / "run"}
    cases: dict[str, Settings] = {
        "--teacher: expected run folders that differ": {"further_teachers": [teacher]},
        "which does not learn from logits alone": {"loss": "crd+kd"},
        "--teacher-weights: expected 2 numbers": {"teacher_weights": "1,2,3"},
        "--teacher-weights: expected none with one --teacher": {"further_teachers": [], "teacher_weights": "1"},
        "--teacher-mean: expected logits with one --teacher": {"further_teachers": [], "teacher_mean": "probabilities"},
        "--teacher-mean: expected logits with --loss dkd": {"loss": "dkd", "teacher_mean": "probabilities"},
        "--store is for the logits of one teacher": {"store": str(tmp_path / "store")},
    }
    for message, settings in cases.items():
        assert message in refusal(lambda settings=settings: StudentConfig.load(**{**two, **settings})), message
    assert "expected one, got 2" in refusal(lambda: precompute_answers(StudentConfig.load(**two)))
    assert not (tmp_path / "run").exists()
    run = train_student(StudentConfig.load(**two))
    assert "teachers of" in refusal(lambda: load_analysis_inputs(str(run.path)))
    assert "agreement of" in " ".join(load_evaluation_inputs([str(run.path)]).problems)


def test_teachers_that_do_not_fit_together_are_refused(noise: Split, tmp_path: Path) -> None:
    views = kdcache.Views.of_images(noise)
    larger = kdcache.build_network("resnet8", num_classes=5, seed=0)
    message = refusal(lambda: kdcache.open_ensemble([stub(0), larger], views))
    assert message == "number of classes of the teachers: expected the same for all, got 4, 5"
    assert "expected 2 numbers above 0" in refusal(
        lambda: kdcache.open_ensemble([stub(0), stub(1)], views, weights=(1, 0))
    )
    for wrong in ({"weights": (1, float("inf"))}, {"temperature": 0.0}, {"temperature": float("nan")}):
        assert "above 0" in refusal(lambda wrong=wrong: kdcache.open_ensemble([stub(0), stub(1)], views, **wrong))
    for teachers in ([], "shipped"):
        assert "in a list" in refusal(lambda teachers=teachers: kdcache.open_ensemble(teachers, views))
    assert "store of several teachers" in refusal(lambda: kdcache.open_ensemble([stub(0)], views, "s3://bucket/store"))
