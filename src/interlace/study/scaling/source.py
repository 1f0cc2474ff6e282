"""Read the points of a study from a CSV file, or from the folder of a ladder."""

from __future__ import annotations

from pathlib import Path

from interlace.base.errors import DataError
from interlace.base.files import user_path
from interlace.study.scaling.points import Points, read_csv

RESULTS = "results.csv"


def read_points(path: Path) -> tuple[Points, Path]:
    """Return (points, the CSV file they were read from).

    Raises:
        DataError: there is no such file, or it breaks a rule.
    """
    path = user_path(path)
    file = path / RESULTS if path.is_dir() else path
    if not file.is_file():
        what = (
            f"has no {RESULTS}; run the ladder first"
            if path.is_dir()
            else "no such file; name a CSV or a ladder's folder"
        )
        raise DataError(f"{path}: {what}")
    return read_csv(file), file
