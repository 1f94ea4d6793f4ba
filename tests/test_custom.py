"""The user's own code: the examples of docs/custom.md, what is refused, and that stored logits follow the code."""

import csv
import importlib
import linecache
import re
import shlex
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kdcache.stages import train_student, train_teacher

import kdcache
from kdcache import extensions
from kdcache.cards import CUSTOM_DATASETS
from kdcache.choices import CRITERIA, CUSTOM_MODELS, LOSSES, MIXES
from kdcache.cli import COMMANDS
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.config.augs import parse_mix
from kdcache.errors import KdcacheError, UsageError
from kdcache.losses import LossContext, Objective, ViewOutputs, build_losses, kl_divergence
from kdcache.run.folder import FinishedRun, RunFolder
from kdcache.selection import Candidates, score
from kdcache.views.custom import identified
from kdcache.views.mixes import Mix, find_mix
from tests.answers import stored
from tests.processes import outcome
from tests.samples import refusal
from tests.test_received_runs import call

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "custom.md").read_text("utf-8")
for command in COMMANDS.values():  # help pages list what is registered when they are imported
    importlib.import_module(f"kdcache.cli.{command.module}")

REGISTRIES: list[extensions.Registry[Any]] = [LOSSES, MIXES, CRITERIA, CUSTOM_MODELS, CUSTOM_DATASETS]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, in which modules are written; what they register is forgotten."""
    before = [(registry, dict(registry), dict(registry._own)) for registry in REGISTRIES]
    modules = set(sys.modules)
    monkeypatch.setattr(extensions, "_trusted", set())
    monkeypatch.setattr(extensions, "_registered", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file that changes within a second would be taken for old
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for registry, known, own in before:
        registry.clear()
        registry.update(known)
        registry._own = own
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def forget(name: str) -> None:
    """Forget a module, so that it is read again as a new process would."""
    del sys.modules[name]
    for registry in REGISTRIES:
        for key in [key for key, info in registry.items() if f"python:{name}:" in getattr(info, "implementation", "")]:
            del registry[key]
        registry._own.clear()
    extensions._registered.clear()


# The page


def write_examples(folder: Path, pictures: Path) -> None:
    for name, code in re.findall(r"```python\n# (my_\w+\.py)\n(.*?)```", PAGE, re.DOTALL):
        (folder / name).write_text(code)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "class", "part"))
        for path in sorted(pictures.glob("*/*/*.png")):
            writer.writerow((path, path.parent.name, {"train": "train", "val": "test"}[path.parts[-3]]))


@pytest.fixture
def examples(folder: Path, pictures: Path) -> Path:
    write_examples(folder, pictures)
    return folder


EXAMPLES = [shlex.split(line)[1:] for line in re.findall(r"```sh\n(kdcache .*?)\n```", PAGE)]


@pytest.mark.parametrize("words", EXAMPLES, ids=[words[2] for words in EXAMPLES])
def test_the_example_of_the_page_is_trained_with(
    words: list[str], examples: Path, small: dict[str, object], teacher: Path
) -> None:
    settings = {**small, "out": "run"} | ({"teacher": teacher, "store": "own.zarr"} if "student" in words[0] else {})
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    given = {word for word in words if word.startswith("--")}
    code, text = call(*words, *(option for option in options if option.partition("=")[0] not in given))
    assert code == 0, text
    config = FinishedRun(examples / "run").config
    assert config.code.keys() == set(extensions.addresses_in(" ".join(words)))
    if "--loss" in words:
        assert all(0 < line.train_loss < 1e3 for line in FinishedRun(examples / "run").read_metrics())


def test_the_page_has_an_example_of_each_kind() -> None:
    named = [setting for words in EXAMPLES for setting in extensions.KINDS if f"--{setting} python:" in " ".join(words)]
    assert named == ["loss", "aug", "pick", "dataset", "model"]


def test_a_registered_name_is_known_at_once_and_recorded_as_its_address(
    examples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(examples)
    with pytest.raises(UsageError, match=r"--loss: expected a sum of distinct terms of ce, kd, .*got huber\+kd"):
        StudentConfig.load(loss="huber+kd")
    modules = {name: importlib.import_module(f"my_{name}") for name in ("aug", "data", "loss", "net", "pick")}
    kdcache.register_model("tiny")(modules["net"].tiny)
    kdcache.register_dataset("listed")(modules["data"].listed)
    config = StudentConfig.load(
        **{"loss": "huber:0.5+kd", "aug": "cutmix+stripes", "pick": "teacher-margin", "model": "tiny"}, dataset="listed"
    )
    assert (config.loss, config.aug) == ("python:my_loss:Huber:0.5+kd", "cutmix+python:my_aug:stripes")
    assert list(config.code) == [
        *("python:my_data:listed", "python:my_net:tiny", "python:my_loss:Huber"),
        *("python:my_aug:stripes", "python:my_pick:teacher_margin"),
    ]
    assert config.loss_weights == {"ce": pytest.approx(0.1), "python:my_loss:Huber": 0.5, "kd": 0.9}
    assert config.augmentation.mixes == ("cutmix", "python:my_aug:stripes")
    assert "huber" in refusal(lambda: StudentConfig.load(loss="hubber"))  # listed among the losses
    assert len(kdcache.load_dataset("listed", image_size=32).train) == 90


def test_names_that_are_taken_or_have_no_address_are_refused() -> None:
    def local() -> None: ...

    for decorator, name, message in (
        (kdcache.register_dataset, "cifar10", "name for kdcache.register_dataset: expected one that is not taken"),
        (kdcache.register_model, "resnet8", "one that is not taken, got resnet8"),
        (kdcache.register_model, "a:b", "expected letters, digits, - and _, a letter first, got a:b"),
        (kdcache.register_model, "local", "expected a function or class at the top level of a module"),
    ):
        assert message in refusal(lambda decorator=decorator, name=name: decorator(name)(local))  # type: ignore[misc]
    taken: dict[str, Callable[[str], Callable[[object], object]]] = {
        "kd": lambda name: kdcache.register_loss(name, reads="logits"),
        "standard": lambda name: kdcache.register_aug(name, takes_partner=True),
        "cutmix": lambda name: kdcache.register_aug(name, takes_partner=True),
        "random": lambda name: kdcache.register_pick(name, teacher=True, student=True),
    }
    for name, register in taken.items():
        with pytest.raises(UsageError, match="not taken"):
            register(name)(refusal)


# Refusals

BROKEN = """
import kdcache
import numpy as np
import torch
from kdcache.losses import DistillLoss
from kdcache.views.mixes import Mix

