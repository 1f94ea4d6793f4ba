"""What a study consists of: read from a file, and spread out into runs, before anything is trained.

A *study* (``configs/studies``) names rows: a table's, or a figure's curves. A *setting* (``configs/settings``) names
pairs of networks and what all runs have in common. A run is a row with a pair and a seed. Its folder is named by what
it trains, so that the studies of a setting share what they have in common.
"""

import importlib.resources
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import UsageError, fault
from kdcache.study.claims import Claim

__all__ = ["STUDIES", "Pair", "Planned", "Row", "Setting", "Study", "read_study", "spread_out"]

STUDIES = (
    *("table1", "table2", "table3", "table4", "table5", "figure1", "figure3", "figure4", "figure5"),
    *("disagreement", "claims"),
)
"""Those that ship with kdcache; the files are checked against this list by the tests."""

Settings = dict[str, Any]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Part):
    """A teacher and a student, each as settings of its training; a teacher with ``weights`` is loaded instead."""

    name: str
    teacher: Settings
    student: Settings


class Row(_Part):
    """What is trained alike for every pair and seed: ``times`` the usual epochs, with these settings."""

    name: str
    kind: Literal["teacher", "student"] = "student"
    paper: str | None = None
    times: Annotated[int, Field(ge=1)] = 1
    train: Settings = {}


class Setting(_Part):
    """Where rows are trained: on what, for how long, with how many seeds, and which networks."""

    name: str
    seeds: Annotated[int, Field(ge=1)]
    train: Settings = {}
    student: Settings = {}
    pairs: tuple[Pair, ...]


class Study(_Part):
    """A table or figure: its rows, the settings of each profile, and what is claimed of them."""

    name: str
    title: str
    shows: Literal["table", "lengths", "ratios", "disagreement"] = "table"
    paper: str | None = None
    pairs: tuple[str, ...] = ()
    profiles: dict[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> "Study":
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("rows whose names differ")
        if strange := {name for claim in self.claims for test in claim.tests for name in test.of} - set(names):
            raise ValueError(f"claims about its rows, not about {sorted(strange)}")
        return self


@dataclass(frozen=True)
class Planned:
    """A run of a study.

    Attributes
    ----------
    path : Path
        Its folder.
    command : str
        Of the command line.
    options : dict
        Of that command: the settings.
    config : TrainingConfig
        What they come to.
    teacher : Planned or None
        The run that has to be finished before.
    """

    path: Path
    command: str
    options: Mapping[str, Any]
    config: TrainingConfig
    teacher: "Planned | None" = field(default=None, repr=False)

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """The command line, without the program's name."""
        words = [self.command]
        for name, value in self.options.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif isinstance(value, list | tuple):
                words += [option, ",".join(map(str, value))]
            elif value is not False:
                words += [option, str(value)]
        return tuple(words)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "summary.json").is_file()

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name


@dataclass(frozen=True)
class Cell:
    """The runs of a row and a pair, one for each seed."""

    setting: Setting
    row: Row
    pair: Pair
    runs: tuple[Planned, ...]


def read_study(name: str) -> Study:
    """Read a study that ships with kdcache, or one of the user's own.

    Parameters
    ----------
    name : str
        A word of `STUDIES`, or the path of a TOML file.

    Raises
    ------
    UsageError
        Where it is no study, with a line for each fault.
    """
    return _read(Study, "studies", name)


def _read(kind: type[Any], folder: str, name: str) -> Any:
    """Read a study or a setting, by its name or from a file of the user's own."""
    shipped = importlib.resources.files("kdcache.configs") / folder
    file = shipped / f"{name}.toml"
    try:
        text = (file if file.is_file() else Path(name)).read_text("utf-8")
        return kind(name=Path(name).stem, **tomllib.loads(text))
    except ValidationError as error:
        raise UsageError(*(_fault_line(name, detail) for detail in error.errors())) from None
    except (OSError, ValueError, TypeError, RecursionError):
        names = sorted(entry.name.removesuffix(".toml") for entry in shipped.iterdir() if entry.name.endswith(".toml"))
        allowed = f"a TOML file or one of {', '.join(names)}"
        raise UsageError(fault(f"{kind.__name__.lower()}", allowed=allowed, given=name)) from None


