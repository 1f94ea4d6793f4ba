"""The runs of a study as they are planned, and the cells of its tables that they belong to."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from kdcache.config import StudentConfig, TeacherConfig, TrainingConfig
from kdcache.errors import UsageError, problem
from kdcache.files import write_text
from kdcache.run.folder import RunFolder
from kdcache.study.definition import Pair, StudyRow, TrainingProtocol

__all__ = ["PlannedRun", "StudyCell", "column_titles", "filter_cells", "list_runs", "sort_by_seed"]

DATA_SETTINGS = set(StudentConfig.in_group("data"))
"""Settings that determine which images are loaded."""

CONFIGS = "configs"
"""Folder, next to the run folders, with the configuration file of each planned run."""


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Attributes
    ----------
    path : Path
        Run folder.
    command : str
        ``teacher-train``, ``teacher-load`` or ``student-train``.
    config : TrainingConfig
    teacher : PlannedRun or None
        The teacher's run, which has to finish first.
    options : tuple of str
        Options of the command besides ``--config`` and ``--out``.
    """

    path: Path
    command: str
    config: TrainingConfig
    teacher: "PlannedRun | None" = field(default=None, repr=False)
    options: tuple[str, ...] = ("--resume",)

    @property
    def config_file(self) -> Path:
        """The file that ``--config`` reads; `write_config` writes it."""
        return self.path.parent / CONFIGS / f"{self.path.name}.toml"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command line, without the program's name."""
        download = ("--download",) if self.config.download else ()  # which no file may ask for
        trust = [word for address in self.config.code for word in ("--trust", address)]
        files = ("--config", str(self.config_file), "--out", str(self.path))
        return (*trust, self.command, *files, *download, *self.options)

    def write_config(self) -> None:
        """Write the settings to `config_file`; an unfinished run keeps its device and precision."""
        config, folder = self.config, RunFolder(self.path)
        if folder.holds_run and not folder.is_finished:
            existing = folder.read_config()
            config = config.model_copy(update={"device": existing.device, "precision": existing.precision})
        self.config_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, config.to_toml(exclude={*config.CLI_ONLY, "resume"}))

    def problems(self) -> list[str]:
        """Name the settings in which a run that already exists in `path` differs from the planned one."""
        folder, kind = RunFolder(self.path), type(self.config)
        if not folder.holds_run:
            return []
        existing = folder.read_config()
        if not isinstance(existing, kind):
            return [problem(f"run folder {self.path}", expected=f"a {kind.table}", got=f"a {existing.table}")]
        # Device and precision do not matter once a run is finished; the teacher is determined by the folder's name.
        names = (
            set(kind.model_fields) - kind.NOT_RECORDED - kind.MAY_DIFFER_ON_RESUME - {"device", "precision", "teacher"}
        )
        if self.command == "teacher-load":
            names &= {*TeacherConfig.USED_WHEN_LOADING}
        planned = self.config.lasting_as(existing)
        return [
            problem(f"{self.path}: {name}", expected=f"{getattr(planned, name)}, as planned", got=found)
            for name in sorted(names)
            if (found := getattr(existing, name)) != getattr(planned, name)
        ]

    @property
    def finished(self) -> bool:
        """Whether the run has finished."""
        return RunFolder(self.path).is_finished

    @property
    def name(self) -> str:
        """Protocol and folder name; unique within a study."""
        return f"{self.path.parent.name}/{self.path.name}"

    @cached_property
    def data_config(self) -> TrainingConfig:
        """The settings that determine which images are loaded, with defaults for the others."""
        return StudentConfig(**self.config.model_dump(include=DATA_SETTINGS))


@dataclass(frozen=True)
class StudyCell:
    """The runs of one row and pair, one per seed."""

    protocol: TrainingProtocol
    row: StudyRow
    pair: Pair
    runs: tuple[PlannedRun, ...]

    @property
    def column(self) -> tuple[str, str]:
        """Key of the cell's column: the names of protocol and pair."""
        return self.protocol.name, self.pair.name


def list_runs(cells: Iterable[StudyCell]) -> list[PlannedRun]:
    """List the runs of some cells, each teacher before its students; a run of several cells is listed once."""
    found: dict[Path, PlannedRun] = {}
    for run in (run for cell in cells for run in cell.runs):
        if run.teacher is not None:
            found.setdefault(run.teacher.path, run.teacher)
        found.setdefault(run.path, run)
    return list(found.values())


def sort_by_seed(runs: Iterable[PlannedRun]) -> list[PlannedRun]:
    """Sort runs by seed, so that runs with the same views follow one another and the cache fills seed by seed."""
    return sorted(runs, key=lambda run: run.config.seed)


def column_titles(columns: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Title of each column: the pair, with the protocol if there are several."""
    columns = list(columns)
    several = len({protocol for protocol, _ in columns}) > 1
    return {column: f"{column[1]}, {column[0]}" if several else column[1] for column in columns}


def filter_cells(
    cells: Sequence[StudyCell], pairs: Sequence[str] = (), rows: Sequence[str] = (), seeds: int | None = None
) -> list[StudyCell]:
    """Select cells by pair and row, and the first `seeds` runs of each; what is not given selects everything.

    Raises
    ------
    UsageError
        If there is no such pair or row.
    """
    for option, names, known in (
        ("--pairs", pairs, [cell.pair.name for cell in cells]),
        ("--rows", rows, [cell.row.name for cell in cells]),
    ):
        if unknown := [name for name in names if name not in known]:
            raise UsageError(problem(option, expected=", ".join(dict.fromkeys(known)), got=unknown[0]))
    return [
        replace(cell, runs=cell.runs[:seeds])
        for cell in cells
        if (not pairs or cell.pair.name in pairs) and (not rows or cell.row.name in rows)
    ]
