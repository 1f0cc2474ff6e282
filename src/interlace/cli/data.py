"""`interlace data`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from interlace.cli.output import Meter, err, print_json, print_table, say, size
from interlace.cli.values import Named, Place

app = App(name="data", help="Text to token folders, and a look into them.")


@app.command
def prepare(
    *sources: Place,
    tokenizer: Named,
    out: Place,
    field: str = "text",
    held_out: float = 0.05,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Turn text files, folders, JSONL and gzip into token shards with a manifest.

    Examples:

        interlace data prepare notes/ book.txt --tokenizer train:4096 --out data/mine

        interlace data prepare rows.jsonl.gz --field answer --tokenizer data/mine/tokenizer.json --out data/rows

    Parameters
    ----------
    sources: Path
        Files and folders of text.
    tokenizer: str
        A tokenizer.json, or train:N to learn a byte-level BPE of N entries from the train split.
    out: Path
        The folder to make.
    field: str
        The key that holds the text in JSONL.
    held_out: float
        Share of documents to hold out, chosen by a hash of their name.
    json: bool
        Print the manifest as JSON.
    """
    from interlace.base.errors import DataError
    from interlace.base.files import user_path
    from interlace.data.prepare import prepare as run
    from interlace.data.sources import Sources

    if not sources:
        raise DataError("SOURCE: required, and not given; name files or folders of text")
    out = user_path(out)
    read = Sources(sources, field)
    with Meter() as meter:
        manifest = run(read, tokenizer, out, held_out_share=held_out, watch=meter.update)
    for name, reason in list(read.skipped.items())[:3]:
        say(f"skipped {name}: {reason}", console=err)
    if len(read.skipped) > 3:
        say(f"and {len(read.skipped) - 3} more, listed in {out / 'manifest.json'}", console=err)
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
