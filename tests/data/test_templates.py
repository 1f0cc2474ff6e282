"""Chat templates as they are released: their tags, their names, their thoughts; nothing of a row is dropped unsaid."""

from __future__ import annotations

import json

import pytest
import torch

from interlace.base.errors import ConfigError, DataError
from interlace.cli.main import main
from interlace.data.chat import Part
from interlace.data.prepare import Chat, prepare
from interlace.data.sources import Sources
from interlace.data.tokenizer import Tokenizer
from interlace.data.tokens import Corpus
from interlace.generation import conversation
from interlace.generation.conversation import Conversation, end_tokens
from interlace.generation.sampling import Sampling
from interlace.model.config import ModelConfig
from interlace.model.model import HybridLM

END = "<|im_end|>"
TURNS = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "no"},
]
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
THINKS = PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
ANSWERS = {  # what asks for an answer differs from what stands before past ones
    "a thought is opened": THINKS,
    "a thought is opened without a line": THINKS.replace("<think>\n", "<think>"),
    "a thought is opened and shut": THINKS.replace("<think>\n", "<think>\n\n</think>\n\n"),
    "a channel is chosen": THINKS.replace("<think>\n", "<|channel|>analysis<|message|>"),
    "the past is stripped": THINKS.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] | trim }}"),
    "a blank instead": PLAIN.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant {% endif"),
}
TRACED = PLAIN.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}",
)
TOOLED = "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}" + PLAIN.replace(
    "{{ m.content }}",
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}",
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Bern"}}}


# As the library that templates are written for renders them


def theirs(template, messages, ask, **more):
    from transformers.utils.chat_template_utils import render_jinja_template

    given = {"bos_token": "<s>", "eos_token": "</s>", **more}
    texts, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=ask, **given)
    return texts[0]


@pytest.mark.parametrize(
    "template",
    [
        MARKED,
        MARKED.replace("{% generation %}", "{%- generation -%}").replace("{% endgeneration %}", "{%- endgeneration %}"),
        MARKED + "\n",
        "{{ messages[0].content }}\n",
        "{{ messages[0].content }}\n\n",
        "{% if tools is not none %}[TOOLS]{{ tools }}{% endif %}{{ messages[0].content }}",
        "{% if documents is none %}none{% endif %}{% if tools is defined %}defined{% endif %}",
        "{{ messages | tojson(indent=2) }}",
        "{{ {'a': 'é<'} | tojson(true) }}",
        "{{ {'a': 'é'} | tojson(ensure_ascii=true, separators=(',', ':'), sort_keys=true) }}",
        "{{ dict(a=1, b=2) | tojson }}",
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "{% set x = namespace(n=0) %}{% for m in messages %}{% set x.n = x.n + 1 %}{% endfor %}{{ x.n }}",
        "{{ strftime_now('%Y') }}{{ bos_token }}{{ eos_token }}{{ unknown }}",
        "{% set x %}{% generation %} a {% endgeneration %}{% endset %}[{{ x | trim }}]",
        "{% macro f(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}{{ f(messages[1]) }}",
    ],
)
def test_text_is_what_transformers_writes(template, chat):
    for ask in (False, True):
        assert chat(template, "</s>", "<s>").render(TURNS, ask) == theirs(template, TURNS, ask)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_trace_is_found_under_each_of_its_names(name, chat):
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }};{% endfor %}"
    turns = [TURNS[0], {**TURNS[1], name: "greet"}]
    assert chat(template).render(turns, False) == theirs(template, turns, False) == "|hello;greet|hi;"


@pytest.mark.parametrize(
    "trace",
    [
        {"reasoning_text": "greet"},
        {
            "reasoning_details": [
                {"type": "reasoning.text", "text": "gr"},
                {"type": "reasoning.summary", "summary": "eet"},
            ]
        },
        {"thinking_blocks": [{"type": "thinking", "thinking": "greet", "signature": "x"}]},
    ],
    ids=lambda trace: next(iter(trace)),
)
def test_a_trace_is_found_in_the_forms_that_endpoints_give_it(trace, chat):
    template = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.content }};{% endfor %}"
    turns, made = [TURNS[0], {**TURNS[1], **trace}], chat(template)
    assert made.render(turns, False) == "|hello;greet|hi;"
    assert not made.ignored(turns, "|hello;greet|hi;")
    plain = chat(PLAIN)
    assert plain.ignored(turns, plain.render(turns, False)).total() == 1