def undeclared(*arguments): ...
def fails(*arguments, **keywords): raise ValueError("on purpose")
def draw(words, size): return words[:, :1].astype(np.int16), np.ones(len(words), np.float32)

@kdcache.register_loss("not-a-loss", reads="logits")
class NotALoss:
    def __init__(self, context): ...

@kdcache.register_loss("no-student", reads="logits", acts_on="each")
class NoStudent(DistillLoss):
    def forward(self, views): return views.teacher.square().mean()

@kdcache.register_loss("no-mixed", reads="logits", acts_on="pairs")
class NoMixed(DistillLoss):
    def forward(self, x, mixed): return (x.student - mixed.teacher).square().mean()

@kdcache.register_loss("divergence-alone", reads="logits", acts_on="each")
class DivergenceAlone(DistillLoss):
    def forward(self, views): return views.kl.mean()

@kdcache.register_loss("per-row", reads="logits")
class PerRow(DistillLoss):
    def forward(self, views): return views.student.mean(1)

@kdcache.register_loss("shapes", reads="logits")
class Shapes(DistillLoss):
    def forward(self, views): return (views.student @ views.teacher).mean()

@kdcache.register_pick("per-class", teacher=True, student=False)
def per_class(candidates): return candidates.teacher

def mix(apply, draw=draw): return lambda: Mix(draw, apply)

@kdcache.register_aug("random-pixels", takes_partner=False)
def random_pixels(): return Mix(draw, lambda x, other, rows: torch.randint(0, 256, x.shape, dtype=torch.uint8))

@kdcache.register_aug("random-rows", takes_partner=False)
def random_rows(): return Mix(lambda words, size: (np.random.rand(len(words), 1), draw(words, size)[1]), draw)

