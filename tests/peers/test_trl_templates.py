"""Chat templates of releases, as trl collects them: rendered as transformers renders them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from interlace.base.errors import ConfigError
from interlace.data.chat import ChatTemplate, read_template

SPEC = find_spec("trl")
FILES = [] if SPEC is None else sorted((Path(SPEC.origin).parent / "chat_templates").glob("*.jinja"))
TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]
PARTS = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TURNS]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Looks up.",
            "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "A word."}}},
        },
    }
]


def theirs(template, turns, tools):
    """What transformers renders, or None where the template fails there."""
    given = {"eos_token": "<e>", "bos_token": "<b>", "tools": tools}
    try:
        return render_jinja_template([turns], chat_template=template, add_generation_prompt=True, **given)[0][0]
    except Exception:  # whatever a template raises
        return None


@pytest.mark.skipif(not FILES, reason="trl is not installed")
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
def test_every_template_is_rendered_as_transformers_does(tools):
    rendered, chat = 0, ChatTemplate(eos="<e>", bos="<b>")
    for file in FILES:
        chat.template = read_template(str(file))
        for turns in (TURNS, PARTS):
            want = theirs(chat.template, turns, tools)
            if want is None:
                with pytest.raises(ConfigError):
                    chat.render(turns, True, tools)
            else:
                assert chat.render(turns, True, tools) == want, file.name
                rendered += 1
    chat.close()
    assert rendered > len(FILES)