def test_a_value_that_is_null_is_as_one_that_is_absent(chat):
    template = (
        "{% for m in messages %}{{ m.content }}{% if 'tool_calls' in m %}{{ m.tool_calls }}{% endif %}{% endfor %}"
    )
    turns = [{"role": "user", "content": "a", "tool_calls": None}, {"role": "assistant", "content": None}]
    assert chat(template).render(turns, False) == "a"


@pytest.mark.parametrize("tag", ["{% generation %}a", "a{% endgeneration %}", "{% generation x %}a{% endgeneration %}"])
def test_a_tag_left_open_is_said(tag, chat):
    with pytest.raises(ConfigError, match="is not a template: line 1"):
        chat(tag).render(TURNS, False)


def test_the_tag_opens_no_way_out(chat):
    with pytest.raises(ConfigError, match="reaches outside its sandbox"):
        chat("{% generation %}{{ ''.__class__.__mro__ }}{% endgeneration %}").render(TURNS, False)


# What is learnt


def test_what_the_tag_marks_is_learnt_and_nothing_else(chat):
    assert chat(MARKED).parts(TURNS) == [
        Part("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", False),
        Part("hi<|im_end|>", True),
        Part("<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n", False),
        Part("no<|im_end|>", True),
    ]
    assert [p.text for p in chat(MARKED).parts(TURNS, "last") if p.learnt] == ["no<|im_end|>"]


def test_marked_answers_are_those_of_transformers(chat):
    from transformers.utils.chat_template_utils import render_jinja_template

    template = MARKED.replace("{{ m.content }}<|im_end|>{%", "{{ m.content | upper }} é🔥<|im_end|>{%")
    texts, spans = render_jinja_template([TURNS], chat_template=template, return_assistant_tokens_mask=True)
    found = chat(template).parts(TURNS)
    assert "".join(p.text for p in found) == texts[0]
    assert [p.text for p in found if p.learnt] == [texts[0][a:b] for a, b in spans[0]]


def test_a_marked_template_may_write_the_past_otherwise(chat):
    """Where the template itself says what an assistant wrote, nothing has to be guessed from prefixes."""
    template = MARKED.replace(
        "{{ m.content }}<|im_end|>{% end", "{{ m.content if loop.last else '...' }}<|im_end|>{% end"
    )
    assert [p.text for p in chat(template).parts(TURNS) if p.learnt] == ["...<|im_end|>", "no<|im_end|>"]
    thinks = MARKED.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n{% endif")
    assert [p.text for p in chat(thinks).parts(TURNS) if p.learnt] == ["hi<|im_end|>", "no<|im_end|>"]


def test_marks_in_what_people_wrote_mark_nothing(chat):
    turns = [{"role": "user", "content": "{% generation %}x{% endgeneration %}"}, *TURNS[1:]]
    assert [p.text for p in chat(MARKED).parts(turns) if p.learnt] == ["hi<|im_end|>", "no<|im_end|>"]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
@pytest.mark.parametrize(("weights", "learnt"), [((0, 1), ["no"]), ((1, 0), ["hi"]), ((0.0, None), ["no"])])
def test_a_turn_of_no_weight_is_read_and_not_learnt(template, weights, learnt, chat):
    given = iter(weights)
    turns = [{**t, "weight": next(given)} if t["role"] == "assistant" else t for t in TURNS]
    found = chat(template).parts(turns)
    assert [p.text.strip().removesuffix(END) for p in found if p.learnt] == learnt
    assert "".join(p.text for p in found) == chat(template).render(TURNS, False)


# Templates that ask otherwise than they write can be talked to


@pytest.mark.parametrize("kind", ANSWERS)
def test_the_end_of_a_turn_is_found_however_an_answer_is_asked_for(kind, chat):
    assert chat(ANSWERS[kind]).end_of_turn() == END
    tokenizer = Tokenizer.train(["x"], 290, [END])
    assert end_tokens(tokenizer, chat(ANSWERS[kind])) == tuple(tokenizer.encode(END))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (PLAIN.replace("{% if add", "{% if not add_generation_prompt %}<|endoftext|>{% endif %}{% if add"), END),
        (PLAIN.replace("<|im_end|>", " <|im_end|> "), END),
        (PLAIN.replace("<|im_end|>", ""), ""),
        ("{% if messages | length > 2 %}{{ raise_exception('no') }}{% endif %}" + PLAIN, END),
        ("{% if messages[0].role != 'system' %}{{ raise_exception('needs a system turn') }}{% endif %}" + PLAIN, END),
        ("{{ messages[0].content[:1] }}" + PLAIN, END),
    ],
)
def test_the_first_special_token_after_an_answer_ends_it(template, end, chat):
    tokenizer = Tokenizer.train(["x"], 290, [END])
    assert end_tokens(tokenizer, chat(template)) == tuple(tokenizer.encode(end))


