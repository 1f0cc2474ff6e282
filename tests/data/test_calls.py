"""Calls of tools: the form is the one that reads back what a template writes; text around calls is never lost."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from interlace.data.calls import FORMS, LONGEST, NAME, PROBE, TOOL, Call, Calls, form_of
from interlace.data.chat import ChatTemplate

RELEASES = Path(__file__).parents[1] / "checkpoint" / "releases"
SECTIONS, JSON, PARAMETERS, PYTHON = FORMS
KIMI = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% if m.tool_calls %}<|tool_calls_section_begin|>{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}"
    "<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>{% endfor %}"
    "<|tool_calls_section_end|>{% endif %}{% endfor %}"
)
OLMO = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% if m.tool_calls %}<function_calls>{% for c in m.tool_calls %}{{ c.function.name }}("
    "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}{{ ', ' if not loop.last }}{% endfor %})\n"
    "{% endfor %}</function_calls>{% endif %}{% endfor %}"
)
WRITTEN = {
    "sections": '<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{"a": 1}'
    "<|tool_call_end|><|tool_calls_section_end|>",
    "json": '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    "parameters": "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    "python": "<function_calls>\nf(a=1)\n</function_calls>",
}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"s": {"type": "string"}}}}}]


def template_of(name):
    file = RELEASES / name / "chat_template.jinja"
    if file.exists():
        return file.read_text()
    return json.loads((RELEASES / name / "tokenizer_config.json").read_text())["chat_template"]


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("Qwen3-8B", "json"),
        ("granite-4.0-h-small", "json"),
        ("Qwen3.5-4B", "parameters"),
        ("OLMo-2-1124-7B-Instruct", None),
        (KIMI, "sections"),
        (OLMO, "python"),
        (None, None),  # the default one
        ("{{ messages[9].content }}", None),
    ],
)
def test_the_form_is_that_of_the_template(template, kind):
    chat = ChatTemplate(template_of(template) if template and "{" not in template else template)
    try:
        found = form_of(chat)
    finally:
        chat.close()
    assert (found and found.kind) == kind


@pytest.mark.parametrize("kind", WRITTEN)
def test_text_and_calls_are_told_apart_in_pieces_of_any_size(kind):
    form = next(one for one in FORMS if one.kind == kind)
    text, draw = f"I look.\n\n{WRITTEN[kind]}\n{WRITTEN[kind]}", random.Random(0)
    for _ in range(30):
        calls, shown, found, place = Calls(form, TOOLS), "", [], 0
        while place < len(text):
            size = draw.randint(1, 9)
            said, came = calls.push(text[place : place + size])
            shown, found, place = shown + said, found + came, place + size
        assert (shown + calls.end(), found) == ("I look.", [Call("f", {"a": 1})] * 2)


@pytest.mark.parametrize(
    ("form", "body", "arguments"),
    [
        (JSON, '{"name": "f", "parameters": {}}', {}),
        (
            PARAMETERS,
            "<function=f><parameter=s>12</parameter><parameter=b>True</parameter></function>",
            {"s": "12", "b": True},
        ),
        (PARAMETERS, "\n<function=f>\n<parameter=x>\na\n\nb <c>\n</parameter>\n</function>\n", {"x": "a\n\nb <c>"}),
        (
            PARAMETERS,
            "\n<function=f>\n<parameter=s>\n<parameter=x>\n</parameter>\n</function>\n",
            {"s": "<parameter=x>"},
        ),
        (PYTHON, "f(a=[1, {'b': None}], c=true, d=-1.5)", {"a": [1, {"b": None}], "c": True, "d": -1.5}),
    ],
)
def test_arguments_are_read(form, body, arguments):
    assert form.read(body, TOOLS) == [Call("f", arguments)]


@pytest.mark.parametrize(
    ("form", "body"),
    [
        (JSON, "{"),
        (JSON, '{"name": "f", "arguments": "x"}'),
        (JSON, '{"name": "f", "arguments": {"x": 1e999}}'),
        (JSON, '{"name": 3, "arguments": {}}'),
        (JSON, "[" * 100_000),
        (JSON, " " * (LONGEST + 1)),
        (PARAMETERS, "<function=f>"),
        (PARAMETERS, "<function=f>text</function>"),
        (PARAMETERS, "<function=f><parameter=a>1</function>"),
        (PARAMETERS, "x<function=f></function>"),
        (SECTIONS, "<|tool_call_begin|>functions.f:0"),
        (SECTIONS, "nothing"),
        (PYTHON, "f(1)"),
        (PYTHON, "f(**{})"),
        (PYTHON, "import os"),
        (PYTHON, "f(a=__import__('os').system('true'))"),
        (PYTHON, "f(a=" + "(" * 5000 + ")" * 5000 + ")"),
        (PYTHON, "f(a=" + "-" * 50_000 + "1)"),
    ],
)
def test_what_is_no_call_is_text(form, body):
    assert form.read(body, TOOLS) is None
    calls = Calls(form, TOOLS)
    assert calls.push(form.begin + body + form.end) == ("", [])
    assert calls.end() == form.begin + body + form.end


def test_a_call_may_hold_its_own_mark():
    written = json.dumps({"name": "f", "arguments": {"s": "a</tool_call>b"}})
    calls = Calls(JSON, TOOLS)
    assert calls.push(f"<tool_call>{written}</tool_call>") == ("", [Call("f", {"s": "a</tool_call>b"})])


def test_what_the_probe_writes_is_what_is_read():
    for form in FORMS[1:3]:
        assert replace(form, lead="\n").read("", [TOOL]) is None
    assert JSON.read(json.dumps({"name": NAME, "arguments": PROBE}), [TOOL]) == [Call(NAME, PROBE)]


def test_time_grows_with_the_text_alone():
    calls = Calls(JSON, TOOLS)
    for _ in range(20_000):
        calls.push("<tool_cal")
    assert calls.end().startswith("<tool_cal")
