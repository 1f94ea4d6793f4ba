"""Study files and protocol files.

A *study* (``configs/studies``) defines the rows of a table or the curves of a figure. A *protocol*
(``configs/protocols``) defines what the rows are trained on: dataset, training settings, teacher-student pairs and
number of seeds. `kdcache.study.expand` combines the two into runs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdcache.config import StudentConfig
from kdcache.config.settings import expected_by
from kdcache.errors import UsageError, problem
from kdcache.presets import read_toml
from kdcache.study.claims import Claim
from kdcache.study.published import published_rows, published_tables

__all__ = ["Pair", "Settings", "Study", "StudyRow", "TrainingProtocol", "read_protocol", "read_study"]

Settings = dict[str, Any]
"""Settings of a training run by name, plus the key ``config`` for a preset, as on the command line."""

Name = Annotated[str, Field(pattern=r"^[^,]+$")]
"""Name of a row or pair. Options such as ``--rows`` separate names by commas, so a name has none."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pair(_Table):
    """A teacher and a student network with their own training settings.

    A teacher with the key ``weights`` is loaded from that checkpoint instead of trained.
    """

    name: Name
    teacher: Settings
    student: Settings

    @model_validator(mode="after")
    def _both_have_a_model(self) -> "Pair":
        if not ("model" in self.teacher and "model" in self.student):
            raise ValueError("a model for the teacher and one for the student")
        return self


class StudyRow(_Table):
    """Settings that every run of a row shares, for all pairs and seeds.

    Students train for ``epoch_multiplier`` times the protocol's number of epochs. A file may list several multipliers:
    ``[1, 2]`` defines the rows ``KD`` and ``KD x2``. ``by_pair`` has further settings of single pairs, and ``profiles``
    names the profiles that have the row, if not all have it.
    """

    name: Name
    kind: Literal["teacher", "student"] = "student"
    published_row: str | None = None
    epoch_multiplier: Annotated[int, Field(ge=1)] = 1
    settings: Settings = {}
    by_pair: dict[str, Settings] = {}
    profiles: tuple[str, ...] | None = None

    def settings_for(self, pair: str) -> Settings:
        """Settings of the row for a pair."""
        return StudentConfig.combined([self.settings, self.by_pair.get(pair, {})])

    @model_validator(mode="after")
    def _teacher_rows_have_no_settings(self) -> "StudyRow":
        if self.kind == "teacher" and (self.settings or self.by_pair or self.epoch_multiplier != 1):
            raise ValueError("no epoch_multiplier and no settings in a teacher row; the pair has the settings")
        return self


class TrainingProtocol(_Table):
    """What the rows of a study are trained on: ``common`` settings, ``student`` settings, pairs and number of seeds."""

    name: str
    seeds: Annotated[int, Field(ge=1)]
    common: Settings = {}
    student: Settings = {}
    pairs: Annotated[tuple[Pair, ...], Field(min_length=1)]


class Study(_Table):
    """A table or figure: its rows, the protocols of each profile, and claims about the rows."""

    name: str
    title: str
    figure_kind: Literal["error-curves", "kl-ratio", "label-disagreement"] | None = None
    published: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()
    profiles: Annotated[dict[str, tuple[str, ...]], Field(min_length=1)]
    rows: Annotated[tuple[StudyRow, ...], Field(min_length=1)]
    claims: tuple[Claim, ...] = ()

    @field_validator("rows", mode="before")
    @classmethod
    def _expand_multipliers(cls, rows: Any) -> Any:
        return [one for row in rows for one in _one_per_multiplier(row)] if isinstance(rows, list) else rows

    @model_validator(mode="after")
    def _names_are_known(self) -> "Study":
        names = [row.name for row in self.rows]
        if len(set(names)) < len(names):
            raise ValueError("a different name for each row")
        if unknown := {name for claim in self.claims for name in claim.rows} - set(names):
            raise ValueError(f"claims about rows of this study, not about {', '.join(sorted(unknown))}")
        if unknown := {name for row in self.rows for name in row.profiles or ()} - set(self.profiles):
            raise ValueError(f"profiles of rows among {', '.join(self.profiles)}, not {', '.join(unknown)}")
        if unknown := set(self.published) - set(published_tables()):
            raise ValueError(f"published tables of {', '.join(published_tables())}, not {', '.join(unknown)}")
        known = dict.fromkeys(row for table in self.published for row in published_rows(table))
        if unknown := {row.published_row for row in self.rows if row.published_row is not None} - set(known):
            allowed = f"of {', '.join(self.published)} ({', '.join(known)})" if known else "of a table in published"
            raise ValueError(f"published_row {allowed}, not {', '.join(map(str, unknown))}")
        return self


def _one_per_multiplier(row: Any) -> list[Any]:
    """Split a row whose ``epoch_multiplier`` is a list; anything else is left for the model to validate."""
    if not (isinstance(row, dict) and isinstance(row.get("epoch_multiplier"), list)):
        return [row]
    name = row.get("name")
    return [
        {**row, "epoch_multiplier": factor, "name": name if factor == 1 else f"{name} x{factor}"}
        for factor in row["epoch_multiplier"]
    ]


def read_study(name: str) -> Study:
    """Read a study.

    Parameters
    ----------
    name : str
        Name of a study that ships with kdcache, or path of a file that ends with ``.toml``. Paths of protocols in that
        file are relative to its folder.

    Raises
    ------
    UsageError
        If the file is missing or invalid; with one line per problem.
    """
    study = _read(Study, "studies", name)
    folder = Path(name).parent
    profiles = {
        profile: tuple(str(folder / protocol) if protocol.endswith(".toml") else protocol for protocol in protocols)
        for profile, protocols in study.profiles.items()
    }
    return study.model_copy(update={"profiles": profiles})


def read_protocol(name: str) -> TrainingProtocol:
    """Read a protocol by its name in ``configs/protocols`` or by its path; errors are those of `read_study`."""
    return _read(TrainingProtocol, "protocols", name)


Definition = TypeVar("Definition", Study, TrainingProtocol)


def _read(kind: type[Definition], folder: str, name: str) -> Definition:
    what = folder.replace("studies", "study").removesuffix("s")
    document = read_toml(name, what, what, folder)
    if "name" in document:
        raise UsageError(problem(f"{name}: unknown key name", remedy="The file name is the name."))
    try:
        return kind(name=Path(name).stem, **document)
    except ValidationError as error:
        raise UsageError(*(_problem_line(name, detail) for detail in error.errors())) from None


def _problem_line(file: str, detail: Any) -> str:
    """Turn one of pydantic's errors into a message."""
    key = ".".join(str(part) for part in detail["loc"])
    where = f"{file}: {key}" if key else file
    if detail["type"] == "extra_forbidden":
        return problem(f"{file}: unknown key {key}")
    if detail["type"] == "missing":
        return problem(where, expected="a value", got="none")
    return problem(where, expected=expected_by(detail), got=detail["input"] if key else None)
