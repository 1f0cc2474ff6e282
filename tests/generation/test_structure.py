"""Answers of a form: whatever the model would say, the answer keeps it; what would not be kept is refused by name."""

from __future__ import annotations

import json
import random
import re
import time

import jsonschema
import pytest
import torch

import interlace
from interlace.base.errors import ConfigError
from interlace.data.tokenizer import Tokenizer
from interlace.generation import structure as structures
from interlace.generation.engine import Engine
from interlace.generation.structure import Grammars, Shape, Structure
from interlace.model.presets import preset

VOCABULARY = 320
CALL = Structure.lark('start: "f(" /[0-9]+/ ")"')
NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
}
KEPT = [
    {"minimum": 3},
    {"type": "number", "minimum": 3.5, "maximum": 7},
    {"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.2},
    {"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 100},
    {"type": "integer", "multipleOf": 7, "minimum": 50, "maximum": 1000},
    {"type": "number", "multipleOf": 0.25},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "pattern": "b"},
    {"type": "string", "pattern": "^(a|b)+$", "maxLength": 3},
    *({"type": "string", "format": name} for name in ("date", "date-time", "duration", "email", "hostname")),
    *({"type": "string", "format": name} for name in ("ipv4", "ipv6", "time", "uri", "uuid")),
    {"type": "string", "format": "date", "pattern": "-02-29$"},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3, "uniqueItems": False},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x"}], "items": False},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"const": 2}}, "required": ["b"]},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "null"}},
    {"type": "object", "required": ["z"], "additionalProperties": {"type": "integer"}},
    {"type": "object", "minProperties": 1, "maxProperties": 2},
    {"enum": [1, "a", None, {"x": [1, 2]}, 1.5, True]},
    {"const": {"a": {"b": []}}},
    {"type": ["integer", "null"]},
    {"anyOf": [{"minimum": 5}, {"maxLength": 2}], "type": ["integer", "string"]},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {"oneOf": [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in "ab"]},
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]},
    {"allOf": [{"type": "object", "properties": {n: {"type": "null"}}, "required": [n]} for n in "ab"]},
    {"$defs": {"n": {**NODE, "required": ["v", "next"], "additionalProperties": False}}, "$ref": "#/$defs/n"},
    {"definitions": {"n": {"type": "integer"}}, "$ref": "#/definitions/n", "minimum": 4},
    {
        "type": "object",
        "properties": {"a/b": {"type": "integer"}, "c~": {"$ref": "#/properties/a~1b"}},
        "required": ["a/b", "c~"],
    },
    {"title": "t", "description": "d", "type": "object", "properties": {"a": {"default": 3, "type": "integer"}}},
    {},
]
REFUSED = [
    ({"type": "object", "patternProperties": {"^a": {}}}, "#/patternProperties: 'patternProperties' would not be"),
    ({"properties": {"a": {"not": {}}}}, "#/properties/a/not: 'not' would not be enforced"),
    ({"items": {"type": "array", "uniqueItems": True}}, "#/items/uniqueItems"),
    ({"items": {"contains": {"const": 1}}}, "#/items/contains"),
    ({"allOf": [{}, {"if": {}, "then": {}}]}, "#/allOf/1/if"),
    ({"$defs": {"a/b": {"propertyNames": {}}}}, r"#/\$defs/a~1b/propertyNames"),
    ({"dependentRequired": {}}, "#/dependentRequired"),
    ({"unevaluatedProperties": False}, "#/unevaluatedProperties"),
    ({"x-guidance": {"lenient": True}}, "#/x-guidance"),
    ({"nullable": True, "type": "string"}, "#/nullable.*null"),
    ({"type": "object", "minProperties": 2}, "#/minProperties: is enforced up to 1"),
    ({"type": "string", "format": "iri"}, "#/format: is enforced for date"),
    ({"type": "text"}, "#/type: must be one of array"),
    ({"maximum": 3, "exclusiveMaximum": True}, "#/exclusiveMaximum: must be a finite number, got true"),
    ({"minLength": -1}, "#/minLength"),
    ({"multipleOf": 999983}, "#/multipleOf"),
    ({"items": [{}]}, "#/items: must be a schema"),
    ({"properties": {"a": {"$ref": "https://example.com/a"}}}, r"#/properties/a/\$ref: must lead to"),
    ({"$ref": "#/$defs/none"}, r"#/\$ref"),
    ({"enum": []}, "#/enum"),
    ({"title": "x" * (70 << 10)}, "at most 65,536 bytes"),
    ({"properties": {f"p{i}": {} for i in range(2500)}}, "at most 2,000 schemas"),
    ("text", "must be a schema"),
]
UNMADE = [  # which are in order, and of which no grammar is made
    ({"properties": {"a": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}}, "#/properties/a: oneOf"),
    ({"items": {"type": "string", "pattern": "(?=a)b"}}, "#/items: "),
    (
        {"type": "object", "properties": {"n": {"allOf": [{"type": "integer"}, {"type": "null"}]}}, "required": ["n"]},
        "#",
    ),
    ({"$ref": "#"}, "schema: #: "),
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(['{"a": [1, 2], "b": "the quick brown fox"}\n'] * 3, 300)


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return Grammars(tokenizer, VOCABULARY, [tokenizer.eos])


def drawn(grammars, tokenizer, structure, draw, most=300):
    """Draw an answer of a form as a model would that knows nothing; return it, or None if it did not end."""
    shape = Shape(grammars, structure, [tokenizer.eos], VOCABULARY)
    made = []
    while not shape.met and len(made) < most:
        logits = shape.mask(torch.tensor([draw.gauss(0, 3) for _ in range(VOCABULARY)]))
        logits[tokenizer.eos] += 6  # so that most end
        token = int(logits.argmax())
        if token == tokenizer.eos:
            break
        shape.push(token)
        made.append(token)
    else:
        if not shape.met:
            return None
    return b"".join(map(grammars.bytes_of, made)).decode()


@pytest.mark.parametrize("schema", KEPT, ids=json.dumps)
def test_every_answer_is_valid(grammars, tokenizer, schema):
    draw, found = random.Random(0), set()
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    structure = Structure.json_schema(schema)
    for _ in range(30):
        if (text := drawn(grammars, tokenizer, structure, draw)) is not None:
            validator.validate(json.loads(text))
            found.add(text)
    assert found


@pytest.mark.parametrize(("schema", "said"), REFUSED, ids=lambda one: json.dumps(one)[:50])
def test_what_would_not_be_enforced_is_refused(schema, said):
    with pytest.raises(ConfigError, match=said) as caught:
        Structure.json_schema(schema, "response_format")
    assert str(caught.value).startswith("response_format: ")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(("schema", "said"), UNMADE, ids=lambda one: json.dumps(one)[:50])
def test_what_cannot_be_made_is_refused_with_its_place(grammars, schema, said):
    with pytest.raises(ConfigError, match=said):
        grammars.matcher(Structure.json_schema(schema))


def test_deep_schemas_are_refused():
    schema = {}
    for _ in range(60):
        schema = {"items": schema}
    with pytest.raises(ConfigError, match="nested deeper"):
        Structure.json_schema(schema)


def test_digits_and_letters_of_a_pattern_are_those_of_json_schema(grammars, tokenizer):
    pattern, draw = r"^\d[\w-]{3}\D[\W5]\/\\d$", random.Random(3)
    structure = Structure.json_schema({"type": "string", "pattern": pattern})
    for _ in range(30):
        assert re.search(pattern, json.loads(drawn(grammars, tokenizer, structure, draw)), re.ASCII)


def test_days_are_those_of_the_calendar(grammars, tokenizer):
    draw, structure = (
        random.Random(1),
        Structure.json_schema({"type": "string", "format": "date", "pattern": "-02-29$"}),
    )
    years = {int(drawn(grammars, tokenizer, structure, draw)[1:5]) for _ in range(60)}
    assert len(years) > 20
    assert all(y % 4 == 0 and (y % 100 or y % 400 == 0) for y in years)


@pytest.mark.parametrize(
    ("structure", "pattern"),
    [
        (Structure.regex(r"[a-c]{2,4}-[0-9]+!"), r"[a-c]{2,4}-\d+!"),
        (Structure.choice(["yes", 'no "x"', "maybe\n"]), r'yes|no "x"|maybe\n'),
        (CALL, r"f\(\d+\)"),
        (Structure.json_object(), r"(?s)\{.*\}"),
    ],
)
def test_other_forms(grammars, tokenizer, structure, pattern):
    draw = random.Random(2)
    found = [drawn(grammars, tokenizer, structure, draw) for _ in range(20)]
    found = [text for text in found if text is not None]
    assert len(found) > 3
    assert all(re.fullmatch(pattern, text) for text in found)


@pytest.mark.parametrize(
    "grammar", ["start: (", 'start: x\n%import "/etc/passwd"', "start: " + "(" * 30_000 + '"a"', ""]
)
def test_grammars_that_are_none_are_refused(grammars, grammar):
    with pytest.raises(ConfigError):
        grammars.matcher(Structure.lark(grammar))


def test_a_grammar_opens_no_file(grammars):
    with pytest.raises(ConfigError) as caught:
        grammars.matcher(Structure.lark('start: A\nA: "x"\n%import "/etc/passwd" (root)'))
    assert "root:" not in str(caught.value)


@pytest.mark.parametrize("choice", [[], [""], ["a"] * 1001, [1]])
def test_choices_that_are_none_are_refused(choice):
    with pytest.raises(ConfigError, match="choice: "):
        Structure.choice(choice)


@pytest.mark.parametrize(
    "pattern", ["((a{1000}){1000}){1000}", "a{1000000}", "(" * 20_000 + ")" * 20_000, "(a", r"(a)\1"]
)
def test_catastrophic_patterns_cost_little(grammars, pattern):
    began = time.monotonic()
    with pytest.raises(ConfigError):
        shape = Shape(grammars, Structure.regex(pattern), [0], VOCABULARY)
        for _ in range(3):
            shape.push(int(shape.mask(torch.zeros(VOCABULARY)).argmax()))
    assert time.monotonic() - began < 5


def test_a_pattern_that_backtracks_elsewhere_is_linear(grammars):
    shape = Shape(grammars, Structure.regex("(x+x+)+y"), [0], VOCABULARY)
    token = int(grammars.spelled(b"x")[0])
    began = time.monotonic()
    for _ in range(300):
        assert shape.mask(torch.zeros(VOCABULARY))[token] == 0
        shape.push(token)
    assert time.monotonic() - began < 5


def test_the_form_begins_after_a_text_and_may_come_again(grammars):
    shape = Shape(grammars, Structure(CALL.grammar, after="<call>", again=True), [0], VOCABULARY)
    free = torch.zeros(VOCABULARY)
    for token in grammars.spelled(b"free (text) <ca<call"):
        assert shape.mask(free) is free
        shape.push(token)
    for token in grammars.spelled(b">f"):  # the form begins within what a token may hold
        shape.push(token)
    assert {grammars.bytes_of(int(i))[:1] for i in torch.nonzero(shape.mask(free) == 0)} == {b"("}
    for token in grammars.spelled(b"(12)"):
        assert shape.mask(free)[token] == 0
        shape.push(token)
    assert shape.mask(free) is free
    for token in grammars.spelled(b"more <call>"):
        shape.push(token)
    assert {grammars.bytes_of(int(i))[:1] for i in torch.nonzero(shape.mask(free) == 0)} == {b"f"}
    assert not shape.met


def test_a_mark_in_a_thought_begins_nothing(grammars):
    shape = Shape(grammars, Structure(CALL.grammar, after="<call>", first="</think>", again=True), [0], VOCABULARY)
    free = torch.zeros(VOCABULARY)
    for token in grammars.spelled(b"I may <call> f(x) so</think> <call"):
        assert shape.mask(free) is free
        shape.push(token)
    shape.push(grammars.spelled(b">")[0])
    assert shape.mask(free) is not free


def test_what_follows_a_mark_in_its_own_token_must_fit():
    made = Tokenizer.train(["</think>S yes <call>{ no </think>\n\n"] * 30, 300)
    one = Grammars(made, VOCABULARY, [made.eos])
    ends = [n for n in range(made.fast.get_vocab_size()) if one.bytes_of(n).endswith((b">S", b">{"))]
    assert ends
    for token in ends:
        mark = one.bytes_of(token)[:-1].decode()
        with pytest.raises(ConfigError, match="ends the thought"):
            Shape(one, Structure(CALL.grammar, after=mark), [0], VOCABULARY).push(token)
        calls = Shape(one, Structure(CALL.grammar, after=mark, again=True), [0], VOCABULARY)
        calls.push(token)
        free = torch.zeros(VOCABULARY)
        assert calls.mask(free) is free  # it was no call of ours


def test_ends_beyond_the_vocabulary_are_none(grammars, tokenizer):
    shape = Shape(grammars, CALL, [tokenizer.eos, VOCABULARY + 5], VOCABULARY)
    assert shape.mask(torch.zeros(VOCABULARY)).isfinite().any()


def test_compiled_grammars_are_bounded(grammars, monkeypatch):
    monkeypatch.setattr(structures, "KEPT", 4)
    for i in range(9):
        grammars.matcher(Structure.choice([f"c{i}"]))
    assert len(grammars._kept) == 4


def test_a_form_that_grows_too_complex_fails_alone(tokenizer):
    torch.manual_seed(0)
    model = interlace.HybridLM(preset("tiny-hybrid").replace(vocabulary=VOCABULARY, init_std=0.2))
    model.tokenizer = tokenizer
    with Engine(model) as engine:
        good = engine.request("x", max_tokens=40, structure=Structure.json_object(), seed=1, temperature=1.0)
        alone = engine.batch([good])[0]
        grammar = Structure.regex("(a{0,300}b{0,300}){0,30}")
        grammars = structures.grammars_of(engine.model)
        grammars._kept[grammar.grammar] = broken = Broken(grammars.matcher(good.structure))
        bad = engine.request("x", max_tokens=40, structure=grammar, seed=2)
        with pytest.raises(ConfigError, match="regex: too complex"):
            engine.batch([bad])
        assert broken.copies
        assert engine.batch([good])[0].tokens == alone.tokens
    assert alone.text.startswith("{")


class Broken:
    """A matcher whose third token is too much for it."""

    def __init__(self, matcher):
        self.matcher, self.pushed, self.copies = matcher, 0, 0

    def __getattr__(self, name):
        return getattr(self.matcher, name)

    def deep_copy(self):
        self.copies += 1
        return Broken(self.matcher.deep_copy())

    def try_consume_tokens(self, tokens):
        self.pushed += len(tokens)
        return self.matcher.try_consume_tokens(tokens)

    def is_error(self):
        return self.pushed >= 3

    def get_error(self):
        return "too complex"
