"""`interlace data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from interlace.cli.output import Meter, err, print_json, print_table, say, size
from interlace.cli.values import Named, Place, Whole

app = App(name="data", help="Text to token folders, and a look into them.")


@app.command
def prepare(
    *sources: Named,
    tokenizer: Named,
    out: Place,
    field: str = "text",
    kind: Literal["auto", "conversations", "pairs"] = "auto",
    held_out: float = 0.05,
    workers: Whole = 1,
    keep_duplicates: Annotated[bool, Parameter(negative="")] = False,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Turn text of any size into token shards with a manifest: text, JSONL, Parquet, gzip, zstd, folders, globs.

    Killed and started again, the same command goes on with the pieces that are left. Rows that cannot be used are
    counted, and kept in aside.jsonl of the folder.

    Examples:

        interlace data prepare notes/ book.txt --tokenizer train:4096 --out data/mine

        interlace data prepare rows.jsonl.gz --field answer --tokenizer data/mine/tokenizer.json --out data/rows

        interlace data prepare 'crawl/*.parquet' --tokenizer tok/tokenizer.json --out data/crawl --workers 8

        interlace data prepare 'hf:OWNER/NAME?config=en&split=train' --tokenizer tok/tokenizer.json --out data/hub

    Parameters
    ----------
    sources: str
        Files and folders of text, globs in quotes, or hf:OWNER/NAME for a data set of the hub (extra `datasets`).
    tokenizer: str
        A tokenizer.json, or train:N to learn a byte-level BPE of N entries from the train split.
    out: Path
        The folder to make.
    field: str
        The key, or the column, that holds the text of a row: of JSONL, Parquet and data sets of the hub.
    kind: str
        What rows with turns are: "conversations", "pairs" of answers, or "auto", which takes messages where a row has
        both.
    held_out: float
        Share of documents to hold out, chosen by a hash of their name.
    workers: int
        Processes that encode at the same time; the result is the same for any number.
    keep_duplicates: bool
        Keep documents with the same text; else only the first of them is kept.
    json: bool
        Print the manifest as JSON.
    """
    from json import loads

    from interlace.base.errors import DataError
    from interlace.base.files import user_path
    from interlace.data.encode import ASIDE
    from interlace.data.prepare import prepare as run
    from interlace.data.sources import Sources

    if not sources:
        raise DataError("SOURCE: required, and not given; name files or folders of text")
    if workers < 1:
        raise DataError(f"--workers: must be at least 1, got {workers}")
    out = user_path(out)
    read = Sources(sources, field, kind, aside=[])
    with Meter() as meter:
        manifest = run(
            read,
            tokenizer,
            out,
            held_out_share=held_out,
            watch=meter.update,
            workers=workers,
            drop_duplicates=not keep_duplicates,
        )
    for name, reason in list(read.skipped.items())[:3]:
        say(f"skipped {name}: {reason}", console=err)
    if len(read.skipped) > 3:
        say(f"and {len(read.skipped) - 3} more, listed in {out / 'manifest.json'}", console=err)
    if manifest["aside"]:
        with open(out / ASIDE, encoding="utf-8") as file:
            first = loads(next(file))
        say(f"{manifest['aside']:,} rows cannot be used, and are kept in {out / ASIDE}", console=err)
        say(f"the first is {first['where']}: {first['why']}", console=err)
    if manifest["duplicates"]:
        say(f"{manifest['duplicates']:,} documents were left out, since an earlier one has the same text", console=err)
    _show(out, manifest, json)


@app.command
def inspect(folder: Place, *, json: Annotated[bool, Parameter(negative="")] = False) -> None:
    """Show what a prepared folder holds, after comparing every file with its checksum.

    Example:

        interlace data inspect data/mine

    Parameters
    ----------
    folder: Path
        A folder that `interlace data prepare` wrote.
    json: bool
        Print one JSON document.
    """
    from interlace.data.tokens import Corpus

    corpus = Corpus.open(folder)
    corpus.verify()
    _show(folder, corpus.manifest, json)
    if not json:
        split = corpus.splits["train"]
        text = corpus.tokenizer.decode(split.read(0, min(60, split.count)).tolist())
        print_table("the first tokens of the train split", ["text"], [[repr(text)]])


def _show(folder: Path, manifest: dict, json: bool) -> None:
    if json:
        print_json(manifest)
        return
    rows = [
        [
            name,
            f"{s['documents']:,}",
            f"{s['tokens']:,}",
            size(s["bytes"]),
            f"{s['bytes'] / max(1, s['tokens']):.2f}",
            str(len(s["shards"])),
        ]
        for name, s in manifest["splits"].items()
    ]
    columns = ["split", "documents", "tokens", "text", "bytes/token", "shards"]
    print_table(f"{folder}: {manifest['tokenizer']['vocabulary']:,} token ids, checksums good", columns, rows)