@kdcache.register_aug("of-the-batch", takes_partner=False)
def of_the_batch(): return Mix(draw, lambda x, other, rows: x.flip(0))

@kdcache.register_aug("in-place", takes_partner=False)
def in_place(): return Mix(draw, lambda x, other, rows: x.zero_())

@kdcache.register_aug("half-mixed", takes_partner=True)
def half_mixed(): return Mix(draw, lambda x, other, rows: 255 - x, probability=0.5)

@kdcache.register_aug("wrong-type", takes_partner=False)
def wrong_type(): return Mix(draw, lambda x, other, rows: x.float())

@kdcache.register_aug("no-views", takes_partner=False)
def no_views(): return Mix(draw, lambda x, other, rows: None)

@kdcache.register_aug("no-arrays", takes_partner=False)
def no_arrays(): return Mix(lambda words, size: ([0] * len(words), draw(words, size)[1]), None)

@kdcache.register_pick("not-a-number", teacher=False, student=False)
def not_a_number(candidates): return candidates.random_score.log() * 0

def arrays(train, test, **more): return kdcache.ImageData(("a", "b"), train, test, **more)
PAIR = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3), [0, 1, 0, 1]
def scale_of_bytes(): return arrays(PAIR, PAIR, mean=(127.5, 127.5, 127.5))
def no_spread(): return arrays(PAIR, PAIR, std=(0.2, 0.2, 0))
def one_channel(): return arrays(PAIR, PAIR, std=np.array([0.5]))
def ragged(): return arrays((PAIR[0], [0, [1, 2], 0, 1]), PAIR)
def flipped(): return arrays((PAIR[0][:, :, ::-1], np.array(PAIR[1])[::-1]), PAIR, mean=np.full(3, 0.25))
def images(count): return np.zeros((count, 8, 8, 3), np.uint8)
def no_pair(): return arrays(images(4), images(4))
def labels_of_others(): return arrays((images(4), [0, 1, 2, 1]), (images(2), [0, 1]))
def no_files(): return arrays((["none.png", "neither.png"], [0, 1]), (["none.png"], [0]))
def mixed_forms(): return arrays((images(4), [0, 1, 0, 1]), (["none.png"], [0]))
"""


@pytest.fixture
def broken(folder: Path) -> Path:
    (folder / "broken.py").write_text(BROKEN)
    return folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "python:nowhere:L"}, "--loss: could not import loss python:nowhere:L: got ModuleNotFoundError"),
        ({"pick": "python:broken:nothing"}, "--pick: could not import criterion .* has no attribute 'nothing'"),
        ({"loss": "python:broken"}, "--loss: name of a loss: expected python:MODULE:CALLABLE, got python:broken"),
        ({"loss": "python:broken:undeclared"}, "expected code with the decorator kdcache.register_loss, got code with"),
        ({"pick": "python:broken:PerRow"}, "expected code with the decorator kdcache.register_pick, got code without"),
        ({"loss": "python:broken:PerRow:heavy"}, "--loss: expected a sum of distinct terms"),
        ({"loss": "python:broken:PerRow+python:broken:PerRow"}, "--loss: expected a sum of distinct terms"),
        ({"loss": "python:broken:PerRow", "aug": "cutmix"}, "--aug: .*python:broken:PerRow is not trained on x'"),
        ({"loss": "ce+kd:0", "aug": "cutmix"}, "--aug: .* Add one of kd, .*, or give it a weight above 0"),
        ({"loss": "python:broken:NoMixed", "aug": "cutmix"}, "--aug: .*compares x with an x' of the same image"),
        ({"loss": "ce", "aug": "cutmix", "pick": "python:broken:per_class"}, "--loss ce trains without a teacher"),
    ],
)
def test_a_config_refuses_in_one_line(broken: Path, settings: dict[str, str], message: str) -> None:
    options = {"aug": "cutmix", "loss": "kd", **settings} if "pick" in settings else settings
    assert re.search(message, refusal(lambda: StudentConfig.load(**options)))


def test_problems_of_code_are_reported_with_the_others(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        StudentConfig.load(loss="python:nowhere:L", aug="python:nowhere:a", epochs=0)
    assert [line.partition(":")[0] for line in caught.value.problems] == ["--epochs", "--loss", "--aug"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random_pixels", "expected the same x' for the same x and parameters"),
        ("random_rows", "expected the same parameters for the same words"),
        ("of_the_batch", "expected x' that do not depend on the other images of the batch"),
        ("in_place", "expected x that stay as they are"),
        ("half_mixed", "expected x' that are x where x is its own partner"),
        ("no_views", "augmentation python:broken:no_views: its views: expected a tensor, got NoneType"),
        ("no_arrays", "no_arrays: what it draws: expected two arrays of NumPy, got list and ndarray"),
        ("wrong_type", "its views: expected uint8 of shape .*, got float32"),
        ("undeclared", "expected code with the decorator kdcache.register_aug"),
    ],
)
def test_an_augmentation_that_is_not_pure_is_refused(broken: Path, name: str, message: str) -> None:
    extensions.trust(f"python:broken:{name}")
    assert re.search(message, refusal(lambda: identified(f"python:broken:{name}", 32), KdcacheError))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "dataset python:broken:fails failed: got ValueError: on purpose"),
        ("undeclared", "expected a kdcache.ImageData, got NoneType"),
        ("no_pair", "train of dataset .*: expected images and labels"),
        ("labels_of_others", "labels of train of dataset .*: expected 0 to 1, got 0 to 2"),
        ("no_files", "could not read .*none.png: got No such file"),
        ("no_spread", "std of dataset .*: expected three numbers from 0 to 1, none of them 0, got"),
        ("scale_of_bytes", "mean of dataset .*: expected three numbers from 0 to 1, got .*Divide"),
        ("one_channel", "std of dataset .*: expected three numbers from 0 to 1, none of them 0, got"),
        ("ragged", "labels of train of dataset .*: expected N integers, got ValueError"),
        ("mixed_forms", "expected arrays or paths in both parts, got one of each"),
    ],
)
def test_a_dataset_of_another_form_is_refused(broken: Path, name: str, message: str) -> None:
    assert re.search(
        f"the code of dataset python:broken:{name} is not trusted",
        refusal(lambda: kdcache.load_dataset(f"python:broken:{name}", image_size=32)),
    )
    extensions.trust(f"python:broken:{name}")
    assert re.search(message, refusal(lambda: kdcache.load_dataset(f"python:broken:{name}", crop="padded")))


def test_arrays_may_be_flipped(broken: Path) -> None:
    extensions.trust("python:broken:flipped")
    data = kdcache.load_dataset("python:broken:flipped")
    assert (data.train.images == data.test.images.flip(3)).all()
    assert (data.train.labels.tolist(), data.card.mean) == ([1, 0, 1, 0], (0.25,) * 3)


def test_a_criterion_that_gives_no_number_is_refused(broken: Path) -> None:
    extensions.trust("python:broken:not_a_number")
    scores, labels = torch.tensor([0.5, 0.0, 0.25]), torch.zeros(3, dtype=torch.int64)
    candidates = Candidates(None, None, None, labels, labels, scores, scores)
    message = refusal(lambda: score("python:broken:not_a_number", candidates), KdcacheError)
    assert message == "criterion python:broken:not_a_number: what it returns: expected numbers, got NaN"


LABELS = torch.arange(8)


def step(name: str, mixing: bool) -> None:
    """Compute the loss of a step."""
    name = f"python:broken:{name}"
    extensions.trust(name)
    (student, teacher), lam = torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(0)), torch.full((8,), 0.7)
    objective = Objective({name: 1.0}, build_losses([name], LossContext((), (), LABELS, 4.0, 0)))
    logits = student.requires_grad_()
    kl = kl_divergence(logits, teacher, 4.0)  # of all rows, as in a step: it does not depend on the parts
    x, mixed = (
        ViewOutputs(logits[part], teacher[part], kl[part], LABELS[part], LABELS[part], 0, *of_mixed)
        for part, of_mixed in ((slice(4), ()), (slice(4, 8), (LABELS[4:], lam[4:])))
    )
    objective(x, mixed if mixing else None)


@pytest.mark.parametrize(
    ("name", "mixing", "message"),
    [
        ("NotALoss", False, "loss python:broken:NotALoss: expected a kdcache.losses.DistillLoss, got NotALoss"),
        ("NoStudent", False, "expected a loss that depends on the student's outputs for x, got one that does not"),
        ("NoMixed", True, "expected a loss that depends on the student's outputs for x', got one that does not"),
        ("PerRow", False, r"expected a tensor of shape \(\), got one of shape \(4,\)"),
        ("Shapes", False, "loss python:broken:Shapes failed: got RuntimeError: mat1 and mat2"),
    ],
)
def test_a_loss_that_trains_nothing_or_fails_is_named(broken: Path, name: str, mixing: bool, message: str) -> None:
    assert re.search(message, refusal(lambda: step(name, mixing), KdcacheError))


def test_a_loss_may_read_the_divergence_alone(broken: Path) -> None:
    step("DivergenceAlone", mixing=True)


# Trust, the store, resuming


def test_code_that_a_file_names_is_not_imported(folder: Path, small: dict[str, object], teacher: Path) -> None:
    (folder / "theirs.py").write_text("open('ran', 'w')\n")
    settings = {"loss": "python:theirs:L+kd", "aug": "python:theirs:a", "pick": "python:theirs:p"}
    quick = [f"--{name.replace('_', '-')}={value}" for name, value in {**small, "teacher": teacher}.items()]
    for name, value in {**settings, "dataset": "python:theirs:d"}.items():
        mixing = 'aug = "cutmix"\n' if name == "pick" else ""
        (folder / "theirs.toml").write_text(f'[student]\n{mixing}{name} = "{value}"\n')
        own = [option for option in quick if not option.startswith(("--dataset", "--image-size"))]
        words = own if name == "dataset" else quick
        code, text = call("student-train", "--config", "theirs.toml", "--out", "new", *words)
        assert (code, "add --trust python:theirs:" in text) == (2, True), text
    assert not (folder / "ran").exists()
    call("--trust", "python:theirs:L", "student-train", "--config", "theirs.toml", "--loss", "python:theirs:L", *quick)
    assert (folder / "ran").exists()  # named on the command line


def test_a_run_is_read_without_its_code(examples: Path, small: dict[str, object], teacher: Path) -> None:
    settings = {**small, "teacher": teacher, "store": "own.zarr", "out": examples / "run"}
    run = train_student(StudentConfig.load(**settings, loss="python:my_loss:Huber+kd", aug="python:my_aug:stripes"))
    (examples / "my_loss.py").write_text("open('ran', 'w')\n")
    forget("my_loss")
    extensions._trusted.clear()
    config = RunFolder(run.path).read_config()
    assert isinstance(config, StudentConfig)
    assert config.views == "python:my_aug:stripes"
    code, text = call("compare", run.path, "--", run.path)
    assert code == 0, text
    assert not (examples / "ran").exists()


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_logits_of_other_code_are_not_used_again(examples: Path, small: dict[str, object], teacher: Path) -> None:
    def train(aug: str = "python:my_aug:stripes") -> FinishedRun:
        return train_student(StudentConfig.load(**settings, aug=aug, overwrite=True))

    settings = {**small, "teacher": teacher, "store": "own.zarr", "out": examples / "run"}
    assert [train().summary["teacher_forwards"] for _ in range(2)] == [180, 0]
    forget("my_aug")
    change(examples / "my_aug.py", "% 4 == first", "% 5 == first")
    assert train().summary["teacher_forwards"] == 90  # x is stored
    code, text = call("cache", "info", teacher, "--store", "own.zarr")
    kinds = sorted(set(re.findall(r"python:my_aug:stripes,code=[0-9a-f]{16}-1", text)))
    assert (code, len(kinds)) == (0, 2)
    code, text = call("cache", "verify", teacher, "--store", "own.zarr", "--all", "--device", "cpu")
    assert code == 0, text
    assert [kind in text for kind in kinds].count(True) == 1
    assert parse_mix(kinds[0].removesuffix("-1"))[0] == "python:my_aug:stripes"


def test_the_digest_sees_the_source_and_what_it_computes(examples: Path) -> None:
    (examples / "my_helper.py").write_text("PERIOD = 4\n")
    change(examples / "my_aug.py", "import torch\n", "import torch\nfrom my_helper import PERIOD\n")
    change(examples / "my_aug.py", "% 4 == first", "% PERIOD == first")
    extensions.trust("python:my_aug:stripes")

    def digest() -> str:
        found = identified("python:my_aug:stripes", 32)
        forget("my_aug")
        return found

    first = digest()
    assert digest() == first
    (examples / "my_helper.py").write_text("PERIOD = 3\n")
    del sys.modules["my_helper"]
    other_helper = digest()
    change(examples / "my_aug.py", "Make every fourth row", "Make every third row")
    assert len({first, other_helper, digest()}) == 3


CELLS = (
    "PERIOD = 4",
    """def draw(words, size): return words[:, :1] % 4, np.ones(len(words), np.float32)
