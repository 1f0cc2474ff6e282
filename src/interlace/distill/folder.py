"""The run folder of a distillation: run.toml and ledger.sqlite."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ConfigDict, Field

from interlace.base.errors import ConfigError, RunError
from interlace.base.files import disk_errors, write_file
from interlace.base.schema import Closed, validate
from interlace.distill.flow import stage_id
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.recipe import DistillRecipe
from interlace.runs.folder import CONFIG, RunFolder
from interlace.runs.versions import versions as versions_of

LEDGER = "ledger.sqlite"
DEPENDENCIES = ("aiohttp", "jinja2", "jsonschema", "sympy", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of the software, beside the recipe, that the rows of a run depend on."""
    return versions_of(*DEPENDENCIES)


@dataclass(frozen=True)
class StageRecord:
    """A step as run.toml stores it; with it, a run can be read when its inputs are gone.

    Attributes:
        id: the id under which its rows are stored.
    """

    name: str
    kind: str
    id: str
    feeds: tuple[str, ...]


class _Stage(Closed):
    name: str
    kind: str
    id: str
    feeds: tuple[str, ...] = Field(alias="from", strict=False)


class _Recipe(Closed):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    steps: tuple[dict[str, Any], ...] = Field(strict=False)
    teachers: dict[str, dict[str, Any]] = Field(default_factory=dict)
    output: dict[str, Any] = Field(default_factory=dict)


class _About(Closed):
    """What run.toml must hold; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    run_id: str = Field(min_length=1)
    begun: str = ""
    ledger: str = Field(min_length=1)
    last: str
    stages: tuple[_Stage, ...] = Field(strict=False)
    inputs: dict[str, str] = Field(default_factory=dict)
    recipe_file: str = "recipe.toml"
    recipe: _Recipe
    versions: dict[str, str] = Field(default_factory=dict)


class DistillRun(RunFolder):
    """A folder that `generate` wrote.

    Attributes:
        id: the run whose budget its requests count against in the ledger.
        ledger: the path of the ledger.
        stages: the steps, each after those that feed it.
        about: the contents of run.toml: recipe, versions, when it was begun.
        known: whether the folder was there before.
    """

    def __init__(self, path: Path, about: dict[str, Any] | None = None):
        """Check a run folder.

        about: the contents of run.toml for a run that begins; None to read the file.

        Raises:
            RunError: it is no such folder, or its run.toml is damaged.
        """
        super().__init__(path)
        self.known = about is None
        if about is None:
            if not self.file.is_file():
                raise RunError(
                    f"{self.path}: holds no {CONFIG}; name the folder that `interlace distill generate` wrote"
                )
            about = self.tables()
        try:
            found = validate(_About, about, "")
            steps = {step.get("name", step.get("kind")) for step in found.recipe.steps}
            names = [stage.name for stage in found.stages]
            unknown = [name for name in names if name not in steps] + [n for n in (found.last,) if n not in names]
            if unknown:
                raise ConfigError(f"no step is called {unknown[0]!r}")
        except ConfigError as error:
            raise RunError(f"{self.file}: is not the {CONFIG} of a distillation: {error}; put it back") from None
        self.about, self.id, self.ledger = about, found.run_id, self.path / found.ledger
        self.stages = tuple(StageRecord(s.name, s.kind, s.id, s.feeds) for s in found.stages)

    @staticmethod
    def begin(path: Path, recipe: DistillRecipe, file: Path, limit: int | None = None) -> DistillRun:
        """Resume the run in a folder, also with an edited recipe, or begin a new one; `write` writes its run.toml.

        Raises:
            RunError: the folder holds something else.
        """
        known = (path / CONFIG).is_file()
        if known:
            old = DistillRun(path)
            run_id, begun = old.id, old.about.get("begun", "")
        elif path.exists() and (not path.is_dir() or any(not p.name.startswith(LEDGER) for p in path.iterdir())):
            raise RunError(f"{path}: exists and is not a run folder; name another --out")
        else:
            run_id, begun = secrets.token_hex(8), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        ledger = str((recipe.folder / recipe.run.ledger).resolve()) if recipe.run.ledger else LEDGER
        stages = tuple(StageRecord(n, s.step.kind, stage_id(s, limit), s.feeds) for n, s in recipe.stages.items())
        about = {
            "run_id": run_id,
            "begun": begun,
            "ledger": ledger,
            "last": recipe.last.step.name,
            "stages": [{"name": k.name, "kind": k.kind, "id": k.id, "from": list(k.feeds)} for k in stages],
            "inputs": {f: h for s in recipe.stages.values() for f, h in s.inputs.items()},
            "recipe_file": file.name,
            "recipe": recipe.raw,
            "versions": versions(),
        }
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        run = DistillRun(path, about)
        run.known = known
        return run

    def write(self) -> None:
        """Write run.toml.

        Call it after the ledger was made: a folder with a run.toml and no ledger has then lost its ledger.
        """
        write_file(self.file, tomli_w.dumps(self.about))

    @property
    def last(self) -> StageRecord:
        """The step whose rows are exported."""
        return next(s for s in self.stages if s.name == self.about["last"])

    def open_ledger(self) -> Ledger:
        """Open the ledger to read.

        Raises:
            DataError: it is missing or damaged.
        """
        return Ledger(self.ledger, self.id, create=False, write=False)
