"""Export the rows of a run as conversations: JSONL and Parquet, split by hash, with a manifest of their origin."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from interlace.base.errors import BackendUnavailable, ConfigError, DataError, RunError
from interlace.base.files import new_folder, sha256, user_path
from interlace.base.schema import validate
from interlace.base.text import finite
from interlace.data.chat import ROLES
from interlace.data.sources import split_point
from interlace.data.thoughts import THOUGHTS, reasoning_of, table, written
from interlace.distill.folder import DistillRun, versions
from interlace.distill.ledger.ledger import Ledger
from interlace.distill.ledger.records import Row
from interlace.distill.recipe import Output
from interlace.distill.run import summary
from interlace.runs.progress import Progress, Watch, silent
from interlace.sandbox.templates import Templates

SPLITS = ("train", "held_out")
SEPARATORS = re.compile("[\x85\u2028\u2029]")  # some readers take these for ends of lines
PARTS = ("text", "input_text", "output_text", "redacted_thinking", *THOUGHTS)  # types in a turn's content
PARQUET_BYTES = 16 << 20  # text of the rows that are written together
TURN_BYTES = 1024  # memory that a turn takes beside its text


class Unusable(Exception):
    """A row makes no conversation; the message says why."""


def export(run: str | Path, out: str | Path, *, parquet: bool = True, watch: Watch = silent) -> dict[str, Any]:
    """Write train.jsonl, held_out.jsonl, the same as Parquet, and manifest.json; return the manifest.

    Args:
        run: a folder that `generate` wrote; it need not be finished.
        out: a new folder, or one that an earlier export wrote, which is replaced.
        parquet: whether Parquet is written too.

    Raises:
        RunError, DataError: the run cannot be read, or `out` holds something else.
        BackendUnavailable: Parquet is asked for and pyarrow is not installed.
    """
    folder, out = DistillRun(Path(run)), user_path(out, RunError)
    before = _written_before(out)
    settings = validate(Output, folder.about["recipe"].get("output", {}), "output")
    ledger, templates = folder.open_ledger(), Templates()
    try:
        with new_folder(out) as partial, contextlib.ExitStack() as open_:
            splits = {name: Split(partial, name, parquet) for name in SPLITS}
            for split in splits.values():
                open_.callback(split.release)
            left_out: Counter[str] = Counter()
            total = ledger.rows.count(folder.last.id).get("ok", 0)
            for done, row in enumerate(ledger.rows.ordered(folder.last.id), start=1):
                try:
                    made = conversation(row, settings, templates)
                except Unusable as error:
                    left_out[str(error)] += 1
                    continue
                side = split_point(made.pop("split")) < settings.held_out
                splits[SPLITS[side]].add(made)
                if not done % 500 or done == total:
                    watch(Progress("writing", done, total))
            for split in splits.values():
                split.close()
            manifest = describe(folder, ledger, splits, dict(left_out))
            now = {name for split in manifest["splits"].values() for name in split["sha256"]}
            (partial / "manifest.json").write_text(strict(manifest, indent=2) + "\n", encoding="utf-8")
        for name in before - now:
            (out / name).unlink(missing_ok=True)
    finally:
        templates.close()
        ledger.close()
    return manifest


def _written_before(out: Path) -> set[str]:
    """Return the names of the files that an earlier export left in a folder.

    Raises:
        DataError: the folder holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return set()
    try:
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        return {Path(name).name for split in manifest["splits"].values() for name in split["sha256"]}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise DataError(f"{out}: exists and no export wrote it; name another --out") from None


def conversation(row: Row, settings: Output, templates: Templates) -> dict[str, Any]:
    """Return a row as {"id", "messages", "split", and the columns of `keep`}.

    Raises:
        Unusable: a template fails on it, or a turn is empty.
    """

    def render(name: str) -> str:
        try:
            return templates.render(getattr(settings, name), row.values, f"output.{name}")
        except ConfigError as error:
            raise Unusable(str(error)) from None

    if settings.messages:
        turns = [check_turn(t) for t in row.values.get(settings.messages) or []]
        if not any(t["role"] == "assistant" for t in turns):
            raise Unusable(f"{settings.messages}: has no assistant's turn")
    else:
        turns = [{"role": "system", "content": render("system")}] if settings.system else []
        turns.append({"role": "user", "content": render("user")})
        answer: dict[str, Any] = {"role": "assistant", "content": render("assistant")}
        if settings.reasoning and (trace := render("reasoning").strip()):
            answer["reasoning_content"] = trace
        turns.append(answer)
        if not answer["content"].strip():
            raise Unusable("the assistant's turn is empty")
    asked = next((t["content"] for t in turns if t["role"] == "user"), "")
    kept = {name: row.values.get(name) for name in settings.keep}
    return {"id": row.key, "messages": turns, "split": render("split_by") if settings.split_by else asked, **kept}


