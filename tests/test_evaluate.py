"""Networks side by side: figures worked out by hand, those of torchmetrics, and the command."""

import csv
import json
import shutil
import weakref
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from kdcache.stages import train_student, train_teacher
from torch import Tensor

from kdcache.analysis import cost, evaluated_network, evaluation, evaluation_inputs
from kdcache.analysis.evaluated_network import EvaluatedNetwork, Forward
from kdcache.analysis.evaluation import Evaluation, EvaluationReport, evaluate_networks
from kdcache.analysis.evaluation_inputs import EvaluationInputs, load_evaluation_inputs
from kdcache.analysis.metrics import Predictions, find_mistakes, measure_agreement, measure_calibration, measure_quality
from kdcache.analysis.summary import summarize_runs
from kdcache.cards import Rendering
from kdcache.choices import ModelSize
from kdcache.cli import cli
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.datasets import Dataset, Split
from kdcache.datasets.pictures import Pictures
from kdcache.datasets.sources import Files
from kdcache.errors import KdcacheError, UsageError
from kdcache.models import checkpoint
from kdcache.models.predictor import Predictor
from kdcache.report.evaluation_charts import draw_confusion
from kdcache.report.evaluation_tables import EVALUATION_FORMATS, evaluation_tables
from kdcache.report.page import render_page
from kdcache.report.text_formats import TEXT_FORMATS
from kdcache.run.folder import FinishedRun
from tests.reference import golden, tensor
from tests.run_files import change_config
from tests.samples import CLASSES

# Six images of three classes; the teacher and the student predict these classes with this confidence.
LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
TEACHER = torch.tensor([0, 0, 1, 1, 1, 2])
STUDENT = torch.tensor([0, 1, 1, 1, 0, 1])
CONFIDENCE = torch.tensor([0.96, 0.5, 0.51, 0.7, 0.69, 0.97])


READ = Pictures.read


def predictions(classes: Tensor) -> Predictions:
    known = torch.tensor([True, False, True, True, True, False])
    return Predictions(classes, CONFIDENCE, known, torch.full((6,), 0.5), torch.arange(6.0))


def test_quality_by_hand() -> None:
    found = measure_quality(predictions(STUDENT), LABELS, 4)
    assert [(each.count, each.total) for each in (found.top1, found.top5)] == [(2, 6), (4, 6)]
    assert [(each.count, each.total) for each in found.by_class] == [(1, 3), (1, 2), (0, 1), (0, 0)]
    assert found.mean_over_classes == pytest.approx((100 / 3 + 50 + 0) / 3)  # the class without images does not count
    assert found.confusion == ((0, 1, 2), (0, 0, 1), (1, 0, 1), (1, 1, 1), (2, 1, 1))
    assert found.top1.interval == pytest.approx((9.677, 70.001), abs=1e-3)  # Wilson's for 2 of 6
    assert found.loss == 0.5


def test_agreement_by_hand() -> None:
    found = measure_agreement(predictions(TEACHER), predictions(STUDENT), LABELS, 4)
    shares = (found.same, found.teacher_alone_correct, found.student_alone_correct, found.both_wrong)
    assert [(each.count, each.total) for each in shares] == [(3, 6), (3, 6), (0, 6), (0, 6)]
    assert found.pairs == ((0, 1, 1), (1, 0, 1), (2, 1, 1))
    assert found.divergence == 2.5  # the student's, not the teacher's


def test_calibration_by_hand() -> None:
    found = measure_calibration(CONFIDENCE, STUDENT == LABELS, bins=5)
    # 0.4 to 0.6: mean confidence 0.505, none of 2 correct; 0.6 to 0.8: 0.695, 1 of 2; 0.8 to 1: 0.965, 1 of 2.
    assert [bin.images for bin in found.bins] == [0, 0, 2, 2, 2]
    assert found.bins[1].accuracy is found.bins[1].confidence is None
    assert [bin.confidence for bin in found.bins[2:]] == pytest.approx([0.505, 0.695, 0.965])
    assert [bin.accuracy for bin in found.bins[2:]] == [0, 0.5, 0.5]
    assert found.error == pytest.approx(100 * (0.505 + 0.195 + 0.465) / 3)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MIN_SECONDS", 0)
        patch.setattr(cost, "MIN_FORWARDS", 2)
        patch.setattr(cost, "size_of", lambda body, image: ModelSize(len([*body.parameters()]), image.numel()))
        yield


