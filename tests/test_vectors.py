"""Stored vectors: the logits that follow from them, losses that need no teacher forward, and answers that travel."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from kdcache.stages import precompute_answers, train_student
from torch import Tensor, nn

from kdcache import wrap_function
from kdcache.accuracy import evaluate
from kdcache.answers.cached_teacher import CachedTeacher
from kdcache.answers.encoding import Vectors
from kdcache.answers.head import LinearHead, read_head, write_head
from kdcache.answers.store import AnswerStore
from kdcache.answers.teacher import Teacher
from kdcache.answers.verify import verify
from kdcache.cli import cli
from kdcache.compute import Compute
from kdcache.config import StudentConfig
from kdcache.datasets import Split
from kdcache.errors import KdcacheError
from kdcache.extensions import trust
from kdcache.losses import ViewOutputs, embed_loss
from kdcache.losses.features import cc_loss, pkt_loss, rkd_loss
from kdcache.models import Network, build
from kdcache.run.answers import push_answers
from kdcache.run.find import stores_of
from kdcache.run.folder import FinishedRun
from tests import answers
from tests.processes import outcome
from tests.samples import refusal
from tests.stubs import stub
from tests.test_pulled_answers import added_by_tests
from tests.test_step import Bench

CPU = Compute(torch.device("cpu"), "float32")
NORMALIZATION = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def network(*last: nn.Module) -> Network:
    """A network that is traced for its vectors: 5 numbers for each image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, 5, 8, 8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            *(last or (nn.Linear(5, 4),)),
        )
        return Network(nn.Sequential(*layers), name="own", num_classes=4, image_size=32, **NORMALIZATION)


def without_vectors(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes), nn.LogSoftmax(1))


def error_bound(head: LinearHead, vectors: Tensor) -> Tensor:
    """The bound of `kdcache.answers.encoding.Vectors`, and the last rounding to float32."""
    weight, vectors = head.weight.double().abs(), vectors.double().abs()
    size = vectors @ weight.T
    return size * 2**-11 + weight.sum(1) * 2**-25 + (size + head.bias.double().abs()) * 2**-23