def _fault_line(name: str, detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    return fault(f"{name}: {place}", allowed=detail["msg"].removeprefix("Value error, "), given=detail["input"])


def spread_out(
    study: Study,
    profile: str,
    folder: Path,
    pairs: Sequence[str] = (),
    seeds: int | None = None,
    weights: Mapping[str, str] | None = None,
    common: Mapping[str, Any] | None = None,
    student: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Spread a study out into its runs.

    Parameters
    ----------
    study : Study
    profile : str
        A key of its profiles.
    folder : Path
        Each setting has a folder in it.
    pairs : sequence of str
        Those wanted, as ``WRN-40-2/WRN-16-2``; all of the study by default.
    seeds : int, optional
        Runs of a student and row, with the seeds 0, 1, ...; by default the setting's.
    weights : mapping of str to str, optional
        For the model of a teacher, the checkpoint that is loaded instead of training one.
    common, student : mapping of str to object, optional
        Settings of every run, as the device, and of every student.

    Returns
    -------
    list of Cell
        Setting by setting, pair by pair, row by row.

    Raises
    ------
    UsageError
        Where the study has no such profile or pair, or a run would be refused.
    """
    if profile not in study.profiles:
        raise UsageError(fault(f"--profile of {study.name}", allowed=", ".join(study.profiles), given=profile))
    settings = [_read(Setting, "settings", name) for name in study.profiles[profile]]
    chosen = [(setting, pair) for setting in settings for pair in _pairs(study, setting)]
    if strange := [name for name in pairs if name not in {pair.name for _, pair in chosen}]:
        raise UsageError(fault("--pairs", allowed=", ".join(pair.name for _, pair in chosen), given=strange[0]))
    maker = _Maker(folder, seeds, weights or {}, common or {}, student or {})
    wanted = [(setting, pair) for setting, pair in chosen if not pairs or pair.name in pairs]
    return [maker.cell(setting, row, pair) for setting, pair in wanted for row in study.rows]


def _pairs(study: Study, setting: Setting) -> Iterator[Pair]:
    """Choose the pairs of a setting that the study names; all where it names none of them."""
    named = [pair for pair in setting.pairs if pair.name in study.pairs]
    yield from named or setting.pairs


@dataclass(frozen=True)
class _Maker:
    """Makes the runs of cells, the same one wherever the same thing is to be trained."""

    folder: Path
    seeds: int | None
    weights: Mapping[str, str]
    common: Mapping[str, Any]
    student: Mapping[str, Any]
    teachers: dict[Path, Planned] = field(default_factory=dict)

    def cell(self, setting: Setting, row: Row, pair: Pair) -> Cell:
        teacher = self._teacher(setting, pair)
        if row.kind == "teacher":
            return Cell(setting, row, pair, (teacher,))
        seeds = range(setting.seeds if self.seeds is None else self.seeds)
        return Cell(setting, row, pair, tuple(self._student(setting, row, pair, teacher, seed) for seed in seeds))

    def _teacher(self, setting: Setting, pair: Pair) -> Planned:
        options = {**setting.train, **self.common, **pair.teacher}
        weights = self.weights.get(options["model"], options.pop("weights", None))
        path = self.folder / setting.name / f"teacher-{_word(options['model'])}"
        if path not in self.teachers:
            config = TeacherConfig.load(options.get("config"), **_settings(options, path))
            if weights is None:
                self.teachers[path] = Planned(path, "teacher-train", {**options, "out": path, "resume": True}, config)
            else:
                loads = {**options, "weights": weights, "out": path, "overwrite": True}
                self.teachers[path] = Planned(path, "teacher-load", loads, config)
        return self.teachers[path]

    def _student(self, setting: Setting, row: Row, pair: Pair, teacher: Planned, seed: int) -> Planned:
        shared = {**setting.train, **self.common, **setting.student, **self.student}
        options = {**shared, **pair.student, **row.train, "seed": seed}
        usual = StudentConfig.load(options.get("config"), **_settings(options)).epochs
        options["epochs"] = row.times * usual
        needs = StudentConfig.load(options.get("config"), **_settings(options)).needs_teacher
        told = {"teacher": teacher.name.removeprefix("teacher-")} if needs else {}
        own = {name: value for name, value in row.train.items() if name not in ("loss", "aug")}
        words = [options["model"], *told.values(), options.get("loss", "kd"), options.get("aug", "standard")]
        words += [f"{value}" if name == "pick" else f"{name}-{value}" for name, value in own.items()]
        path = teacher.path.parent / "-".join(map(_word, [*words, f"{options['epochs']}epochs", f"seed{seed}"]))
        if needs:
            options["teacher"] = teacher.path
        config = StudentConfig.load(options.get("config"), **_settings(options, path))
        options = {**options, "out": path, "resume": True}
        return Planned(path, "student-train", options, config, teacher if needs else None)


def _settings(options: Mapping[str, Any], out: Path | None = None) -> dict[str, Any]:
    return {**{name: value for name, value in options.items() if name != "config"}, "out": out}


def _word(value: object) -> str:
    """Make a part of a folder's name."""
    return "".join(sign if sign.isalnum() or sign in "._+" else "-" for sign in str(value))