def make(x, other, rows): return x * (torch.arange(x.shape[2]) % PERIOD > 0)[:, None]""",
    """@kdcache.register_aug("cells", takes_partner=False)
def cells(): return Mix(draw, make)""",
)


def test_a_notebook_may_define_an_augmentation_again(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = types.ModuleType("notebook")
    vars(notebook).update(np=np, torch=torch, kdcache=kdcache, Mix=Mix)
    monkeypatch.setitem(sys.modules, "notebook", notebook)
    x = torch.ones(1, 3, 32, 32, dtype=torch.uint8)

    def run(*cells: str) -> str:
        for cell in cells:
            name = f"<cell {len(linecache.cache)}>"
            monkeypatch.setitem(linecache.cache, name, (len(cell), None, cell.splitlines(True), name))
            exec(compile(cell, name, "exec"), vars(notebook))
        return identified("python:notebook:cells", 32)

    def black(mix: str) -> int:
        return int((find_mix(mix).apply(x, x, np.zeros((1, 1)))[0, 0, :, 0] == 0).sum())

    first = run(*CELLS)
    assert (run(*CELLS), black(first)) == (first, 8)
    other_cell = run(CELLS[1].replace("% PERIOD > 0", "% 8 > 0"), CELLS[2])
    assert (black(first), black(other_cell)) == (8, 4)
    helper = run(CELLS[1].replace("% PERIOD > 0", "% 2 > 0"))  # and not the cell with the decorator
    assert (len({first, other_cell, helper}), black(helper)) == (3, 16)
    other_source = run(CELLS[1].replace("% PERIOD > 0", "% 2 >= 1"))
    assert len({helper, other_source}) == 2
    assert len({run(CELLS[1], f"PERIOD = {period}") for period in (2, 3, 4)}) == 3


MANY = """
import kdcache
import numpy as np
import torch
from functools import partial
from kdcache.views.mixes import Mix
from many_operations import add