@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 300), scale=st.floats(-6, 3))
@settings(max_examples=30)
def test_logits_of_stored_vectors_are_within_the_stated_bound(seed: int, width: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(width, 7)
    layer.weight.data.normal_(generator=generator)
    head, encoding = LinearHead(layer, 64), Vectors("float16", width)
    vectors = 10**scale * torch.randn(70, width, generator=generator)
    found = head(encoding.decode(encoding.encode(vectors), 7))
    exact = vectors.double() @ head.weight.double().T + head.bias.double()
    assert ((found - exact).abs() <= error_bound(head, vectors)).all()


@pytest.mark.parametrize("build", [lambda: stub(0), network], ids=["kdcache", "traced"])
def test_logits_follow_from_vectors_in_whichever_batch(build: Any, noise: Split) -> None:
    views = answers.views(noise)
    batch = next(views.epoch(0))
    teacher = Teacher(build(), CPU)
    width = teacher.network.linear_head().in_features
    exact = CachedTeacher(teacher, views, encoding=Vectors("float32", width))
    logits, vectors, features = exact.outputs(batch)
    assert vectors is not None
    assert vectors.equal(teacher.network.with_features(batch.views)[1][-1]) or len(batch.views) % 64
    torch.testing.assert_close(logits, teacher(batch.views), rtol=1e-5, atol=1e-5)
    assert teacher.head(vectors[3:40]).equal(logits[3:40])
    assert exact.logits(batch, first=1).equal(logits[len(batch) :])
    assert not features
    half = CachedTeacher(teacher, views, encoding=Vectors("float16", width)).outputs(batch)
    assert ((half.logits - logits).abs() <= error_bound(teacher.head, vectors)).all()
    assert exact.pop_counts() == (len(batch.views) + 2 * len(batch), len(batch.views) + 2 * len(batch))


def test_logits_that_are_no_linear_function_of_a_vector_are_refused() -> None:
    linear = nn.Linear(5, 4)
    for last in ((linear, nn.LogSoftmax(1)), (linear, nn.Hardtanh(-9, 9)), (linear, nn.Linear(4, 4), nn.ReLU())):
        assert "logits of own: expected a linear layer of a vector" in refusal(network(*last).linear_head)
    assert network(nn.Dropout(0.5), linear, nn.Identity()).linear_head() is linear


VECTOR_LOSSES = [("crd+kd", "cutmix-pick"), ("rkd", "cutmix"), ("embed+pkt+cc+kd", "standard")]


@pytest.fixture(scope="module")
def copied(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher, with the store that its training filled, alone."""
    return shutil.copytree(teacher, tmp_path_factory.mktemp("vectors") / "teacher", ignore=added_by_tests(teacher))


@pytest.mark.parametrize(("loss", "aug"), VECTOR_LOSSES)
def test_a_second_student_asks_nothing_and_learns_what_it_would_online(
    loss: str, aug: str, small: dict[str, Any], copied: Path, tmp_path: Path
) -> None:
    def train(out: str, **more: Any) -> FinishedRun:
        own = {"loss": loss, "aug": aug, "teacher": copied, "epochs": 2, "view_seed": len(loss), "out": tmp_path / out}
        steps = {"lr": 1e-6}  # so small that differences of rounding do not grow
        return train_student(StudentConfig.load(**{**small, **own, **steps, **more}))

    first, second = train("first"), train("second")
    assert first.summary["teacher_forwards"] > 0
    assert second.summary["teacher_forwards"] == 0
    assert outcome(second.path)["network"] == outcome(first.path)["network"]
    online = train("online", cache="off", store_dtype="float32")
    assert online.summary["cache_hits"] == 0
    for line, other in zip(first.read_metrics(), online.read_metrics(), strict=True):
        assert line.loss_parts == pytest.approx(other.loss_parts, rel=2e-3)


@pytest.mark.parametrize("more", [{}, {"separate_forwards": True}])
def test_losses_read_both_networks_vectors_of_the_same_views(more: dict[str, Any], noise: Split) -> None:
    bench = Bench(noise, loss="rkd", aug="cutmix-pick", **more)
    seen: list[ViewOutputs] = []
    bench.step.objective.register_forward_pre_hook(lambda _, given: seen.extend(given))
    bench.step(bench.batch)
    assert [len(views.samples) for views in seen] == [32, 32]
    cached_teacher, student = bench.step.teacher, bench.student.linear_head()
    assert isinstance(cached_teacher, CachedTeacher)
    for views in seen:
        own, taught = views.vectors()
        torch.testing.assert_close(student(own), views.student, rtol=1e-4, atol=1e-5)
        assert views.teacher is not None
        assert cached_teacher.teacher.head(taught).equal(views.teacher)


def test_what_is_stored_is_what_the_plan_counted(small: dict[str, Any], copied: Path, tmp_path: Path) -> None:
    chosen = ("--dataset", small["dataset"], "--teacher", str(copied), "--crop", "padded", "--image-size", "32")
    options = (*chosen, "--aug", "cutmix", "--epochs", "2", "--view-seed", "77", "--loss", "rkd", "--threads", "1")
    store = tmp_path / "store"
    plan = CliRunner().invoke(cli, ["cache", "plan", *options[:-2], "--store", str(store)])
    assert plan.exit_code == 0, plan.output
    counted = dict(re.findall(r"(off|replay|auto)[^\d]+(?:\d+\D+){2}[\d.-]+\D+(\d+)", plan.output))
    assert "the vector of a view takes 128 bytes as vectors-float16; its logits would take 6" in plan.output
    filled = CliRunner().invoke(cli, ["cache", "fill", *options, "--store", str(store)])
    assert filled.exit_code == 0, filled.output
    assert "logits of 360 of 360 views" in filled.output
    opened = AnswerStore(store)
    assert (opened.encoding, opened.fingerprint["dtype"]) == (Vectors("float16", 64), "vectors-float16")
    columns = sum(file.stat().st_size for file in store.rglob("c/*/0") if "/commits/" not in str(file))
    assert columns - 4 * 4 - 2 * 4 == 4 * 90 * 128 + 3 * 65 * 4  # without zarr's checksum of each chunk
    assert 0 < opened.location.size() - int(counted["replay"]) < 4000  # metadata of the store
    verified = CliRunner().invoke(cli, ["cache", "verify", str(copied), "--store", str(store), "--all"])
    assert verified.exit_code == 0, verified.output
    assert "360 views compared, max error 0, 0 with another" in verified.output


def test_vectors_are_compared_where_their_logits_are_equal(noise: Split, tmp_path: Path) -> None:
    teacher = answers.teacher()
    store = answers.store(tmp_path / "store", teacher, noise, Vectors("float16", 8))
    write_head(store, teacher.head)
    vectors = teacher.vectors(noise.take(torch.arange(len(noise))))
    _, _, right = torch.linalg.svd(teacher.network.linear_head().weight)
    wrong = vectors + 3 * right[-1]  # which the last layer does not see
    store.table("clean").read_or_compute(0, lambda samples: {"vectors": wrong[samples.start : samples.stop].half()})
    (check,) = verify(store, teacher, noise, 4, None)
    assert check.max_error == pytest.approx(3 * right[-1].abs().max().item(), abs=0.02)
    assert check.argmax_changes == 0


def test_logits_and_vectors_have_stores_of_their_own(small: dict[str, Any], copied: Path, tmp_path: Path) -> None:
    before = len(stores_of(copied).open())
    own = {"teacher": copied, "epochs": 1, "view_seed": 5, "aug": "standard"}
    for form, forwards in (("logits", 90), ("vectors", 90), ("vectors", 0), ("auto", 0)):
        config = StudentConfig.load(**{**small, **own, "store_format": form, "out": tmp_path / f"{form}{forwards}"})
        assert train_student(config).summary["teacher_forwards"] == forwards
    names = {store.encoding.name for store in stores_of(copied).open()}
    assert names == {"float16", "vectors-float16"}
    assert len(stores_of(copied).open()) <= before + 1
    other = AnswerStore(next(one.location for one in stores_of(copied).open() if one.encoding.name == "float16"))
    config = StudentConfig.load(**{**small, **own, "loss": "rkd", "store": other.location.where})
    assert "dtype: expected vectors-float16, got float16" in refusal(lambda: precompute_answers(config))


def test_pulled_vectors_train_without_the_teacher(small: dict[str, Any], copied: Path, tmp_path: Path) -> None:
    own = {**small, "loss": "crd+kd", "aug": "cutmix-pick", "epochs": 2, "view_seed": 3}
    run = FinishedRun(copied)
    expected = train_student(StudentConfig.load(**own, teacher=copied, out=tmp_path / "at hand"))
    (store,) = (one for one in stores_of(copied).open() if isinstance(one.encoding, Vectors))
    push_answers(run, store, str(tmp_path / "answers"))
    shutil.rmtree(tmp_path / "at hand" / "checkpoints", ignore_errors=True)
    student = train_student(StudentConfig.load(**own, answers=str(tmp_path / "answers"), out=tmp_path / "pulled"))
    assert outcome(student.path)["network"] == outcome(expected.path)["network"]
    assert student.summary["teacher_forwards"] == 0
    shutil.rmtree(Path(store.location.where) / "head")
    with pytest.raises(KdcacheError, match="expected the last layer of the teacher, got a part or nothing"):
        push_answers(run, store, str(tmp_path / "again"))
    verified = CliRunner().invoke(cli, ["cache", "verify", str(copied), "--store", Path(store.location.where).name])
    assert verified.exit_code == 1
    shutil.rmtree(tmp_path / "answers" / "head")
    with pytest.raises(KdcacheError, match=r"head/.*zarr\.json"):
        train_student(StudentConfig.load(**own, answers=str(tmp_path / "answers"), out=tmp_path / "damaged"))


def test_a_damaged_last_layer_is_written_again(noise: Split, tmp_path: Path) -> None:
    teacher = answers.teacher()
    store = answers.store(tmp_path / "store", teacher, noise, Vectors("float16", 8))
    write_head(store, teacher.head)
    (file,) = (tmp_path / "store" / "head" / "weight").rglob("c/0/0")
    file.write_bytes(bytes(len(file.read_bytes())))
    with pytest.raises(KdcacheError, match="the last layer of the teacher"):
        read_head(AnswerStore(tmp_path / "store"))
    write_head(AnswerStore(tmp_path / "store"), teacher.head)
    assert read_head(AnswerStore(tmp_path / "store")).weight.equal(teacher.network.linear_head().weight)


@pytest.mark.parametrize(
    ("chosen", "part"),
    [
        ({"store_format": "vectors", "topk": 2}, "expected auto or logits with --topk"),
        ({"store_format": "logits", "loss": "rkd", "aug": "cutmix"}, "expected vectors with --loss rkd"),
        ({"topk": 2, "loss": "embed", "aug": "cutmix"}, "Leave --topk out."),
        ({"store_format": "features"}, "one of auto, logits, vectors"),
    ],
)
def test_formats_that_do_not_fit_are_refused(chosen: dict[str, Any], part: str) -> None:
    assert part in refusal(lambda: StudentConfig.load(**chosen))


@pytest.mark.parametrize(
    ("chosen", "keeps_vectors", "recomputes_x"),
    [
        ({"loss": "kd"}, False, False),
        ({"loss": "crd+kd", "aug": "cutmix"}, True, False),
        ({"loss": "crd+kd", "aug": "cutmix", "cache": "off"}, True, False),
        ({"loss": "crd+kd", "aug": "cutmix", "store_format": "logits"}, False, True),
        ({"loss": "crd+kd", "aug": "cutmix", "answers": "a"}, True, False),
        ({"loss": "crd+kd", "topk": 2}, False, True),
        ({"loss": "at+rkd"}, True, True),
        ({"loss": "kd", "store_format": "vectors"}, True, False),
    ],
)
def test_auto_keeps_vectors_where_a_loss_reads_them(
    chosen: dict[str, Any], keeps_vectors: bool, recomputes_x: bool
) -> None:
    config = StudentConfig.load(**chosen)
    assert (config.keeps_vectors, config.recomputes_x) == (keeps_vectors, recomputes_x)


@pytest.mark.parametrize("more", [{"cache": "off"}, {"cache_limit": 1}, {"cache": "standard"}])
def test_what_is_kept_does_not_change_the_student(
    more: dict[str, Any], small: dict[str, Any], copied: Path, tmp_path: Path
) -> None:
    own = {**small, "loss": "crd+kd", "aug": "cutmix", "teacher": copied, "view_seed": 21}
    kept, other = (
        train_student(StudentConfig.load(**own, **extra, out=tmp_path / name))
        for name, extra in (("kept", {}), ("other", more))
    )
    assert outcome(other.path)["network"] == outcome(kept.path)["network"]


def test_networks_without_vectors_are_refused_before_anything_is_written(
    small: dict[str, Any], copied: Path, tmp_path: Path
) -> None:
    function = wrap_function(lambda images: images.mean((2, 3)), fingerprint="mean", num_classes=3, image_size=32)
    assert "features of function:mean: expected a network of torch" in refusal(function.linear_head)
    before = {store.location.where for store in stores_of(copied).open()}
    model = "python:tests.test_vectors:without_vectors"
    trust(model)
    own = {
        **small,
        "loss": "embed",
        "teacher": copied,
        "model": model,
        "out": tmp_path / "run",
        "store_dtype": "float32",
    }
    assert "expected a linear layer of a vector" in refusal(lambda: train_student(StudentConfig.load(**own)))
    assert not (tmp_path / "run").exists()
    assert {store.location.where for store in stores_of(copied).open()} == before


def frozen_norm(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5), nn.BatchNorm1d(5).eval(), nn.Linear(5, num_classes))


def test_a_frozen_batch_norm_stays_so(noise: Split) -> None:
    model = "python:tests.test_vectors:frozen_norm"
    trust(model)
    own = build(model, num_classes=4, image_size=32, seed=0, **NORMALIZATION)
    (norm,) = (module for module in own.modules() if isinstance(module, nn.BatchNorm1d))
    before, heads = norm.running_mean.clone(), []
    for look in (own.linear_head, own.feature_shapes, lambda: evaluate(own, noise, CPU)):
        look()
        heads.append(norm.training)
    logits, _ = own.with_features(noise.take(torch.arange(8)))
    assert (own.training, norm.training, heads) == (True, False, [False] * 3)
    assert norm.running_mean.equal(before)
    assert logits.equal(own(noise.take(torch.arange(8))))


def test_the_head_is_checked_by_one_forward() -> None:
    own, forwards = network(), []
    own.body[0].register_forward_hook(lambda *_: forwards.append(1))
    head = own.linear_head()
    before = len(forwards)
    assert own.linear_head() is head
    assert len(forwards) == before


def test_the_distances_of_vectors() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert embed_loss(student, teacher).item() == pytest.approx(0.5)  # the same direction, and a right angle
    assert embed_loss(student, teacher, "mse").item() == pytest.approx((9 + 16 + 1 + 4) / 4)
    assert embed_loss(0.5 * student, teacher).item() == pytest.approx(0.5)


@pytest.mark.parametrize("loss", [rkd_loss, pkt_loss, cc_loss])
def test_a_single_row_has_no_relation(loss: Any) -> None:
    student = torch.tensor([[1.0, -2.0]], requires_grad=True)
    value = loss(student, torch.tensor([[0.5, 3.0]]))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None
    assert student.grad.isfinite().all()