def test_the_worst_mistakes_come_first() -> None:
    losses = torch.tensor([9.0, 1, 3, 8, 2, 3])
    found = find_mistakes(predictions(STUDENT)._replace(losses=losses), LABELS, predictions(TEACHER), limit=3)
    assert [(each.place, each.label, each.loss) for each in found] == [(2, 0, 3), (5, 2, 3), (4, 1, 2)]
    assert [(each.said.predicted, each.teacher and each.teacher.predicted) for each in found] == [
        (1, 1),
        (1, 2),
        (0, 1),
    ]
    assert found[0].said.confidence == pytest.approx(0.51)


def test_the_lowest_class_comes_first() -> None:
    quality = measure_quality(predictions(STUDENT), LABELS, 4)
    costs = cost.Cost(None, 5, "float32", "cpu", 3, (cost.Timing(1, 9, 2, 1, 3), cost.Timing(32, 9, 2, 1, 3)))
    one = Evaluation("run", Path(), None, "resnet8", 32, quality, costs, None, None, (), torch.empty(0), ())
    report = EvaluationReport("made", "test", 6, tuple("abcd"), (one,))
    tables = {table.header[:2]: table.rows for table in evaluation_tables(report)}
    assert tables["network", "top-1"][0][5] == "0.0 % (c)"
    assert [row[0] for row in tables["class", "images"]] == ["c", "a", "b"]  # d has no images


def test_a_drawn_matrix_has_the_classes_that_are_confused_most() -> None:
    labels = torch.arange(60).repeat(3)
    classes = torch.where(labels < 10, labels + 20, labels)
    quality = measure_quality(Predictions(classes, *(torch.ones(180) for _ in range(4))), labels, 60)
    drawn = draw_confusion(
        Evaluation("n" * 60, Path(), None, "", 32, quality, *[None] * 3, (), torch.empty(0), ()), [*map(str, range(60))]
    )
    (axes,) = drawn.axes
    shown = [text.get_text() for text in axes.get_xticklabels()]
    assert shown == [str(label) for label in (*range(10), *range(20, 30))]
    assert axes.images[0].get_array()[0].tolist() == [0] * 10 + [100] + [0] * 9  # class 0 is taken for class 20


def test_figures_equal_those_of_torchmetrics() -> None:
    student, teacher = tensor(30, (400, 7), 3), tensor(31, (400, 7), 4)
    labels, expected = torch.arange(400) * 5 % 7, golden("metrics")
    for logits, every in ((student, 3), (teacher, 2)):
        rows = torch.arange(0, 400, every)
        logits[rows, labels[rows]] += 4
    made = {"student": Predictions.of(student, labels, teacher), "teacher": Predictions.of(teacher, labels)}
    for name, own in made.items():
        quality, wanted = measure_quality(own, labels, 7), expected[name]
        assert (quality.top1.percent, quality.top5.percent, quality.mean_over_classes, quality.calibration.error) == (
            pytest.approx([100 * wanted[key] for key in ("top1", "top5", "mean_over_classes", "ece_15")], abs=1e-4)
        )
        assert [each.percent for each in quality.by_class] == pytest.approx([100 * each for each in wanted["by_class"]])
        cells = {(pair.first, pair.second): pair.images for pair in quality.confusion}
        assert [[cells.get((row, column), 0) for column in range(7)] for row in range(7)] == wanted["confusion"]
        assert quality.loss == pytest.approx(wanted["cross_entropy"])
    agreement = measure_agreement(made["teacher"], made["student"], labels, 7)
    assert agreement.divergence == pytest.approx(expected["kl"])
    assert agreement.same.percent == pytest.approx(100 * expected["same_class"])


