"""Expansion of a study into training runs.

A run is one row trained with one teacher-student pair and one seed. Its folder is named after its settings, so studies
of the same protocol share the runs that they have in common.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.config.options import as_tables, dotted
from kdcache.errors import UsageError, problem
from kdcache.extensions import KINDS, require_trusted
from kdcache.run.find import weights_file
from kdcache.study.definition import Pair, Settings, Study, StudyRow, TrainingProtocol, read_protocol
from kdcache.study.planned import PlannedRun, StudyCell

__all__ = ["expand_study"]

Config = TypeVar("Config", bound=TrainingConfig)


def expand_study(
    study: Study,
    profile: str,
    folder: Path,
    seeds: int | None = None,
    weights: Mapping[str, str] | None = None,
    common: Mapping[str, Any] | None = None,
    student: Mapping[str, Any] | None = None,
) -> list[StudyCell]:
    """Expand a study into its runs.

    Parameters
    ----------
    study : Study
    profile : str
        Name of one of its profiles.
    folder : Path
        Folder with a subfolder of run folders for each protocol.
    seeds : int, optional
        Number of runs of each student row, with seeds 0, 1, ...; at least the protocol's.
    weights : mapping of str to str, optional
        Checkpoint to load instead of training a teacher, by the teacher's model.
    common, student : mapping of str to object, optional
        Settings of every run, such as the device, and of every student.

    Returns
    -------
    list of StudyCell
        Ordered by protocol, pair and row.

    Raises
    ------
    UsageError
        If the study has no such profile, no protocol has its pairs, or the settings of a run are invalid.
    """
    if profile not in study.profiles:
        raise UsageError(problem(f"--profile of {study.name}", expected=", ".join(study.profiles), got=profile))
    protocols = {name: read_protocol(name) for names in study.profiles.values() for name in names}
    known = dict.fromkeys(pair.name for protocol in protocols.values() for pair in protocol.pairs)
    if unknown := [name for name in study.pairs if name not in known]:
        raise UsageError(
            problem(
                f"teacher-student pairs in the file of study {study.name}", expected=", ".join(known), got=unknown[0]
            )
        )
    if unknown := [name for row in study.rows for name in row.by_pair if name not in known]:
        raise UsageError(
            problem(f"by_pair of a row in the file of study {study.name}", expected=", ".join(known), got=unknown[0])
        )
    rows = [row for row in study.rows if row.profiles is None or profile in row.profiles]
    selected = [(protocols[name], pair) for name in study.profiles[profile] for pair in _pairs(study, protocols[name])]
    teachers = dict.fromkeys(str(pair.teacher["model"]) for _, pair in selected)
    if unused := [name for name in weights or () if name not in teachers]:
        raise UsageError(problem("--weights of a teacher", expected=", ".join(teachers), got=unused[0]))
    planner = _Planner(folder, seeds, weights or {}, common or {}, student or {})
    return [cell for protocol, pair in selected for cell in planner.cells(protocol, pair, rows)]


def _pairs(study: Study, protocol: TrainingProtocol) -> Iterator[Pair]:
    """Select the pairs of a protocol that the study names, or all if it names none of them."""
    named = [pair for pair in protocol.pairs if pair.name in study.pairs]
    yield from named or protocol.pairs


@dataclass(frozen=True)
class _Planner:
    """Plans runs; cells with the same settings get the same run."""

    folder: Path
    seeds: int | None
    weights: Mapping[str, str]
    common: Mapping[str, Any]
    student: Mapping[str, Any]
    planned: dict[Path, PlannedRun] = field(default_factory=dict)

    def cells(self, protocol: TrainingProtocol, pair: Pair, rows: Sequence[StudyRow]) -> Iterator[StudyCell]:
        with _naming_the_run(f"teacher, {pair.name}"):
            teacher = self._teacher(protocol, pair)
        seeds = range(max(protocol.seeds, self.seeds or 0))
        for row in rows:
            with _naming_the_run(f"{row.name}, {pair.name}"):
                students = (self._student(protocol, row, pair, teacher, seed) for seed in seeds)
                runs = (teacher,) if row.kind == "teacher" else tuple(students)
            yield StudyCell(protocol, row, pair, runs)

    def _teacher(self, protocol: TrainingProtocol, pair: Pair) -> PlannedRun:
        settings = {**protocol.common, **self.common, **pair.teacher}
        model = str(settings["model"])
        weights = self.weights.get(model, settings.pop("weights", None))
        words = ["teacher", model] if weights is None else ["teacher", model, _weights_id(str(weights))]
        path = self.folder / protocol.name / _folder_name(words)
        config = _load(TeacherConfig, settings, path)
        if weights is None:
            return self._once(PlannedRun(path, "teacher-train", config))
        options = ("--weights", str(weights), "--model", model, "--overwrite")
        return self._once(PlannedRun(path, "teacher-load", config, options=options))

    def _student(
        self, protocol: TrainingProtocol, row: StudyRow, pair: Pair, teacher: PlannedRun, seed: int
    ) -> PlannedRun:
        shared = (protocol.common, self.common, protocol.student, self.student)
        of_row = row.settings_for(pair.name)
        settings = StudentConfig.combined([*shared, pair.student, of_row, {"seed": seed}])
        config = _load(StudentConfig, settings)
        unit, number = config.length.unit, row.epoch_multiplier * config.length.number
        words = [settings["model"]]
        if config.needs_teacher:
            words.append(teacher.path.name.removeprefix("teacher-"))
            # With the dataset: an existing teacher's settings must not change the plan.
            settings |= {"teacher": teacher.path, "dataset": config.dataset}
        words += [config.loss, config.aug]
        for name, value in of_row.items():
            if name in ("losses", "augs"):
                words += [f"{option}-{one}" for option, one in dotted(as_tables(value)).items()]
            elif name == "init":
                words.append(f"init-{_weights_id(weights_file(str(value)))}")
            elif name not in ("loss", "aug"):
                words.append(value if name == "pick" else f"{name}-{value}")
        path = teacher.path.parent / _folder_name([*words, f"{number}{unit}", f"seed{seed}"])
        config = _load(StudentConfig, {**settings, unit: number}, path)
        return self._once(PlannedRun(path, "student-train", config, teacher if config.needs_teacher else None))

    def _once(self, run: PlannedRun) -> PlannedRun:
        """Return the run that was planned before for the same folder, which must have the same settings."""
        before = self.planned.setdefault(run.path, run)
        if before != run:
            raise UsageError(
                problem(
                    f"run folder {run.path.name}",
                    expected="one run",
                    got="runs of two pairs with different settings",
                    remedy="Give the pairs different models.",
                )
            )
        return before


@contextmanager
def _naming_the_run(what: str) -> Iterator[None]:
    """Prefix the problems of a run's settings with the name of the run."""
    try:
        yield
    except UsageError as error:
        raise UsageError(*(f"{what}: {line}" for line in error.problems)) from None


def _load(kind: type[Config], settings: Settings, out: Path | None = None) -> Config:
    """Validate settings, which may name a preset by the key ``config``."""
    options = {name: value for name, value in settings.items() if name != "config"}
    for name in kind.CODE:  # which `load` would trust; the file of the study named it, not the user
        require_trusted(KINDS[name], str(options.get(name)))
    config = kind.load(settings.get("config"), **options, out=out)
    for address, name in config.code.items():  # of a preset or a recipe, too
        require_trusted(KINDS[name], address)
    return config


def _weights_id(weights: str) -> str:
    """Identify weights: a file by a hash of its content, others by their name."""
    if not (Path(weights).suffix or Path(weights).is_file()):
        return weights
    try:
        with Path(weights).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise UsageError(problem(f"could not read weights {weights}", got=error.strerror)) from None


def _folder_name(words: Iterable[object]) -> str:
    """Join words into the name of a folder."""
    return "-".join("".join(char if char.isalnum() or char in "._+" else "-" for char in str(word)) for word in words)
