"""Many requests at once: each answer is the one it would be alone, whatever comes, goes and is reused beside it."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch

import interlace
from interlace.base.errors import ConfigError, Failure, PromptTooLong
from interlace.data.tokenizer import Tokenizer
from interlace.generation import lookup, replay, snapshots
from interlace.generation import scheduler as scheduling
from interlace.generation.budget import Budget, parse_bytes
from interlace.generation.engine import Engine
from interlace.generation.pack import pack_for_decoding
from interlace.generation.penalties import Penalised, Penalties
from interlace.generation.request import Answer, Request
from interlace.generation.rows import JoinedRows, SlotRows, rows_for
from interlace.generation.sampling import Sampling
from interlace.generation.scheduler import Scheduler
from interlace.generation.snapshots import Snapshots
from interlace.generation.structure import Structure
from interlace.generation.text import generate_tokens
from interlace.model.presets import preset
from interlace.ops.core import kernels

KINDS = ["tiny-hybrid", "tiny-recurrent", "tiny-sliding", "tiny-kimi", "tiny-nemotron", "tiny-granite", "tiny-hyena"]


SHAPES = [
    Structure.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    Structure.regex("[a-f]{2,9}(,[0-9]+)*"),
    Structure(Structure.choice(["yes", "no"]).grammar, after="e", again=True),
]


def build(name="tiny-hybrid", **more):
    torch.manual_seed(0)
    return pack_for_decoding(interlace.HybridLM(preset(name).replace(init_std=0.2, **more)).eval())


def build_with_text(name):
    model = build(name, vocabulary=300)
    model.tokenizer = Tokenizer.train(["the quick brown fox, [1, 2]"] * 3, 300)
    return model


def budget(model, rows=5, states=1 << 30):
    return Budget(0, 0, states, states, Budget.of(model, 1 << 34, 1, 64).fixed, rows)


def asked(model, draw, texts):
    """A random request; some begin as others do."""
    vocabulary = model.config.vocabulary
    begin = draw.choice(texts)
    prompt = begin[: draw.randint(1, len(begin))] + [
        draw.randrange(vocabulary) for _ in range(draw.choice([0, 1, 5, 40]))
    ]
    sampling = draw.choice([Sampling(0), Sampling(1.0), Sampling(0.7, top_k=9), Sampling(1.2, top_p=0.8, min_p=0.02)])
    penalties = draw.choice(
        [Penalties(), Penalties(), Penalties(1.3, 0.5, 0.2), Penalties(bias=((3, 4.0), (5, -100.0)))]
    )
    shape = draw.choice([None, None, *SHAPES])
    how = {"seed": draw.randrange(1 << 40), "logprobs": 3, "structure": shape}
    return Request(tuple(prompt), draw.randint(1, 24), sampling, penalties, **how)


def run(model, requests, draw=None, reuse=False, rows=5, cancel=0.0, ahead=False):
    """Answer requests; with `draw` they come at random steps, and some are cancelled."""
    scheduler = Scheduler(model, budget(model, rows), reuse, ahead)
    answers, tickets, waiting = {}, {}, list(enumerate(requests))
    while waiting or not scheduler.idle:
        while waiting and (draw is None or draw.random() < 0.5):
            place, request = waiting.pop(0)
            tickets[scheduler.submit(request)] = place
            answers[place] = Answer(len(request.prompt))
        for ticket in tickets:
            ticket.cancelled = ticket.cancelled or (draw is not None and draw.random() < cancel)
        for ticket, piece in scheduler.step():
            answers[tickets[ticket]].add(piece)
    return [answers[place] for place in range(len(requests))], scheduler


@pytest.fixture
def short_parts(monkeypatch):
    """Prompts are read in several parts, and what a text foresees is tried whether that pays or not."""
    monkeypatch.setattr(scheduling, "PART", 16)
    monkeypatch.setattr(scheduling, "PREFILL", 48)
    monkeypatch.setattr(scheduling, "MILESTONES", (8, 16, 32, 64, 128, 256))
    monkeypatch.setattr(lookup, "GRAM", 1)
    monkeypatch.setattr(lookup, "RIGHT", 1)
    monkeypatch.setattr(lookup.Pace, "worth", lambda _, draft: draft >= 2)


def check_equal(model, count, seed):
    draw = random.Random(seed)
    texts = [[draw.randrange(model.config.vocabulary) for _ in range(60)] for _ in range(4)]
    requests = [asked(model, draw, texts) for _ in range(count)]
    alone = [run(model, [request])[0][0] for request in requests]
    for reuse, ahead in ((False, False), (True, False), (False, True), (True, True)):
        found, scheduler = run(model, requests, random.Random(seed), reuse, cancel=0.002, ahead=ahead)
        assert not reuse or scheduler.reused_tokens > 0
        assert not ahead or 0 < scheduler.foreseen_tokens <= scheduler.tried_tokens
        for request, one, many in zip(requests, alone, found, strict=True):
            length = len(many.tokens)
            assert many.finish == one.finish or many.finish == "cancelled"
            assert many.tokens == (one.tokens if many.finish != "cancelled" else one.tokens[:length]), request
            for a, b in zip(one.chosen, many.chosen, strict=False):
                assert abs(a.logprob - b.logprob) < 1e-4
                assert max(abs(x - y) for (_, x), (_, y) in zip(a.top, b.top, strict=True)) < 1e-4
    return requests, alone


@pytest.mark.parametrize("name", KINDS)
def test_a_batched_answer_is_the_answer_alone(name, short_parts):
    """Random prompts, draws, penalties, arrivals and cancellations, with states reused and not."""
    model = build_with_text(name)
    requests, alone = check_equal(model, 12, 1)
    for request, one in zip(requests, alone, strict=True):  # and it is what `generate` makes
        if request.penalties == Penalties() and request.structure is None:
            made = list(
                generate_tokens(
                    model,
                    list(request.prompt),
                    max_tokens=request.max_tokens,
                    sampling=request.sampling,
                    seed=request.seed,
                )
            )
            assert made == one.tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS[:6])
def test_hundreds_of_answers_are_those_alone(name, short_parts):
    """In a thousand requests, parts of what `test_a_thousand_answers_are_those_alone` asks."""
    check_equal(build_with_text(name), 25, 2)


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS[:6])
def test_a_thousand_answers_are_those_alone(name, short_parts):
    check_equal(build_with_text(name), 1000, 2)


def test_logprobs_are_those_of_one_pass_over_the_text():
    model = build()
    request = Request(tuple(range(20)), 12, Sampling(1.0), seed=5, logprobs=2)
    answer = run(model, [request])[0][0]
    with torch.inference_mode():
        logits, _ = model(torch.tensor([*request.prompt, *answer.tokens]))
    likely = logits.float().log_softmax(-1)[len(request.prompt) - 1 : -1]
    for row, token, chosen in zip(likely, answer.tokens, answer.chosen, strict=True):
        assert abs(float(row[token]) - chosen.logprob) < 1e-4
        assert [t for t, _ in chosen.top] == row.topk(2).indices.tolist()


def test_logprobs_of_a_prompt_are_those_of_one_pass(short_parts):
    model = build()
    draw = random.Random(3)
    request = Request(tuple(draw.randrange(61) for _ in range(100)), 3, Sampling(0), prompt_logprobs=2)
    found = run(
        model, [Request((1, 2), 30, Sampling(0)), request, Request(request.prompt, 3, Sampling(0))], reuse=True
    )[0]
    assert found[1].tokens == found[2].tokens
    assert [len(answer.prompt) for answer in found] == [0, 99, 0]
    with torch.inference_mode():
        likely = model(torch.tensor(request.prompt))[0].float().log_softmax(-1)[:-1]
    for row, token, chosen in zip(likely, request.prompt[1:], found[1].prompt, strict=True):
        assert abs(float(row[token]) - chosen.logprob) < 1e-4
        assert [t for t, _ in chosen.top] == row.topk(2).indices.tolist()


def test_rows_keep_their_memory_and_replay():
    """A step of as many rows as before is replayed; rows that leave are replaced by the last."""
    model = build()
    rows = rows_for(model, 4)
    assert isinstance(rows, SlotRows if kernels.available() else JoinedRows)
    assert isinstance(rows_for(build("tiny-hyena"), 4), JoinedRows)
    with torch.inference_mode():
        singles = [model(torch.tensor(text), state=model.empty_state(1, 30))[1] for text in ([1, 2], [3], [4, 5, 6])]
        want = [model(torch.tensor([7]), state=state.fork(0))[0][0] for state in singles]
    for state in singles:
        rows.join(state)
    found = rows.step([7, 7, 7])
    torch.testing.assert_close(found, torch.stack(want), rtol=0, atol=1e-5)
    assert rows.leave([0]) == ([2, 1] if isinstance(rows, SlotRows) else [1, 2])
    state, place = rows.place(0)
    assert state.one(place).positions.tolist() == [4 if isinstance(rows, SlotRows) else 2]


def test_a_step_that_cannot_be_replayed_is_captured_once(monkeypatch):
    """A head that looks at values: each step is then a plain pass."""
    model, captured = build(), []
    head, made = type(model).logits, replay._Operations
    monkeypatch.setattr(type(model), "logits", lambda self, x: head(self, x if float(x[0, 0]) < 1e9 else -x))
    monkeypatch.setattr(replay, "_Operations", lambda *given: captured.append(1) or made(*given))
    rows = rows_for(model, 2)
    if not isinstance(rows, SlotRows):
        pytest.skip("slots need the CPU's kernels")
    with torch.inference_mode():
        for token in range(2):
            rows.join(model(torch.tensor([token]), state=model.empty_state(1, 9))[1])
    for _ in range(4):
        rows.step([1, 2])
    assert len(captured) == 1
    assert not rows._steps[2][1]


def test_freed_slots_hold_nothing_of_those_who_left():
    model = build()
    rows = rows_for(model, 3)
    if not isinstance(rows, SlotRows):
        pytest.skip("slots need the CPU's kernels")
    with torch.inference_mode():
        for text in ([1, 2, 3], [4, 5]):
            rows.join(model(torch.tensor(text), state=model.empty_state(1, 8))[1])
    rows.step([6, 7])
    rows.leave([0, 1])
    for layer in rows.slots._layers():
        parts = layer.parts().values() if hasattr(layer, "window") and hasattr(layer, "memory") else [layer.table]
        assert all(not part.any() for part in parts)
    assert rows.slots.tensors() == [] or not any(x.any() for x in rows.slots.tensors())


def test_a_long_prompt_holds_nobody_up(short_parts):
    """While 200 tokens are read in parts of 16, an answer beside them gets a token at every step."""
    model = build()
    scheduler = Scheduler(model, budget(model), reuse=False)
    first = scheduler.submit(Request((1, 2), 30, Sampling(0)))
    scheduler.step()
    long = scheduler.submit(Request(tuple(i % 50 for i in range(200)), 2, Sampling(0)))
    steps = 0
    while not long.made:
        before = len(first.made)
        scheduler.step()
        assert len(first.made) == before + 1
        steps += 1
    assert steps == 13  # 12 parts of 16, and the rest


def test_a_hit_reads_only_what_differs_for_prompts_of_any_length():
    model = build()
    scheduler = Scheduler(model, budget(model))

    def ask(prompt, owner=""):
        before = scheduler.read_tokens
        ticket = scheduler.submit(Request(tuple(prompt), 3, Sampling(0), owner=owner))
        while not scheduler.idle:
            scheduler.step()
        return ticket, scheduler.read_tokens - before

    first, read = ask([5, 6, 7])
    assert (read, first.reused_tokens) == (3, 0)
    again, read = ask([5, 6, 7])
    assert (read, again.reused_tokens, again.made) == (0, 3, first.made)
    turn, read = ask([5, 6, 7, *first.made, 9])  # the state after the answer has read all of it but its last token
    assert (read, turn.reused_tokens) == (2, 5)
    other, read = ask([5, 6, 8])
    assert (read, other.reused_tokens) == (3, 0)
    stranger, read = ask([5, 6, 7], owner="somebody else")
    assert (read, stranger.reused_tokens) == (3, 0)


def ask_all(scheduler, prompts, together):
    """Return (tickets, how many prompt tokens were read)."""
    before, tickets = scheduler.read_tokens, []
    for prompt in prompts:
        tickets.append(scheduler.submit(Request(tuple(prompt), 2, Sampling(0))))
        while not together and not scheduler.idle:
            scheduler.step()
    while not scheduler.idle:
        scheduler.step()
    return tickets, scheduler.read_tokens - before


@pytest.mark.parametrize("together", [True, False])
def test_many_questions_after_one_long_text_read_it_once_or_twice(short_parts, together):
    """Nobody asked for the text alone: the state where two prompts part is kept for the others."""
    model = build()
    text = [i * 7 % 61 for i in range(400)]
    prompts = [[*text, i, 2 * i % 61, 5] for i in range(20)]
    scheduler = Scheduler(model, budget(model))
    tickets, read = ask_all(scheduler, prompts, together)
    assert read <= (400 if together else 800) + 20 * 3
    plain = Scheduler(model, budget(model), reuse=False)
    alone, read = ask_all(plain, prompts, together)
    assert read == 20 * 403
    assert [ticket.made for ticket in tickets] == [ticket.made for ticket in alone]


def test_a_prompt_that_parts_early_begins_at_a_milestone(short_parts):
    """Where nobody parted before; and no state is kept there that others would have to go for."""
    model = build()
    text = [i * 7 % 61 for i in range(400)]
    other = [*text[:300], *[60] * 103]
    scheduler = Scheduler(model, budget(model))
    assert ask_all(scheduler, [[*text, 1, 2, 3]], True)[1] == 403
    assert scheduler.counts().snapshots == 1 + 6 + 1  # after the prompt, at milestones, after the answer
    (ticket,), read = ask_all(scheduler, [other], True)
    assert read == 403 - 256
    (alone,), _ = ask_all(Scheduler(model, budget(model), reuse=False), [other], True)
    assert ticket.made == alone.made


def test_the_same_prompt_many_times_is_read_once(short_parts):
    model = build()
    scheduler = Scheduler(model, budget(model))
    tickets, read = ask_all(scheduler, [[1, 2, 3]] * 6, True)
    assert read == 3
    assert [ticket.reused_tokens for ticket in tickets] == [0] + [3] * 5
    assert all(ticket.made == tickets[0].made for ticket in tickets)


def test_a_conversation_costs_what_is_new_in_each_turn():
    model = build()
    scheduler = Scheduler(model, budget(model))
    text, reads = [1, 2, 3, 4], []
    for turn in range(10):
        before = scheduler.read_tokens
        ticket = scheduler.submit(Request(tuple(text), 6, Sampling(0)))
        while not scheduler.idle:
            scheduler.step()
        reads.append(scheduler.read_tokens - before)
        text += [*ticket.made, 10 + turn, 11]
    assert max(reads[1:]) <= 3 < len(text)


def test_snapshots_stay_within_their_bytes_and_the_oldest_goes_first():
    model = build()
    with torch.inference_mode():
        state = model(torch.tensor([1]), state=model.empty_state(1))[1]
    one = Snapshots(1 << 30)
    one.keep("", [1], state)
    kept = Snapshots(int(2.5 * one.nbytes))
    for token in (1, 2):
        assert kept.keep("", [token], state)
    assert kept.find("", [1, 9]) is not None  # now 2 is the oldest
    kept.keep("", [3], state)
    assert len(kept) == 2
    assert kept.nbytes <= kept.limit_bytes
    assert [kept.find("", [token, 9]) is None for token in (1, 2, 3)] == [False, True, False]
    assert kept.find("", [1]) is None  # without logits nothing can be drawn from it
    assert not Snapshots(10).keep("", [1], state)
    for times, fits in ((2, True), (1.99, False)):  # where it would have to be spare
        assert bool(Snapshots(int(times * one.nbytes)).keep("", [1], state, spare=True)) == fits
    kept.make_room(0)
    assert (len(kept), kept.nbytes, kept._lengths, kept._numbers, kept._users) == (0, 0, {}, {}, {})


@pytest.mark.parametrize("forgotten", [None, 0, 1, 2, 3])
def test_snapshots_of_one_sequence_share_what_they_have_in_common(forgotten):
    """Whatever of them is forgotten: each state is that of a whole copy, and what goes on from it changes no other."""
    model, text = build(), [i * 7 % 61 for i in range(400)]
    with torch.inference_mode():
        state, kept, wanted, after = model.empty_state(1, 400), Snapshots(1 << 30), [], 0
        for begin in range(0, 400, 100):
            state = model(torch.tensor(text[begin : begin + 100]), state=state)[1]
            after = kept.keep("", text[: begin + 100], state, after=after)
            wanted.append(state.fork(0))
        alone = Snapshots(1 << 30)
        alone.keep("", text, state)
        recurrent = kept.find("", [*text, 1]).state.nbytes
        assert kept.nbytes == alone.nbytes + 3 * recurrent + 4 * (100 + 200 + 300)  # tokens are int32
        if forgotten is not None:
            kept._forget(list(kept._kept)[forgotten])
        stretches = {s for snapshot in kept._kept.values() for s in snapshot.stretches}
        assert kept.nbytes == sum(x.nbytes for x in (*stretches, *kept._kept.values()))
        for turn, want in enumerate(wanted):
            found = kept.find("", [*text[: 100 * (turn + 1)], 60])
            if turn == forgotten:
                assert found is None or found.count == 100 * turn
                continue
            for _ in range(2):
                logits, _ = model(torch.tensor([1] * 50), state=found.restored(0))
                assert torch.equal(logits, model(torch.tensor([1] * 50), state=want.fork(0))[0])


def test_a_number_of_a_forgotten_snapshot_shares_nothing():
    """Not even with one that was made of the same tokens since, whose bits may differ."""
    model = build()
    with torch.inference_mode():
        state = model(torch.tensor([1, 2, 3]), state=model.empty_state(1))[1]
        kept = Snapshots(1 << 30)
        first = kept.keep("", [1, 2, 3], state)
        second = kept.keep("", [1, 2, 3], state)
        assert (len(kept), len(kept._users)) == (1, 1)
        kept.keep("", [1, 2, 3, 4], model(torch.tensor([4]), state=state.fork(0))[1], after=first)
        assert len(kept._users) == 2
        kept.keep("", [1, 2, 3, 5], model(torch.tensor([5]), state=state.fork(0))[1], after=second)
        assert [len(snapshot.stretches) for snapshot in kept._kept.values()] == [1, 1, 2]


def test_a_conversation_of_many_turns_is_kept_once():
    """Its keys and values, in the budget and in memory; snapshots after prompts and answers share them."""
    model = build()
    scheduler = Scheduler(model, budget(model))
    text = [1, 2, 3, 4]
    for turn in range(20):
        (ticket,), _ = ask_all(scheduler, [text], True)
        text += [*ticket.made, 10 + turn, 11]
    kept = scheduler.snapshots
    assert kept is not None
    assert len(kept) == 40
    stretches = {id(s): s for snapshot in kept._kept.values() for s in snapshot.stretches}.values()
    per_token = sum(cache.token_bytes for cache in model.empty_state(1).growing())
    assert sum(s.nbytes for s in stretches) == per_token * max(s.end for s in stretches) > 0
    assert kept.nbytes == sum(s.nbytes for s in [*stretches, *kept._kept.values()])


def test_snapshots_take_no_more_than_their_tokens():
    """However long the answer may have become, and however long the prompts were that were read beside it."""
    model = build("tiny-transformer")
    scheduler = Scheduler(model, budget(model))
    ask_all(scheduler, [[1, 2, 3], [i % 61 for i in range(200)]], True)
    most = scheduling.sequence_bytes(model, 3)
    assert _bytes_of(scheduler, [1, 2, 3]) <= most + 4 * 3
    long = scheduler.submit(Request((4, 5), 5000, Sampling(0)))
    scheduler.step()
    long.cancelled = True
    assert _bytes_of(scheduler, [4, 5]) <= most


def _bytes_of(scheduler, tokens):
    kept = scheduler.snapshots._kept[snapshots._hash("", snapshots._bytes(tokens)).digest()]
    tensors = [x for stretch in kept.stretches for pair in stretch.caches for x in pair] + kept.state.tensors()
    return kept.nbytes - kept.state.nbytes + sum(x.untyped_storage().nbytes() for x in tensors)


def test_what_does_not_fit_waits_and_what_never_fits_is_refused():
    model = build()
    ticket_bytes = scheduling.sequence_bytes(model, 40)
    fixed = budget(model).fixed
    scheduler = Scheduler(model, budget(model, 4, 4 * fixed + 2 * ticket_bytes + 10), reuse=True)
    tickets = [scheduler.submit(Request((i, 2), 38, Sampling(0))) for i in range(5)]
    most = 0
    while not scheduler.idle:
        scheduler.step()
        most = max(most, len(scheduler.live) + len(scheduler.reading))
        assert scheduler.snapshots.nbytes + scheduler._taken <= scheduler.budget.states
    assert most == 2
    assert all(len(ticket.made) == 38 or ticket.finish == "stop" for ticket in tickets)
    with pytest.raises(
        ConfigError, match=r"max_tokens: the state of 400,001 tokens, .* takes .* lower it, or give more memory"
    ):
        scheduler.submit(Request((1,), 400_000))


def test_one_bad_request_ends_alone():
    """Logits that are no numbers end the request that got them, and nobody else."""
    model = build()
    scheduler = Scheduler(model, budget(model), reuse=False)
    good, bad = (scheduler.submit(Request((1, 2, 3), 6, Sampling(1.0), seed=1)) for _ in range(2))
    real = bad.stops
    assert real is None
    bad.penalised = lambda logits: torch.full_like(logits, torch.nan)
    came = {}
    while not scheduler.idle:
        for ticket, piece in scheduler.step():
            came.setdefault(ticket, []).append(piece)
    assert [type(piece.error) for piece in came[bad]] == [Failure]
    assert len(good.made) == 6 or good.finish == "stop"


def test_penalties_change_the_logits_as_they_are_defined():
    seen = Penalised(Penalties(2.0, 0.5, 0.25, ((4, 1.5),)), [0, 1], torch.device("cpu"))
    for token in (1, 3, 3):
        seen.push(token)
    logits = torch.tensor([2.0, -2.0, 2.0, 2.0, 0.0])
    want = [1.0, -4.0 - 0.75, 2.0, 1.0 - 1.0, 1.5]
    torch.testing.assert_close(seen(logits), torch.tensor(want))
    assert logits.tolist() == [2.0, -2.0, 2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be a number from 0.01 to 100, got 0.0"),
        ({"presence_penalty": 3}, "presence_penalty: must be a number from -2 to 2, got 3"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty: must be a number"),
        ({"logit_bias": {3: 200}}, "logit_bias: must be from -100 to 100, got 200 for token 3"),
        ({"logit_bias": {-1: 2}}, "logit_bias: must name token ids, got -1"),
        ({"logprobs": -1}, "logprobs: must be a whole number"),
        ({"temperature": -1}, "temperature: must be at least 0"),
        ({"stop": ["x"]}, "stop: no text is made without a tokenizer"),
        ({"max_tokens": 0}, "max_tokens: must be an integer"),
        ({"logit_bias": {999: 1.0}}, "logit_bias: token 999 is outside the model"),
        ({"seed": -1}, "seed: must be an integer from 0"),
    ],
)
def test_what_is_wrong_is_named(engine, settings, message):
    with pytest.raises(ConfigError, match=message):
        engine.batch([[1, 2]], **settings)


@pytest.fixture(scope="module")
def engine():
    with Engine(build(), "1GB", rows=4) as made:
        yield made


def test_the_engine_serves_batches_streams_and_tasks_alike(engine):
    prompts = [[1, 2, 3], [4], [5, 6]]
    settings = {"max_tokens": 9, "temperature": 1.0, "seed": 3, "logprobs": 1}
    batch = engine.batch(prompts, **settings)

    async def together():
        whole = await asyncio.gather(*(engine.generate(prompt, **settings) for prompt in prompts))
        streamed = [[piece async for piece in engine.stream(prompt, **settings)] for prompt in prompts]
        return whole, streamed

    whole, streamed = asyncio.run(together())
    assert [a.tokens for a in whole] == [a.tokens for a in batch]
    assert [[p.token for p in pieces if p.token is not None] for pieces in streamed] == [a.tokens for a in batch]
    assert [pieces[-1].finish for pieces in streamed] == [a.finish for a in batch]
    assert all(len(a.chosen) == len(a.tokens) for a in batch)


def test_a_stream_that_is_left_ends_its_answer(engine):
    async def leave():
        async for _ in engine.stream([1, 2], max_tokens=100_000, temperature=1.0):
            break
        task = asyncio.create_task(engine.generate([1, 2], max_tokens=100_000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(leave())
    assert len(engine.batch([[1]], max_tokens=2)[0].tokens) <= 2  # later mail, so the cancellations were read
    assert not engine._scheduler.live


def test_a_closed_engine_leaves_nobody_waiting():
    made = Engine(build(), "1GB")
    errors = []
    made.submit(
        made.request([1], max_tokens=1_000_000), lambda piece: errors.append(piece.error) if piece.error else None
    )
    made.close()
    assert "engine: was closed" in str(errors[0])
    with pytest.raises(ConfigError, match="engine: is closed"):
        made.batch([[1]])
    made.close()


def test_a_prompt_beyond_the_limit_and_memory_without_space_are_refused():
    model = interlace.HybridLM(preset("tiny-hybrid").replace(max_positions=20)).eval()
    with Engine(model, "1GB") as made, pytest.raises(PromptTooLong, match="the model's limit is 20"):
        made.batch([list(range(15))], max_tokens=6)
    with pytest.raises(ConfigError, match=r"memory: 1,000 bytes hold no sequence; weights take .*; give at least"):
        Engine(model, 1000)
    for wrong in ("many", "0GB", 0, True, "8 TB"):
        with pytest.raises(ConfigError, match="memory: must be a size"):
            Engine(model, wrong)
    assert [parse_bytes("m", x) for x in ("8GB", "1.5 KiB", 7, "3")] == [8 * 10**9, 1536, 7, 3]
    with pytest.raises(ConfigError, match="rows: must be"):
        Engine(model, rows=0)


def test_steps_of_many_sizes_share_their_memory():
    """What a step computes lies where the steps of other sizes have theirs; answers are as before."""
    model = build()
    requests = [Request((1, 2, 3 + i), 4 + 2 * i, Sampling(0)) for i in range(12)]
    alone = [run(model, [request])[0][0].tokens for request in requests]
    found, scheduler = run(model, requests, rows=12)
    assert [answer.tokens for answer in found] == alone
    rows = scheduler._rows
    assert isinstance(rows, SlotRows)
    assert len(rows._steps) == 12
    sizes = sum(12 * p.shape[0] * p.itemsize for p in model.parameters() if p.ndim == 2)  # outputs of 12 rows
    assert rows._shared.nbytes <= max(2 << 20, 4 * sizes)