def test_a_teacher_on_another_device_is_moved() -> None:
    logits = torch.zeros(2, 3)
    moved = []

    class Elsewhere:
        def to(self, device: torch.device) -> Tensor:
            moved.append(device)
            return logits

    Predictions.of(logits, torch.tensor([0, 1]), Elsewhere())  # type: ignore[arg-type]
    assert moved == [logits.device]


def test_time_is_that_of_an_image_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = count(start=-cost.WARM_UP_FORWARDS)
    monkeypatch.setattr(cost, "MIN_FORWARDS", 7)
    monkeypatch.setattr(cost, "_wall_milliseconds", lambda forward, images: float(next(measured)))
    found = cost.measure_speed(lambda images: None, torch.zeros(2, 3, 8, 8))
    assert found == (2, 7, 1.5, 0.75, 2.25)  # 0 to 6 ms for two images


def test_each_picture_is_decoded_once_for_networks_of_all_sizes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(Pictures, "read", lambda own, picture: read.append(picture) or READ(own, picture))
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 5)
    files = Files.of(pictures / "val" / "bright", [f"{number}.png".encode() for number in range(8)])
    networks = []
    for side in (32, 40):
        split = Split(None, torch.zeros(8, dtype=torch.long), Pictures(files, Rendering(side, side)))

        def logits(images: Tensor, side: int = side) -> Tensor:
            assert images.shape[2:] == (side, side)
            return torch.zeros(len(images), 2)

        facts = (str(side), tmp_path / f"{side}", "", split, torch.device("cpu"), "float32")
        networks.append(EvaluatedNetwork(*facts, lambda logits=logits: Forward(logits, None)))
        networks[-1].file.touch()
    report = evaluate_networks(EvaluationInputs(tuple(networks), "made", "test", ("bright", "dark"), ()))
    assert sorted(read) == [*range(8)]
    assert [one.quality.top1.total for one in report.evaluations] == [8, 8]


