"""The steps by kind; a new step is one line here."""

from __future__ import annotations

from interlace.distill.steps.ask import Generate, Rewrite
from interlace.distill.steps.base import Step
from interlace.distill.steps.choose import Best, Filter, Render
from interlace.distill.steps.grade import Grade
from interlace.distill.steps.instruct import Evolve, SelfInstruct
from interlace.distill.steps.near import Decontaminate, Dedup
from interlace.distill.steps.sources import Jsonl, Table, Texts
from interlace.distill.steps.verify import Verify

KINDS: dict[str, type[Step]] = {
    "jsonl": Jsonl,
    "text": Texts,
    "table": Table,
    "template": Render,
    "generate": Generate,
    "rewrite": Rewrite,
    "self_instruct": SelfInstruct,
    "evolve": Evolve,
    "grade": Grade,
    "verify": Verify,
    "best": Best,
    "filter": Filter,
    "dedup": Dedup,
    "decontaminate": Decontaminate,
}
