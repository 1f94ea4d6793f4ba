"""What a study consists of, read from files.

A *study* (``configs/studies``) names rows: a table's, or a figure's curves. A *setting* (``configs/settings``) names
pairs of networks and what all runs have in common. `kdcache.study.expand` makes runs of them.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdcache.config import expected_by
from kdcache.errors import UsageError, problem
from kdcache.presets import read_toml
from kdcache.study.claims import Claim
from kdcache.study.paper import paper_rows

__all__ = ["Options", "Pair", "Row", "Setting", "Study", "read_setting", "read_study"]

Options = dict[str, Any]
"""Settings of a training, or the key ``config`` for a preset, as in a file that ``--config`` reads."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Name = Annotated[str, Field(pattern=r"^[^,]+$")]
"""Of a row or pair: commas part the names that are given to a command."""


class Pair(_Part):
    """A teacher and a student, each as settings of its training; a teacher with ``weights`` is loaded instead."""

    name: Name
    teacher: Options
    student: Options

    @model_validator(mode="after")
    def _both_have_a_network(self) -> "Pair":
        if not ("model" in self.teacher and "model" in self.student):
            raise ValueError("a model of the teacher and one of the student")
        return self


class Row(_Part):
    """What is trained alike for every pair and seed: ``times`` the usual epochs, with these settings.

    In a file, ``times`` may list several numbers: that makes a row of each, ``KD``, ``KD x2`` and so on.
    """

    name: Name
    kind: Literal["teacher", "student"] = "student"
    paper: str | None = None
    times: Annotated[int, Field(ge=1)] = 1
    train: Options = {}

    @model_validator(mode="after")
    def _teachers_are_of_pairs(self) -> "Row":
        if self.kind == "teacher" and (self.train or self.times != 1):
            raise ValueError("neither times nor train for a row of teachers: a pair says how its teacher is trained")
        return self


class Setting(_Part):
    """Where rows are trained: on what, for how long, with how many seeds, and which networks."""

    name: str
    seeds: Annotated[int, Field(ge=1)]
    train: Options = {}
    student: Options = {}
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]


class Study(_Part):
    """A table or figure: its rows, the settings of each profile, and what is claimed of them."""

    name: str
    title: str
    shows: Literal["table", "lengths", "ratios", "disagreement"] = "table"
    paper: str | None = None
    pairs: tuple[str, ...] = ()
    profiles: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]
    claims: tuple[Claim, ...] = ()

    @field_validator("rows", mode="before")
    @classmethod
    def _of_each_length(cls, rows: Any) -> Any:
        return [one for row in rows for one in _of_its_lengths(row)] if isinstance(rows, list) else rows

    @model_validator(mode="after")
    def _names_fit(self) -> "Study":
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("rows whose names differ")
        if strange := {name for claim in self.claims for name in claim.rows} - set(names):
            raise ValueError(f"claims about its rows, not about {', '.join(sorted(strange))}")
        known = paper_rows(self.paper) if self.paper else ()
        if strange := {row.paper for row in self.rows if row.paper is not None} - set(known):
            table = f"{self.paper}: {', '.join(known)}" if known else "data/paper.json"
            raise ValueError(f"rows of the paper's {table}; not {', '.join(map(str, strange))}")
        return self


def _of_its_lengths(row: Any) -> list[Any]:
    """Take a row with several ``times`` apart; what is no such row is left to the model."""
    if not (isinstance(row, dict) and isinstance(row.get("times"), list)):
        return [row]
    name = row.get("name")
    return [{**row, "times": times, "name": name if times == 1 else f"{name} x{times}"} for times in row["times"]]


def read_study(name: str) -> Study:
    """Read a study that ships with kdcache, or one of the user's own.

    Parameters
    ----------
    name : str
        Of one that ships with kdcache, or the path of a file that ends with ``.toml``. Paths of settings in such a
        file begin at its folder.

    Raises
    ------
    UsageError
        Where it is no study, with a line for each fault.
    """
    study = _read(Study, "studies", name)
    beside = Path(name).parent
    places = {
        profile: tuple(str(beside / setting) if setting.endswith(".toml") else setting for setting in settings)
        for profile, settings in study.profiles.items()
    }
    return study.model_copy(update={"profiles": places})


def read_setting(name: str) -> Setting:
    """Read a setting, likewise: by its name in ``configs/settings``, or from a file."""
    return _read(Setting, "settings", name)


Part = TypeVar("Part", Study, Setting)


def _read(kind: type[Part], folder: str, name: str) -> Part:
    what = kind.__name__.lower()
    document = read_toml(name, what, what, folder)
    if "name" in document:
        raise UsageError(problem(f"{name}: name", expected="nothing: it is the file's"))
    try:
        return kind(name=Path(name).stem, **document)
    except ValidationError as error:
        raise UsageError(*(_problem_line(name, detail) for detail in error.errors())) from None


def _problem_line(name: str, detail: Any) -> str:
    """Put one of pydantic's findings into the project's form."""
    place = ".".join(str(part) for part in detail["loc"])
    where = f"{name}: {place}" if place else name
    if detail["type"] == "extra_forbidden":
        return problem(f"{name}: unknown key {place}")
    if detail["type"] == "missing":
        return problem(where, expected="a value", got="none")
    return problem(where, expected=expected_by(detail), got=detail["input"] if place else None)
