"""A study spread out into runs, before anything is trained.

A run is a row with a pair and a seed. Its folder is named by what it trains, so that the studies of a setting share
what they have in common.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import UsageError, problem
from kdcache.run.folder import RunFolder
from kdcache.study.plan import Pair, Row, Setting, Study, read_setting

__all__ = ["Planned", "TableCell", "column_titles", "expand_study", "filter_cells", "in_order", "runs_of"]

READ_BY = {
    *("dataset", "data_root", "download", "image_size", "on_bad_image", "val_fraction", "train_fraction", "workers")
}
"""Settings that say what is read."""


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

    def problems(self) -> list[str]:
        """Say in what the run that is there, if there is one, is another than the one that is planned."""
        folder = RunFolder(self.path)
        if not folder.holds_run:
            return []
        there = folder.read_config()
        if type(there) is not type(self.config):
            return [problem(f"{self.path}", expected=f"a {self.config.table}, as planned", got=f"a {there.table}")]
        # Where and by what precision a finished run was computed does not matter; its folder says whose answers it had.
        names = (
            set(type(self.config).model_fields)
            - type(self.config).NOT_RECORDED
            - type(self.config).MAY_DIFFER_ON_RESUME
        )
        names -= {"device", "precision", "teacher"}
        if self.command == "teacher-load":
            names &= {*TeacherConfig.USED_WHEN_LOADING}
        return [
            problem(f"{self.path}: {name}", expected=f"{getattr(self.config, name)}, as planned", got=given)
            for name in sorted(names)
            if (given := getattr(there, name)) != getattr(self.config, name)
        ]

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return RunFolder(self.path).is_finished

    @property
    def name(self) -> str:
        """For people, and alone of its study: the names of the setting and of the folder."""
        return f"{self.path.parent.name}/{self.path.name}"

    @cached_property
    def data(self) -> TrainingConfig:
        """Of the settings those that say what is read: runs in which they are the same read the same images."""
        return TrainingConfig(**self.config.model_dump(include=READ_BY))


@dataclass(frozen=True)
class TableCell:
    """The runs of a row and a pair, one for each seed."""

    setting: Setting
    row: Row
    pair: Pair
    runs: tuple[Planned, ...]

    @property
    def column(self) -> tuple[str, str]:
        """What its column of a table is of: the names of setting and pair."""
        return self.setting.name, self.pair.name


def runs_of(cells: Iterable[TableCell]) -> list[Planned]:
    """List the runs of some cells, teachers before their students.

    A run that stands in several cells, as the student of two pairs, comes once.
    """
    found: dict[Path, Planned] = {}
    for run in (run for cell in cells for run in cell.runs):
        if run.teacher is not None:
            found.setdefault(run.teacher.path, run.teacher)
        found.setdefault(run.path, run)
    return list(found.values())


def in_order(runs: Iterable[Planned]) -> list[Planned]:
    """Sort runs by their seeds: those that see the same views come together, and tables fill seed by seed."""
    return sorted(runs, key=lambda run: run.config.seed)


def column_titles(columns: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Name columns for people: by the pair, and by the setting too where there are several."""
    columns = list(columns)
    several = len({setting for setting, _ in columns}) > 1
    return {column: f"{column[1]}, {column[0]}" if several else column[1] for column in columns}


def filter_cells(
    cells: Sequence[TableCell], pairs: Sequence[str] = (), rows: Sequence[str] = (), seeds: int | None = None
) -> list[TableCell]:
    """Choose some cells of a study, and the first seeds of each; all where nothing is said.

    Raises
    ------
    UsageError
        Where there is no such pair or row.
    """
    for option, given, there in (
        ("--pairs", pairs, [cell.pair.name for cell in cells]),
        ("--rows", rows, [cell.row.name for cell in cells]),
    ):
        if strange := [name for name in given if name not in there]:
            raise UsageError(problem(option, expected=", ".join(dict.fromkeys(there)), got=strange[0]))
    return [
        replace(cell, runs=cell.runs[:seeds])
        for cell in cells
        if (not pairs or cell.pair.name in pairs) and (not rows or cell.row.name in rows)
    ]