@pytest.mark.parametrize("in_memory", [1, 2])
def test_few_networks_are_in_memory_at_once_and_students_are_compared_all_the_same(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "BATCH_SIZE", 4)
    images, loaded = torch.arange(10 * 12).view(10, 3, 2, 2).byte(), weakref.WeakSet[Any]()
    most, done = [], []

    class Logits:
        def __init__(self, weight: float) -> None:
            self.weight = weight
            loaded.add(self)

        def __call__(self, images: Tensor) -> Tensor:
            most.append(len(loaded))
            return torch.stack([images.float().mean((1, 2, 3)) % 7, torch.full((len(images),), self.weight)], 1)

    networks = []
    for weight in (1.0, 2.0, 3.0, 4.0):  # a teacher and its three students
        file = tmp_path / str(weight)
        file.touch()
        facts = (str(weight), file, "", Split(images, torch.arange(10) % 2), torch.device("cpu"), "float32")
        load = lambda weight=weight: Forward(Logits(weight), None)  # noqa: E731
        networks.append(EvaluatedNetwork(*facts, load, teacher=None if weight == 1 else networks[0].key))
    inputs = EvaluationInputs(tuple(networks), "made", "test", ("a", "b"), ())
    together = evaluate_networks(inputs).evaluations
    assert max(most) == 4
    most.clear()
    monkeypatch.setattr(evaluation, "MAX_NETWORKS", in_memory)
    apart = evaluate_networks(inputs, lambda *counts: done.append(counts)).evaluations
    assert max(most) == in_memory
    assert done[-1] == (10 * 4 // in_memory, 10 * 4 // in_memory)
    for one, other in zip(together, apart, strict=True):
        assert (one.quality, one.agreement, one.mistakes) == (other.quality, other.agreement, other.mistakes)
    assert [one.agreement is None for one in apart] == [True, False, False, False]


@pytest.fixture(scope="module")
def student(small: dict[str, object], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("student") / "student"
    return train_student(StudentConfig.load(**small, teacher=teacher, cache="off", out=out)).path


@pytest.fixture(scope="module")
def report(student: Path, quick: None) -> EvaluationReport:
    return evaluate_networks(load_evaluation_inputs([str(student)], device="cpu"))


def evaluate(*words: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", *map(str, words), "--device", "cpu"])


def refused(*words: object) -> str:
    error = evaluate(*words).exception
    assert isinstance(error, UsageError)
    return str(error)


def by_json(*words: object) -> list[dict[str, Any]]:
    result = evaluate(*words, "--format", "json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)["networks"]
    return found


def test_a_student_beside_its_teacher(teacher: Path, student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    take = Split.take
    monkeypatch.setattr(Split, "take", lambda split, samples: taken.append(len(samples)) or take(split, samples))
    of_teacher, of_student = by_json(student)
    assert taken[:3] == [90, 30, 30]  # what is read into memory, and one pass for both networks
    assert max(taken[3:]) <= 12  # the worst mistakes
    for found, run in ((of_teacher, teacher), (of_student, student)):
        summary = json.loads((run / "summary.json").read_text())
        assert found["name"] == str(run)
        assert found["top1"]["percent"] == pytest.approx(summary["last_top1"])
        assert found["bytes"] == (run / "model.safetensors").stat().st_size
        assert found["multiply_adds"] == 3 * 32 * 32  # those of one image
        assert sum(images for *_, images in found["confusion"]) == found["top1"]["of"] == 30
        assert [each["batch_size"] for each in found["milliseconds_per_image"]] == [1, 32]
    assert of_teacher["agreement"] is None
    agreement = of_student["agreement"]
    assert agreement["teacher"] == str(teacher)
    assert agreement["mean_kl_nats"] > 0
    assert sum(images for *_, images in agreement["disagreements"]) == 30 - agreement["same_class"]["count"]


def test_all_formats_agree(report: EvaluationReport, student: Path) -> None:
    of_student = json.loads(EVALUATION_FORMATS["json"](report))["networks"][1]
    lines = [*csv.DictReader(StringIO(EVALUATION_FORMATS["csv"](report)))]
    own = [line for line in lines if line["network"] == str(student)]
    by_class = {line["class_name"]: float(line["value"]) for line in own if line["figure"] == "class_percent"}
    assert by_class == dict(zip(CLASSES, [each["percent"] for each in of_student["by_class"]], strict=True))
    cells = [line for line in own if line["figure"] == "predicted"]
    assert [int(line["count"]) for line in cells] == [images for *_, images in of_student["confusion"]]
    text = "\n".join(" ".join(row) for table in evaluation_tables(report) for row in table.rows)
    for shown in (EVALUATION_FORMATS["markdown"](report), text):
        assert f"{of_student['top1']['percent']:.2f} %" in shown
        assert f"{min(by_class.values()):.1f} % (" in shown
        assert f"{of_student['agreement']['mean_kl_nats']:.4f}" in shown


def test_exported_files_stand_beside_their_run(
    teacher: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = checkpoint.load(teacher / "model.safetensors").eval()
    stated = checkpoint.metadata(teacher / "model.safetensors")

    def load_predictor(file: Path) -> Predictor:
        facts = stated if file.name == "export.onnx" else {**stated, "num_classes": 2, "class_names": ["a", "b"]}
        described = checkpoint.describe(file, facts)
        return Predictor(file, described, lambda images: network(images).softmax(1))

    for module in (evaluation_inputs, evaluated_network):
        monkeypatch.setattr(module, "load_predictor", load_predictor)
    run = tmp_path / "student"
    shutil.copytree(student, run)
    for name in ("export.onnx", "other.onnx"):
        (run / name).write_bytes(b"stands for an exported file")
    result = evaluate(run, "--format", "json")
    of_teacher, _, exported = json.loads(result.stdout)["networks"]
    assert (exported["name"], exported["bytes"], exported["parameters"]) == (str(run / "export.onnx"), 27, None)
    assert exported["confusion"] == of_teacher["confusion"]
    assert exported["agreement"]["same_class"]["count"] == 30
    assert exported["agreement"]["mean_kl_nats"] == pytest.approx(0, abs=1e-6)
    assert "other.onnx: number of classes: expected 3" in result.stderr
    (run / "bundle").mkdir()
    (run / "bundle" / "export.onnx").touch()
    assert [one["name"] for one in by_json(run)[2:]] == [str(run / "bundle" / "export.onnx"), str(run / "export.onnx")]
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "export.onnx").touch()
    assert [one["name"] for one in by_json(tmp_path / "phone", teacher)] == [
        str(teacher),
        str(tmp_path / "phone" / "export.onnx"),
    ]


def test_pictures_are_written(student: Path, report: EvaluationReport, tmp_path: Path, pictures: Path) -> None:
    result = evaluate(student, "--out", tmp_path / "out", "--format", "csv")
    assert result.stdout.startswith("network,")
    numbered = [f"{name}-{number}.png" for name in ("confusion", "mistakes") for number in (1, 2)]
    assert {"evaluation.json", "calibration.png", *numbered} == {path.name for path in (tmp_path / "out").iterdir()}
    of_student = json.loads((tmp_path / "out" / "evaluation.json").read_text())["networks"][1]
    assert of_student["confusion"] == [[*pair] for pair in report.evaluations[1].quality.confusion]
    for mistake in of_student["worst_mistakes"]:
        assert Path(mistake["picture"]).parent == pictures / "val" / CLASSES[mistake["label"]]
        assert mistake["said"][0] != mistake["label"]


def test_a_report_shows_the_networks_side_by_side(student: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(student, bad)
    (bad / "model.safetensors").write_bytes(b"cut short")
    summary = summarize_runs([student, bad], samples=0, device="cpu", evaluates=True)
    assert [line for line in summary.missing if "evaluation" in line and "bad" in line]  # and the others are there
    (report,) = summary.evaluations
    of_student = report.evaluations[1]
    page = render_page(summary)
    for shown in (page, TEXT_FORMATS["markdown"](summary)):
        assert f"{of_student.quality.top1.percent:.2f} %" in shown
    assert page.count("Which share of the images of each class") == 2 * 2  # a caption and a description for each
    assert page.count("<img ") == sum(len(one.mistakes) for one in report.evaluations) > 0
    assert "Image of bright; says: " in page or "Image of dark; says: " in page or "Image of striped; says: " in page
    (document,) = json.loads(TEXT_FORMATS["json"](summary))["evaluations"]
    assert document["networks"][1]["top1"]["count"] == of_student.quality.top1.count
    result = CliRunner().invoke(cli, ["report", str(student), "--evaluate", "--format", "csv"])
    assert isinstance(result.exception, UsageError)


def test_a_student_without_its_teacher_is_evaluated_alone(student: Path, tmp_path: Path) -> None:
    moved, other = tmp_path / "runs" / "moved", tmp_path / "other"
    shutil.copytree(student, moved)
    change_config(moved / "config.toml", lambda text: text.replace("teacher = ", 'teacher = "/nowhere" # '))
    (tmp_path / "runs" / "young").mkdir()
    shutil.copy(moved / "config.toml", tmp_path / "runs" / "young")
    result = evaluate(tmp_path / "runs", "--format", "json")
    (found,) = json.loads(result.stdout)["networks"]
    assert found["agreement"] is None
    assert "agreement of" in result.stderr
    assert "/nowhere" in result.stderr
    assert "young: expected a finished run" in result.stderr
    shutil.copytree(student, other)
    change_config(moved / "config.toml", lambda text: text.replace("/nowhere", str(other)))
    assert "got another one" in evaluate(moved).stderr


def test_a_teacher_trained_on_the_held_out_images_is_left_out(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out, load = tmp_path / "student", evaluation_inputs.run_images
    shutil.copytree(student, held_out)
    change_config(held_out / "config.toml", lambda text: f"val_fraction = 0.5\n{text}")

    def run_images(run: FinishedRun, *places: Any) -> tuple[Dataset, Any]:
        images, rest = load(FinishedRun(student) if run.path == held_out else run, *places)
        return replace(images, val=images.test if run.path == held_out else None), rest

    monkeypatch.setattr(evaluation_inputs, "run_images", run_images)
    found = load_evaluation_inputs([str(held_out)], "val", device="cpu")
    assert [one.name for one in found.networks] == [str(held_out)]
    (line,) = found.problems
    assert line.startswith(f"agreement of {held_out} with its teacher: --split val")
    with pytest.raises(UsageError, match="a file in the folder of its run"):
        load_evaluation_inputs([str(held_out), "shipped"], "val", device="cpu")


def test_a_network_that_diverged_is_left_out(pictures: Path, tmp_path: Path) -> None:
    files = Files.of(pictures / "val" / "bright", [b"0.png", b"1.png"])
    split = Split(None, torch.zeros(2, dtype=torch.long), Pictures(files, Rendering(32, 32)))
    facts = ("resnet8", split, torch.device("cpu"), "float32")
    networks = []
    for name, value in (("good", 0.0), ("bad", -torch.inf)):
        (tmp_path / name).touch()
        forward = Forward(lambda images, value=value: torch.full((len(images), 2), value), None)
        networks.append(EvaluatedNetwork(name, tmp_path / name, *facts, lambda forward=forward: forward))
    found = evaluate_networks(EvaluationInputs(tuple(networks), "made", "test", ("bright", "dark"), ()))
    assert [one.name for one in found.evaluations] == ["good"]
    assert found.problems == (f"logits of {networks[1].file}: expected finite numbers, got others",)
    with pytest.raises(KdcacheError, match="expected finite numbers"):
        evaluate_networks(EvaluationInputs((networks[1],), "made", "test", ("bright", "dark"), ()))


def test_other_images_must_have_the_same_classes(student: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "more")
    (tmp_path / "more" / "val" / "bright" / "0.png").unlink()
    assert by_json(student, "--dataset", f"folder:{tmp_path / 'more'}")[0]["top1"]["of"] == 29
    other = tmp_path / "other"
    shutil.copytree(student, other)
    change_config(other / "config.toml", lambda text: text.replace(f"folder:{pictures}", f"folder:{tmp_path / 'more'}"))
    assert f"images of {other}: expected those of the first run" in refused(student, other)
    for split in ("train", "val"):
        (tmp_path / "more" / split / "dark").rename(tmp_path / "more" / split / "aaa")
    message = refused(student, "--dataset", f"folder:{tmp_path / 'more'}")
    assert "student/model.safetensors: class 1: expected 'bright', as in the data" in message


def test_other_splits(student: Path) -> None:
    assert by_json(student, "--split", "train")[0]["top1"]["of"] == 90
    assert "expected runs that held out" in refused(student, "--split", "val")
    assert "expected a finished run" in refused("nowhere")


def test_networks_of_other_images_are_not_put_side_by_side(student: Path) -> None:
    message = refused(student, "shipped")
    assert "number of classes: expected 3" in message


def test_padded_networks_of_two_sizes_stand_side_by_side(
    small: dict[str, object], teacher: Path, tmp_path: Path
) -> None:
    settings = {**small, "image_size": 40, "seed": 9}
    larger = train_teacher(TeacherConfig.load(**settings, out=tmp_path / "larger")).path
    found = by_json(teacher, larger)
    assert [one["image_size"] for one in found] == [32, 40]
    for one, run in zip(found, (teacher, larger), strict=True):
        assert one["top1"]["percent"] == pytest.approx(FinishedRun(run).summary["last_top1"])


def test_each_row_says_how_it_was_computed(report: EvaluationReport) -> None:
    (header,) = {table.header for table in evaluation_tables(report) if "computed in" in table.header}
    (rows,) = [table.rows for table in evaluation_tables(report) if "computed in" in table.header]
    column = header.index("computed in")
    assert {row[column] for row in rows} == {f"float32 on cpu, threads: {torch.get_num_threads()}"}
    networks = json.loads(EVALUATION_FORMATS["json"](report))["networks"]
    assert {(one["device"], one["threads"]) for one in networks} == {("cpu", torch.get_num_threads())}


def test_files_have_no_best_epoch(teacher: Path) -> None:
    message = refused(teacher / "model.safetensors", "shipped", "--best")
    assert message == "--best: expected a run folder, got files alone, which have no epochs"