def draw(words, size): return (words[:, :1] % 200).astype(np.int16), np.ones(len(words), np.float32)

@kdcache.register_aug("many", takes_partner=False)
def many(): return Mix(draw, partial(add))
"""


def test_the_digest_sees_operations_that_few_rows_draw(folder: Path) -> None:
    (folder / "my_many.py").write_text(MANY)
    operations = folder / "many_operations.py"
    operations.write_text(
        "from more_operations import STEPS\ndef add(x, other, rows): return x + STEPS[rows][..., None, None]\n"
    )
    (folder / "more_operations.py").write_text("import torch\nSTEPS = torch.arange(200, dtype=torch.uint8)\n")
    extensions.trust("python:my_many:many")
    found = []
    for path, text in (
        (folder / "more_operations.py", "STEPS[150] = 7\n"),
        (operations, "# Another comment\n"),
        (operations, ""),
    ):
        found.append(identified("python:my_many:many", 32))
        path.write_text(path.read_text() + text)
        for name in ("my_many", "many_operations", "more_operations"):
            forget(name)
    assert len(set(found)) == 3


def test_a_file_that_is_edited_counts_once_it_is_imported_again(examples: Path) -> None:
    extensions.trust("python:my_loss:Huber")
    before = extensions.source_digest("python:my_loss:Huber")
    change(examples / "my_loss.py", "Huber loss between", "The Huber loss between")
    assert extensions.source_digest("python:my_loss:Huber") == before
    importlib.reload(sys.modules["my_loss"])
    assert extensions.source_digest("python:my_loss:Huber") != before


def test_the_digest_of_a_partial_is_that_of_its_module(folder: Path) -> None:
    (folder / "their_net.py").write_text("def net(width, num_classes): ...\n")
    (folder / "my_partial.py").write_text(
        "from functools import partial\nimport their_net\nnet = partial(their_net.net, 4)\n"
    )
    extensions.trust("python:my_partial:net")
    found = [extensions.source_digest("python:my_partial:net")]
    for path, old, new in (("my_partial.py", "4", "8"), ("their_net.py", "width", "depth")):
        change(folder / path, old, new)
        for name in ("my_partial", "their_net"):
            del sys.modules[name]
        found.append(extensions.source_digest("python:my_partial:net"))
    assert len(set(found)) == 3


COUNTED = """
import kdcache
from kdcache.losses import DistillLoss
from torch import nn
CALLS_LEFT = 10**9