def expand_study(
    study: Study,
    profile: str,
    folder: Path,
    seeds: int | None = None,
    weights: Mapping[str, str] | None = None,
    common: Mapping[str, Any] | None = None,
    student: Mapping[str, Any] | None = None,
) -> list[TableCell]:
    """Spread a study out into its runs.

    Parameters
    ----------
    study : Study
    profile : str
        A key of its profiles.
    folder : Path
        Each setting has a folder in it.
    seeds : int, optional
        Runs of a student and row, with the seeds 0, 1, ...; at least the setting's.
    weights : mapping of str to str, optional
        For the model of a teacher, the checkpoint that is loaded instead of training one.
    common, student : mapping of str to object, optional
        Settings of every run, as the device, and of every student.

    Returns
    -------
    list of TableCell
        Setting by setting, pair by pair, row by row.

    Raises
    ------
    UsageError
        Where the study has no such profile, its pairs are in no setting, or a run would be refused.
    """
    if profile not in study.profiles:
        raise UsageError(problem(f"--profile of {study.name}", expected=", ".join(study.profiles), got=profile))
    settings = {name: read_setting(name) for names in study.profiles.values() for name in names}
    known = dict.fromkeys(pair.name for setting in settings.values() for pair in setting.pairs)
    if strange := [name for name in study.pairs if name not in known]:
        raise UsageError(problem(f"pairs of {study.name}", expected=", ".join(known), got=strange[0]))
    wanted = [(settings[name], pair) for name in study.profiles[profile] for pair in _pairs(study, settings[name])]
    teachers = dict.fromkeys(str(pair.teacher["model"]) for _, pair in wanted)
    if unused := [name for name in weights or () if name not in teachers]:
        raise UsageError(problem("--weights of a teacher", expected=", ".join(teachers), got=unused[0]))
    maker = _Maker(folder, seeds, weights or {}, common or {}, student or {})
    return [cell for setting, pair in wanted for cell in maker.cells(setting, pair, study.rows)]


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
    made: dict[Path, Planned] = field(default_factory=dict)

    def cells(self, setting: Setting, pair: Pair, rows: Sequence[Row]) -> Iterator[TableCell]:
        with _problems_of(f"teacher, {pair.name}"):
            teacher = self._teacher(setting, pair)
        seeds = range(max(setting.seeds, self.seeds or 0))
        for row in rows:
            with _problems_of(f"{row.name}, {pair.name}"):
                students = (self._student(setting, row, pair, teacher, seed) for seed in seeds)
                runs = (teacher,) if row.kind == "teacher" else tuple(students)
            yield TableCell(setting, row, pair, runs)

    def _teacher(self, setting: Setting, pair: Pair) -> Planned:
        options = {**setting.train, **self.common, **pair.teacher}
        weights, model = options.pop("weights", None), str(options["model"])
        name = f"teacher-{_word(model)}"
        weights = self.weights.get(model, weights)
        if weights is not None:
            name += f"-{_content(str(weights))}"
        path = self.folder / setting.name / name
        config = TeacherConfig.load(options.get("config"), **_settings(options, path))
        if weights is None:
            return self._once(Planned(path, "teacher-train", {**options, "out": path, "resume": True}, config))
        kept = {
            name: value
            for name, value in options.items()
            if name in ("config", "model", *TeacherConfig.USED_WHEN_LOADING)
        }
        loads = {**kept, "weights": weights, "out": path, "overwrite": True}
        return self._once(Planned(path, "teacher-load", loads, config))

    def _student(self, setting: Setting, row: Row, pair: Pair, teacher: Planned, seed: int) -> Planned:
        shared = {**setting.train, **self.common, **setting.student, **self.student}
        options = {**shared, **pair.student, **row.train, "seed": seed}
        usual = StudentConfig.load(options.get("config"), **_settings(options))
        options["epochs"] = row.times * usual.epochs
        told = {"teacher": teacher.path.name.removeprefix("teacher-")} if usual.needs_teacher else {}
        own = {name: value for name, value in row.train.items() if name not in ("loss", "aug")}
        words = [options["model"], *told.values(), options.get("loss", "kd"), options.get("aug", "standard")]
        words += [f"{value}" if name == "pick" else f"{name}-{value}" for name, value in own.items()]
        path = teacher.path.parent / "-".join(map(_word, [*words, f"{options['epochs']}epochs", f"seed{seed}"]))
        if usual.needs_teacher:
            options["teacher"] = teacher.path
        config = StudentConfig.load(options.get("config"), **_settings(options, path))
        options = {**options, "out": path, "resume": True}
        return self._once(Planned(path, "student-train", options, config, teacher if usual.needs_teacher else None))

    def _once(self, planned: Planned) -> Planned:
        """Give back the run of this folder, which may have been planned before; as another one, it is a fault."""
        before = self.made.setdefault(planned.path, planned)
        if before.config != planned.config or before.arguments != planned.arguments:
            raise UsageError(
                problem(f"run folder {planned.path.name}", expected="one run: name other models", got="two pairs")
            )
        return before


@contextmanager
def _problems_of(what: str) -> Iterator[None]:
    """Say of what the settings are that are at fault."""
    try:
        yield
    except UsageError as error:
        raise UsageError(*(f"{what}: {line}" for line in error.problems)) from None


def _settings(options: Mapping[str, Any], out: Path | None = None) -> dict[str, Any]:
    return {**{name: value for name, value in options.items() if name != "config"}, "out": out}


def _content(weights: str) -> str:
    """Tell weights apart: a file by what is in it, others by their name."""
    if not (Path(weights).suffix or Path(weights).is_file()):
        return _word(weights)
    try:
        with Path(weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise UsageError(
            problem(f"weights {weights}", expected="a file that can be read", got=error.strerror)
        ) from None


def _word(value: object) -> str:
    """Make a part of a folder's name."""
    return "".join(sign if sign.isalnum() or sign in "._+" else "-" for sign in str(value))