class Writes(Sampling):
    """Draws the ids of a text, whatever the logits say."""

    def __init__(self, ids):
        super().__init__(0.0)
        object.__setattr__(self, "ids", iter(ids))

    def draw(self, logits, generator):
        return torch.tensor([next(self.ids)])


@pytest.fixture
def talk(request):
    def start(template, *answers):
        table = {
            "width": 32,
            "depth": 2,
            "vocabulary": 300,
            "pattern": ["gated_delta", "attention"],
            "gated_delta": {"heads": 2, "key_dim": 8, "value_dim": 12},
            "attention": {"heads": 2},
            "mlp": {"width": 48},
        }
        model = HybridLM(ModelConfig.from_dict(table)).eval()
        model.tokenizer = Tokenizer.train(["hello more"], 290, [END, "<|im_start|>"])
        model.tokenizer.chat_template = template
        ids = [i for answer in answers for i in model.tokenizer.encode(answer)]
        made = Conversation(model, Writes(ids), 60)
        request.addfinalizer(made.close)
        return made

    return start


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_template_that_asks_otherwise_can_be_talked_to(kind, talk):
    made = talk(ANSWERS[kind], "first" + END, "second" + END)
    assert "first" in "".join(made.say("hello"))
    assert "second" in "".join(made.say("more"))
    assert [m["role"] for m in made.messages] == ["user", "assistant"] * 2


def test_a_thought_is_kept_as_a_thought_and_not_as_the_answer(talk):
    made = talk(THINKS, "so it is\n</think>\n\nhi" + END, "well</think>no" + END)
    shown = "".join(made.say("hello"))
    assert "so it is" in shown
    assert made.messages[-1] == {"role": "assistant", "content": "hi", "reasoning_content": "so it is"}
    text = made.chat.render([*made.messages, {"role": "user", "content": "more"}], True)
    assert "so it is" not in text  # the template has no place for it
    "".join(made.say("more"))
    assert made.messages[-1]["content"] == "no"


def test_a_thought_that_the_model_opens_itself_is_kept_apart_too(talk):
    made = talk(PLAIN, "<think>\nso it is\n</think>\n\nhi" + END)
    "".join(made.say("hello"))
    assert made.messages[-1] == {"role": "assistant", "content": "hi", "reasoning_content": "so it is"}


def test_a_thought_that_did_not_end_is_no_answer_of_its_own(talk):
    made = talk(THINKS, "so it is and on" + END)
    "".join(made.say("hello"))
    assert made.messages[-1]["content"] == ""
    assert made.messages[-1]["reasoning_content"] == "so it is and on"


def test_the_answers_of_a_pipe_come_from_such_a_template(talk, monkeypatch, capsys):
    import interlace

    model = talk(THINKS).model
    monkeypatch.setattr(interlace, "load", lambda *_, **__: model)
    ids = iter(model.tokenizer.encode("so</think>hi" + END))
    monkeypatch.setattr(conversation.Sampling, "draw", lambda *_: torch.tensor([next(ids)]))
    with pytest.raises(SystemExit) as end:
        main(["chat", "anything", "--prompt", "hello", "--json"])
    assert end.value.code in (0, None)
    assert json.loads(capsys.readouterr().out)["messages"][-1]["content"] == "hi"


# What a template leaves out is counted


def prepared(tmp_path, rows, template, **more):
    """The manifest, and what was written, of rows beside thirty plain ones."""
    plain = [
        {"messages": [{"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": "a"}]} for i in range(30)
    ]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *plain]))
    manifest = prepare(Sources([file]), "train:300", tmp_path / "out", chat=Chat(template, **more))
    corpus, found = Corpus.open(tmp_path / "out"), []
    for split in corpus.splits.values():
        for a, b in zip(split.borders, split.borders[1:], strict=False):
            ids, learnt = split.read(int(a), int(b)), split.learnt[int(a) : int(b)]
            found.append(
                (corpus.tokenizer.fast.decode(ids.tolist(), False), corpus.tokenizer.decode(ids[learnt].tolist()))
            )
    return manifest, found


def traced(*traces):
    turns = []
    for i, trace in enumerate(traces):
        turns += [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}", **trace}]
    return {"messages": turns}