@kdcache.register_loss("counted", reads="logits", acts_on="each")
class Counted(DistillLoss):
    def __init__(self, context):
        super().__init__(context)
        self.layer = nn.Linear(3, 3)

    def forward(self, views):
        global CALLS_LEFT
        CALLS_LEFT -= 1
        assert CALLS_LEFT > 0
        return (self.layer(views.student) - views.teacher).square().mean()
"""


def test_a_run_resumes_to_the_bit_and_only_with_the_same_code(
    folder: Path, small: dict[str, object], teacher: Path
) -> None:
    (folder / "package").mkdir()
    (folder / "package" / "counted.py").write_text(COUNTED)
    name = "python:package.counted:Counted"  # the dots are not allowed in names of torch's modules
    options: dict[str, Any] = {**small, "epochs": 2, "teacher": teacher, "loss": f"{name}+kd", "cache": "off"}

    def train(out: str, **more: object) -> FinishedRun:
        return train_student(StudentConfig.load(**options, out=folder / out, **more))

    whole = train("whole")
    module = sys.modules["package.counted"]
    module.CALLS_LEFT = 5  # type: ignore[attr-defined]
    assert f"loss {name} failed: got AssertionError" in refusal(lambda: train("part"))
    module.CALLS_LEFT = 10**9  # type: ignore[attr-defined]
    change(folder / "package" / "counted.py", "10**9", "10**8")
    forget("package.counted")
    message = refusal(lambda: train("part", resume=True))
    assert re.search(f"code of {name}: expected .* Restore it as it was, or start another run", message)
    change(folder / "package" / "counted.py", "10**8", "10**9")
    forget("package.counted")
    assert outcome(train("part", resume=True).path) == outcome(whole.path)


def test_a_dataset_is_known_by_its_images(examples: Path, small: dict[str, object]) -> None:
    settings = {**small, "dataset": "python:my_data:listed", "out": examples / "teacher"}
    run = train_teacher(TeacherConfig.load(**settings))
    student = {**small, "dataset": "python:my_data:listed", "teacher": run.path, "out": examples / "run"}
    change(examples / "my_data.py", "The files", "All files")  # which changes no image
    assert train_student(StudentConfig.load(**student)).summary["cache_hits"] == 0
    repeated = train_student(StudentConfig.load(**{**student, "out": examples / "again"}))
    assert repeated.summary["teacher_forwards"] == 0
    extensions._trusted.clear()
    code, text = call("cache", "verify", run.path)  # the store names the dataset
    assert (code, "add --trust python:my_data:listed" in text) == (2, True), text
    change(examples / "images.csv", "/0.png,dark,train", "/0.png,bright,train")
    named = {"overwrite": True, "store": str(stored(run.path))}
    message = refusal(lambda: train_student(StudentConfig.load(**{**student, **named})))
    assert re.search("store .*: dataset: expected", message)


def test_a_study_passes_trust_on(examples: Path) -> None:
    from kdcache.study.planned import PlannedRun

    config = StudentConfig.load(loss="python:my_loss:Huber+kd", aug="python:my_aug:stripes")
    planned = PlannedRun(examples / "run", "student-train", config)
    trust = ("--trust", "python:my_loss:Huber", "--trust", "python:my_aug:stripes")
    assert planned.arguments[:5] == (*trust, "student-train")
