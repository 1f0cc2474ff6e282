"""The modules of operators that declare shapes, which are checked here and only here.

To check every function of the room took half of the tests' time.
"""

from __future__ import annotations

from pathlib import Path

OPS = Path(__file__).parents[1] / "src" / "interlace" / "ops"
MODULES = [
    f"interlace.ops.{file.parent.name}.{file.stem}"
    for file in sorted(OPS.glob("*/*.py"))
    if "Float[" in file.read_text(encoding="utf-8")
]