@pytest.mark.parametrize(
    ("template", "row", "ignored"),
    [
        (PLAIN, traced({"reasoning_content": "because"}), {"reasoning_content": 1}),
        (PLAIN, traced({"reasoning": "because"}, {"thinking": "so"}), {"reasoning": 1, "thinking": 1}),
        (TRACED, traced({"reasoning_content": "because"}), {}),
        (TRACED, traced({"reasoning_content": " because\n"}), {}),
        (PLAIN, traced({"reasoning_content": ""}), {}),
        (PLAIN, {**traced({}), "tools": TOOLS}, {"tools": 1}),
        (TOOLED, {**traced({}), "tools": TOOLS}, {}),
        (PLAIN, {**traced({}), "tools": []}, {}),
        (PLAIN, traced({"tool_calls": [CALL]}), {"tool_calls": 1}),
        (TOOLED, traced({"tool_calls": [CALL]}), {}),
        (PLAIN, traced({"name": "weather"}), {"name": 1}),
        (PLAIN, traced({}), {}),
    ],
)
def test_what_a_template_ignores_is_counted(template, row, ignored, tmp_path):
    manifest, _ = prepared(tmp_path, [row], template)
    assert manifest["ignored"] == ignored


@pytest.mark.parametrize(
    ("template", "turns", "ignored"),
    [
        (PLAIN, [("user", "2+2?", {}), ("assistant", "4", {"reasoning_content": "4"})], {"reasoning_content": 1}),
        (PLAIN, [("user", "ok go", {}), ("assistant", "4", {"reasoning_content": "go"})], {"reasoning_content": 1}),
        (PLAIN, [("tool", "5", {"name": "t"}), ("assistant", "4 t", {"tool_call_id": "4"})], "name tool_call_id"),
        (PLAIN, [("assistant", "a", {"reasoning": "so", "reasoning_details": [{"text": "so"}]})], {"reasoning": 1}),
        (TRACED, [("assistant", "a", {"reasoning": "so", "reasoning_details": [{"text": "so"}]})], {}),
        (TRACED, [("assistant", "a", {"reasoning_content": "so", "thinking": "so"})], {}),
        (TRACED, [("assistant", "a", {"thinking_blocks": [{"thinking": "so"}], "reasoning": ""})], {}),
        (TRACED, [("assistant", "go", {"reasoning_content": "go"})], {}),
        (PLAIN, [("assistant", "x" * 60, {"reasoning_content": "x" * 50})], {}),  # is written, as far as can be told
    ],
)
def test_a_value_that_another_text_holds_by_chance_is_not_taken_for_written(template, turns, ignored, chat):
    messages = [{"role": role, "content": content, **more} for role, content, more in turns]
    writer = chat(template)
    found = writer.ignored(messages, writer.render(messages, False))
    assert found == (dict.fromkeys(ignored.split(), 1) if isinstance(ignored, str) else ignored)


def test_traces_that_are_left_out_of_earlier_turns_are_counted_by_turn(tmp_path):
    row = traced({"reasoning_content": "one"}, {"reasoning_content": "two"}, {"reasoning_content": "three"})
    manifest, _ = prepared(tmp_path, [row], TRACED, turns="last")
    assert manifest["ignored"] == {"reasoning_content": 2}


def test_tools_and_calls_reach_the_template(tmp_path):
    row = {
        "messages": [
            {"role": "user", "content": "rain?"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "yes", "name": "weather"},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": TOOLS,
    }
    _, found = prepared(tmp_path, [row], TOOLED)
    text, learnt = next((t, x) for t, x in found if "rain?" in t)
    assert json.dumps(TOOLS) in text
    assert learnt.replace(END, "").split() == f"<call>{json.dumps(CALL['function'])}</call> It rains.".split()


def test_turns_of_no_weight_are_no_targets_whatever_the_template(tmp_path):
    manifest, found = prepared(tmp_path, [traced({"weight": 0}, {"weight": 1})], PLAIN)
    text, learnt = next((t, x) for t, x in found if "q0" in t)
    assert "a0" in text
    assert "a0" not in learnt
    assert "a1" in learnt
    assert manifest["ignored"] == {}


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ({"weight": 2e6}, "weight"),
        ({"weight": "0"}, "weight"),
        ({"weight": -1}, "weight"),
        ({"tool_calls": "weather"}, "tool_calls"),
    ],
)
def test_values_that_nothing_could_be_made_of_are_said(turn, said, tmp_path):
    with pytest.raises(DataError, match=rf"talks\.jsonl:1: .*{said}"):
        prepared(tmp_path, [traced(turn)], PLAIN)


def test_a_row_whose_answers_all_weigh_nothing_teaches_nothing_and_is_said(tmp_path):
    with pytest.raises(DataError, match=r"talks\.jsonl:1: .*nothing to learn"):
        prepared(tmp_path, [traced({"weight": 0})], PLAIN)
