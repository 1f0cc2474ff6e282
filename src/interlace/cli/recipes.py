"""`interlace recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from interlace.cli.output import print_json, print_table, say
from interlace.cli.values import Place


def recipes(
    name: str | None = None,
    *,
    out: Place | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """List the recipes that come with interlace, or copy one to start from.

    Examples:

        interlace recipes

        interlace recipes hybrid-small

        interlace recipes distill-maths --out my-maths

    Parameters
    ----------
    name: str
        The recipe to copy; all are listed if not given.
    out: Path
        Where the copy goes; NAME.toml, or the folder NAME, here if not given.
    json: bool
        Print one JSON document.
    """
    import shutil

    from interlace.base.errors import ConfigError, nearest
    from interlace.base.files import disk_errors, user_path

    found = {path.stem: path for path in sorted(home().iterdir()) if path.suffix == ".toml" or any(path.glob("*.toml"))}
    if name is None:
        table = [{"name": n, "kind": kind(p), "about": about(p), "files": files(p)} for n, p in found.items()]
        if json:
            print_json({"recipes": table})
            return
        rows = [[str(r["name"]), str(r["kind"]), str(r["about"])] for r in table]
        print_table("recipes", ["name", "kind", "about"], rows, words=3)
        say("Copy one with: interlace recipes NAME")
        return
    if name not in found:
        raise ConfigError(
            f"recipes: no recipe is called {name!r}; {nearest(name, found)}; there are: {', '.join(found)}"
        )
    source = found[name]
    target = user_path(out or Path(source.name), ConfigError)
    if target.exists():
        raise ConfigError(f"{target}: exists; name another --out, or remove it")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    if json:
        print_json({"name": name, "copied": str(target)})
    else:
        say(f"copied to {target}; {main_file(target)} begins with how to start")


def home() -> Path:
    """The folder of recipes: inside the package where it was installed from a wheel, else in the source tree.

    Raises:
        Failure: there is none.
    """
    import interlace
    from interlace.base.errors import Failure

    package = Path(interlace.__file__).parent
    found = next((p for p in (package / "recipes", package.parents[1] / "recipes") if p.is_dir()), None)
    if found is None:
        raise Failure(f"recipes: {package} was installed without them; install interlace again")
    return found


def files(recipe: Path) -> list[str]:
    """Its files, below the folder of recipes."""
    inner = sorted(p for p in recipe.rglob("*") if p.is_file()) if recipe.is_dir() else [recipe]
    return [p.relative_to(home()).as_posix() for p in inner]


def main_file(recipe: Path) -> Path:
    """The TOML file that a verb is given."""
    if recipe.is_file():
        return recipe
    named = recipe / "recipe.toml"
    return named if named.is_file() else sorted(recipe.glob("*.toml"))[0]


def kind(recipe: Path) -> str:
    """The verb that runs it."""
    import tomllib

    tables = tomllib.loads(main_file(recipe).read_text(encoding="utf-8"))
    return "distill generate" if "steps" in tables else "study ladder" if "ladder" in tables else "train"


def about(recipe: Path) -> str:
    """The first sentence of its first comment."""
    lines = main_file(recipe).read_text(encoding="utf-8").splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return " ".join(comment).partition(". ")[0].rstrip(".")