def check_turn(turn: Any) -> dict[str, Any]:
    """Return a turn as {"role", "content"}, with its trace as "reasoning_content", in whatever field or part it stood.

    Raises:
        Unusable: it is not a turn.
    """
    content = turn.get("content") if isinstance(turn, dict) else None
    text = written(content)
    known = isinstance(content, str) or (text and all(map(_is_text_or_thought, content or ())))
    if not known or turn.get("role") not in ROLES:
        raise Unusable(f"messages: a turn needs a role ({', '.join(ROLES)}) and content that is text")
    trace = reasoning_of(turn) if turn["role"] == "assistant" else ""
    return {"role": turn["role"], "content": text, **({"reasoning_content": trace} if trace else {})}


def _is_text_or_thought(part: Any) -> bool:
    return isinstance(part, str) or table(part).get("type") in PARTS


def strict(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON that every reader accepts: NaN and infinities become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


class Split:
    """The files of one side of the split, written row by row."""

    def __init__(self, folder: Path, name: str, parquet: bool):
        """Open the files."""
        self.folder, self.name, self.rows, self.characters = folder, name, 0, 0
        self._jsonl: IO[str] = open(folder / f"{name}.jsonl", "w", encoding="utf-8")  # noqa: SIM115 - closed by close()
        self._parquet = Parquet(folder / f"{name}.parquet") if parquet else None

    def add(self, row: dict[str, Any]) -> None:
        """Write a row."""
        line = strict(row)
        self._jsonl.write(SEPARATORS.sub(lambda m: f"\\u{ord(m[0]):04x}", line) + "\n")
        self.rows += 1
        self.characters += sum(len(t["content"]) for t in row["messages"])
        if self._parquet is not None:
            self._parquet.add(row)

    def close(self) -> None:
        """Finish the files."""
        self._jsonl.close()
        if self._parquet is not None:
            self._parquet.close()

    def release(self) -> None:
        """Close the files, finished or not."""
        self._jsonl.close()
        if self._parquet is not None:
            self._parquet.release()

    def manifest(self) -> dict[str, Any]:
        """Return the number of rows, the number of characters, and the files' hashes."""
        files = sorted(p for p in self.folder.iterdir() if p.stem == self.name)
        hashes = {p.name: sha256(p) for p in files}
        return {"rows": self.rows, "characters": self.characters, "sha256": hashes}


class Parquet:
    """A Parquet file of conversations: id, messages as a list of structs, and the columns of `keep` as one JSON text.

    Rows are written in groups of PARQUET_BYTES of text. Memory therefore follows that size and the longest row, not the
    run.
    """

    def __init__(self, path: Path):
        """Open a new file.

        Raises:
            BackendUnavailable: pyarrow is not installed.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise BackendUnavailable(
                'export: Parquet needs pyarrow; `pip install -e ".[distill]"` brings it, or give --no-parquet'
            ) from None
        turn = pyarrow.struct([(n, pyarrow.string()) for n in ("role", "content", "reasoning_content")])
        self._schema = pyarrow.schema(
            [("id", pyarrow.string()), ("messages", pyarrow.list_(turn)), ("columns", pyarrow.string())]
        )
        self._table = pyarrow.Table
        self._writer = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")
        self._held: list[dict[str, Any]] = []
        self._held_bytes = 0

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; it is written with the next group."""
        kept = {k: v for k, v in row.items() if k not in ("id", "messages")}
        turns = [{"reasoning_content": None, **t} for t in row["messages"]]
        columns = strict(kept)
        self._held.append({"id": row["id"], "messages": turns, "columns": columns})
        texts = [columns, *(text for turn in turns for text in turn.values() if text)]
        self._held_bytes += sum(map(len, texts)) + TURN_BYTES * len(turns)
        if self._held_bytes >= PARQUET_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._held, schema=self._schema))
        self._held, self._held_bytes = [], 0

    def close(self) -> None:
        """Write the last group and finish the file."""
        self._flush()
        self.release()

    def release(self) -> None:
        """Close the file, finished or not."""
        self._writer.close()


def describe(folder: DistillRun, ledger: Ledger, splits: dict[str, Split], left_out: dict[str, int]) -> dict[str, Any]:
    """Return the manifest of an export as plain data."""
    recipe = folder.about["recipe"]
    about = ("kind", "model", "base_url", "checkpoint", "licence", "terms", "authorisation", "price_in", "price_out")
    teachers = {name: {k: table[k] for k in about if k in table} for name, table in recipe.get("teachers", {}).items()}
    found = summary(folder, ledger)
    states: Counter[str] = Counter()
    for step in found["steps"]:
        states.update({s: n for s, n in step["rows"].items() if s != "ok"})
    states["ok"] = sum(s.rows for s in splits.values())
    return {
        "format": 1,
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "finished": all(s["done"] for s in found["steps"]),
        "splits": {name: split.manifest() for name, split in splits.items()},
        "rows_by_state": dict(states),
        "left_out": left_out,
        "steps": found["steps"],
        "spent": found["spent"],
        "teachers": teachers,
        "inputs": folder.about.get("inputs", {}),
        "recipe": recipe,
        "versions": {"made with": folder.about.get("versions", {}), "exported with": versions()},
    }
