"""Continuous batching: requests join and leave at every step, and each answer is what it would be alone.

One step reads a part of the prompts that wait, and makes one token of every answer. So a long prompt holds nobody up
for longer than its part, and nobody waits for the longest answer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interlace.base.errors import ConfigError, Failure, InterlaceError
from interlace.base.segments import Segments
from interlace.generation.budget import Budget, sequence_bytes
from interlace.generation.lookup import SEARCHED, Lookup, Pace
from interlace.generation.penalties import Penalised
from interlace.generation.prefill import PREFILL
from interlace.generation.prompts import check_count, check_fits, checked_prompt, prompt_tokens, seeded
from interlace.generation.request import Chosen, Piece, Request
from interlace.generation.rows import Rows, rows_for
from interlace.generation.sampling import DAMAGED, Draws
from interlace.generation.snapshots import Snapshots, common
from interlace.generation.stops import Stops
from interlace.generation.structure import Shape, grammars_of
from interlace.model.model import HybridLM
from interlace.model.state import ModelState

PART = 512  # prompt tokens read in a step while answers are made
SHARED = 32  # tokens that two prompts begin with: from so many on, the state after them is kept for others
MILESTONES = tuple(1024 << i for i in range(12))  # tokens of a prompt after which states are kept where there is space
SCORED = 256  # tokens of a prompt whose logits are in memory at a time


class Ticket:
    """A request on its way.

    Attributes:
        request: what was asked.
        ids, prompt: the prompt, as a list and as int64 [T] on the device.
        reused_tokens: how many tokens of the prompt were read for an earlier request.
        made: tokens so far.
        cancelled: set it to end the answer at the next step.
        finish: see `Piece`; "" while it goes on.
    """

    def __init__(self, model: HybridLM, request: Request):
        """Check what is asked.

        Raises:
            ConfigError, ShapeError: the prompt, a number or the seed is wrong. PromptTooLong: as it says.
        """
        ids = checked_prompt(request.prompt)
        check_count("max_tokens", request.max_tokens)
        check_fits(model, len(ids), request.max_tokens)
        self.request, self.ids, self.prompt = request, ids, prompt_tokens(model, ids)
        self.generator = seeded(request.seed)
        self.penalised = None
        if request.penalties.needed:
            outside = [token for token, _ in request.penalties.bias if token >= model.config.vocabulary]
            if outside:
                raise ConfigError(
                    f"logit_bias: token {outside[0]} is outside the model's vocabulary of {model.config.vocabulary}; "
                    "leave it out"
                )
            self.penalised = Penalised(request.penalties, ids, model.device)
        self.ends = {*model.config.tokens.eos, *request.ends}
        self.stops = None
        if model.tokenizer is not None and request.text:
            self.stops = Stops(model.tokenizer, request.stop, () if request.afresh else ids, request.shown)
        if self.stops is None and request.stop:
            raise ConfigError("stop: no text is made without a tokenizer; leave it out")
        self.shape = None
        if request.structure is not None:
            self.shape = Shape(grammars_of(model), request.structure, self.ends, model.config.vocabulary)
        self.bytes = sequence_bytes(model, len(ids) + request.max_tokens)
        self.made: list[int] = []
        self.cancelled, self.finish = False, ""
        self.reused_tokens = 0
        self.read = 0  # tokens of the prompt
        self.cuts: set[int] = set()  # how many are read when the state is kept for others that begin alike
        self.milestones: set[int] = set()  # the same, where there is space without forgetting others
        self.kept = 0  # the number of the last snapshot of this sequence
        self.state: ModelState | None = None  # until it joins the rows
        self.logits: Tensor | None = None  # after the prompt
        self.likely: list[Chosen] = []  # of the prompt's tokens, until they are handed over

    @property
    def next_cut(self) -> int:
        """How much of the prompt is read at once, at most: up to where a state is kept, or to its end."""
        cuts = (cut for cut in (*self.cuts, *self.milestones) if cut > self.read)
        return min(cuts, default=self.prompt.shape[0])

    @cached_property
    def lookup(self) -> Lookup:
        """What the text foresees."""
        return Lookup(self.ids[-SEARCHED:])

    @cached_property
    def array(self) -> np.ndarray[Any, Any]:
        """The prompt's ids, to be compared with others."""
        return np.array(self.ids, dtype=np.int64)

    def foreseen(self) -> list[int]:
        """Return tokens that may come next, as many as may still be made before the last."""
        return self.lookup.draft(self.request.max_tokens - len(self.made) - 1)

    @property
    def total(self) -> int:
        """The most tokens that the sequence comes to."""
        return self.prompt.shape[0] + self.request.max_tokens


@dataclass(frozen=True)
class Counts:
    """What a scheduler does now, and has done.

    Attributes:
        waiting, reading, live: requests, as of `Scheduler`.
        sequence_bytes: what the requests that were admitted may come to, and the recurrent states of all rows.
        snapshots, snapshot_bytes: states that are kept for reuse, and their bytes.
        read_tokens, made_tokens, reused_tokens, tried_tokens, foreseen_tokens: so far.
    """

    waiting: int
    reading: int
    live: int
    sequence_bytes: int
    snapshots: int
    snapshot_bytes: int
    read_tokens: int
    made_tokens: int
    reused_tokens: int
    tried_tokens: int
    foreseen_tokens: int


class Scheduler:
    """Requests of one model.

    Attributes:
        waiting: those that no memory was given yet, in order.
        reading: those whose prompt is being read.
        live: those whose answers are being made, by row.
        snapshots: states for reuse, or None.
        read_tokens, made_tokens, reused_tokens, tried_tokens, foreseen_tokens: counts of all that was done; those that
            were tried at once, and how many of these came.
    """

    def __init__(self, model: HybridLM, budget: Budget, reuse: bool = True, ahead: bool = True):
        """Begin without requests.

        Args:
            budget: what fits.
            reuse: whether states are kept for later requests.
            ahead: whether tokens that a text foresees are tried at once, where that pays.
        """
        self.model, self.budget = model, budget
        self.waiting: deque[Ticket] = deque()
        self.reading: deque[Ticket] = deque()
        self.live: list[Ticket] = []
        self.snapshots = Snapshots(budget.kept) if reuse and budget.kept else None
        self.read_tokens = self.made_tokens = self.reused_tokens = self.tried_tokens = self.foreseen_tokens = 0
        # In bfloat16 a pass and a step may round to different tokens.
        self.pace = Pace() if ahead and model.device.type == "cpu" and model.dtype == torch.float32 else None
        self._taken = (
            budget.rows * budget.fixed
        )  # bytes: all rows' recurrent states, and the states of who was admitted
        self._make_way()

    @cached_property
    def _rows(self) -> Rows:
        return rows_for(self.model, self.budget.rows)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.reading or self.live)

    def counts(self) -> Counts:
        """Return what it does now; other threads may ask."""
        kept = self.snapshots
        return Counts(
            len(self.waiting),
            len(self.reading),
            len(self.live),
            self._taken,
            0 if kept is None else len(kept),
            0 if kept is None else kept.nbytes,
            self.read_tokens,
            self.made_tokens,
            self.reused_tokens,
            self.tried_tokens,
            self.foreseen_tokens,
        )

    def submit(self, request: Request) -> Ticket:
        """Take a request into the queue.

        Raises:
            ConfigError: it can never fit the memory, or something in it is wrong. PromptTooLong: see `Ticket`.
        """
        ticket = Ticket(self.model, request)
        free = self.budget.states - self.budget.rows * self.budget.fixed
        if ticket.bytes > free:
            raise ConfigError(
                f"max_tokens: the state of {ticket.total:,} tokens, the prompt's included, takes {ticket.bytes:,} "
                f"bytes, and the memory has {free:,} for it; lower it, or give more memory"
            )
        self.waiting.append(ticket)
        return ticket

    @torch.inference_mode()
    def step(self) -> list[tuple[Ticket, Piece]]:
        """Read a part of the prompts, and make a token of every answer; return what came."""
        came: list[tuple[Ticket, Piece]] = []
        self._drop(came)
        self._admit()
        self._read(came)
        if self.live and self.pace is not None:
            self._leave([row for row, ticket in enumerate(self.live) if not self._try_ahead(row, ticket, came)])
        if self.live:
            began, count = time.perf_counter(), len(self.live)
            logits = self._rows.step([ticket.made[-1] for ticket in self.live])
            self._leave([row for row, goes_on in enumerate(self._draw(self.live, logits, came)) if not goes_on])
            if self.pace is not None:
                self.pace.stepped(count, time.perf_counter() - began)
        return came

    def _try_ahead(self, row: int, ticket: Ticket, came: list[tuple[Ticket, Piece]]) -> bool:
        """Read what a text foresees in one pass, and draw from it as long as it comes; return whether it goes on.

        The pass works on a copy of the state. What came is the state of the row then, or else is read again.
        """
        assert self.pace is not None
        draft = ticket.foreseen()
        if not self.pace.worth(len(draft)) or self._taken + 2 * ticket.bytes > self.budget.states:
            return True
        began, before = time.perf_counter(), len(ticket.made)
        self._taken += 2 * ticket.bytes  # the copy, and what becomes of it
        self._make_way()
        tokens = torch.tensor([ticket.made[-1], *draft], device=self.model.device)
        logits, state = self.model(tokens, state=self._fork(row, ticket))
        used = 0
        while True:
            (goes_on,) = self._draw([ticket], logits[used : used + 1], came)
            used += 1
            if not goes_on or used > len(draft) or ticket.made[-1] != draft[used - 1]:
                break
        if goes_on or self.snapshots is not None:  # what ends is kept
            if used <= len(draft):
                _, state = self.model(tokens[:used], state=self._fork(row, ticket), last_only=True)
            self._rows.put(row, state)
        self._taken -= 2 * ticket.bytes
        self._make_way()
        self.tried_tokens += len(draft)
        self.foreseen_tokens += used - 1
        self.pace.tried(len(ticket.made) - before, time.perf_counter() - began)
        return goes_on

    def _fork(self, row: int, ticket: Ticket) -> ModelState:
        state, place = self._rows.place(row)
        return state.one(place, ticket.total)

    def _drop(self, came: list[tuple[Ticket, Piece]]) -> None:
        """Let go of what was cancelled."""
        for queue in (self.waiting, self.reading):
            for ticket in [t for t in queue if t.cancelled]:
                queue.remove(ticket)
                if queue is self.reading:
                    self._give_back(ticket)
                self._end(ticket, came, Piece(None, finish="cancelled"))
        gone = [row for row, ticket in enumerate(self.live) if ticket.cancelled]
        for row in gone:
            self._end(self.live[row], came, Piece(None, finish="cancelled"))
        self._leave(gone)

    def _admit(self) -> None:
        """Give memory to those who wait, in order, as long as it lasts; snapshots give way."""
        for ticket in list(self.waiting):
            need = ticket.bytes
            if len(self.reading) + len(self.live) >= self.budget.rows or self._taken + need > self.budget.states:
                return
            if self._reads_the_same(ticket):
                continue
            self.waiting.remove(ticket)
            self._taken += need
            self.reading.append(ticket)
            if self.snapshots is None or ticket.request.prompt_logprobs is not None:
                continue
            if (found := self.snapshots.find(ticket.request.owner, ticket.ids)) is not None:
                ticket.state, ticket.logits = found.restored(ticket.total), found.logits
                ticket.kept = found.number
                ticket.read = ticket.reused_tokens = found.count
                self.reused_tokens += ticket.read
            shared = self.snapshots.shared(ticket.request.owner, ticket.ids)
            if ticket.read + SHARED <= shared < len(ticket.ids):
                ticket.cuts.add(shared)
            ticket.milestones = {place for place in MILESTONES if ticket.read < place < len(ticket.ids)}
            self._make_way()

    def _reads_the_same(self, ticket: Ticket) -> bool:
        """Return whether a prompt that is being read begins as this one, and will leave a state that serves it."""
        if self.snapshots is None or ticket.request.prompt_logprobs is not None:
            return False
        mine = ticket.array
        for other in self.reading:
            if other.request.owner != ticket.request.owner:
                continue
            shared = common(mine, other.array)
            if shared == len(mine) != len(other.ids):
                shared -= 1  # its last token is read for the logits
            if shared < SHARED and not shared == len(mine) == len(other.ids):
                continue
            if other.read < shared:
                other.cuts.add(shared)
                return True
        return False

    def _give_back(self, ticket: Ticket) -> None:
        self._taken -= ticket.bytes
        ticket.state = ticket.logits = None
        self._make_way()

    def _make_way(self) -> None:
        """Leave to snapshots what sequences do not take."""
        if self.snapshots is not None:
            self.snapshots.limit_bytes = max(0, min(self.budget.kept, self.budget.states - self._taken))
            self.snapshots.make_room(self.snapshots.limit_bytes)

    def _read(self, came: list[tuple[Ticket, Piece]]) -> None:
        """Read whole prompts together, or a part of one that is longer than a step; draw their first tokens."""
        group, space = list[tuple[Ticket, int]](), PART if self.live else PREFILL
        for ticket in self.reading:
            left, scored = ticket.next_cut - ticket.read, ticket.request.prompt_logprobs is not None
            if group and (left > space or scored):
                break
            size = min(left, space)
            group.append((ticket, size))
            space -= size
            if scored or not space:
                break
        if not group:
            return
        self._pass([(ticket, size) for ticket, size in group if size])
        for ticket, _ in group:
            self.reading.remove(ticket)
            if ticket.read < ticket.prompt.shape[0]:
                self.reading.append(ticket)  # who comes after a long prompt has a turn before its next part
        self._begin([ticket for ticket, _ in group if ticket.read == ticket.prompt.shape[0]], came)

    def _pass(self, group: Sequence[tuple[Ticket, int]]) -> None:
        """Run the model over the next tokens of these."""
        if not group:
            return
        self.read_tokens += sum(size for _, size in group)
        parts = [ticket.prompt[ticket.read : ticket.read + size] for ticket, size in group]
        states = [ticket.state for ticket, _ in group]
        if len(group) == 1:
            ticket = group[0][0]
            state = states[0] or self.model.empty_state(1, ticket.total)
            if ticket.request.prompt_logprobs is None:
                logits, state = self.model(parts[0], state=state, last_only=True)
            else:
                hidden, _, state = self.model.hidden(parts[0], state=state)
                logits = self._score_prompt(ticket, hidden, ticket.request.prompt_logprobs)
            found = [state]
        else:
            if all(state is None for state in states):
                before = self.model.empty_state(len(group))
            else:
                before = ModelState.concat([state or self.model.empty_state(1) for state in states])
            segments = Segments.from_lengths([size for _, size in group])
            logits, state = self.model(torch.cat(parts), segments, before, last_only=True)
            found = [state.one(row, ticket.total) for row, (ticket, _) in enumerate(group)]
        for row, ((ticket, size), state) in enumerate(zip(group, found, strict=True)):
            ticket.read, ticket.state = ticket.read + size, state
            ticket.logits = logits[row] if ticket.read == ticket.prompt.shape[0] else None
            if ticket.logits is None and (ticket.read in ticket.cuts or ticket.read in ticket.milestones):
                self._keep(ticket, state, spare=ticket.read not in ticket.cuts)

    def _score_prompt(self, ticket: Ticket, hidden: Tensor, top: int) -> Tensor:
        """Say how likely a prompt's next tokens are, given hidden [T, D] of those before; return the last logits."""
        following = ticket.prompt[ticket.read + 1 : ticket.read + 1 + hidden.shape[0]].tolist()
        logits = hidden
        for start in range(0, hidden.shape[0], SCORED):
            logits = self.model.logits(hidden[start : start + SCORED])
            for row, token in zip(logits, following[start : start + SCORED], strict=False):
                ticket.likely.append(_chosen(row, token, top))
        return logits[-1:]

    def _begin(self, tickets: Sequence[Ticket], came: list[tuple[Ticket, Piece]]) -> None:
        """Draw the first tokens after prompts, and let the answers join the rows."""
        if not tickets:
            return
        states, logits = [], torch.stack([ticket.logits for ticket in tickets if ticket.logits is not None])
        for ticket in tickets:
            assert ticket.state is not None
            assert ticket.logits is not None
            if ticket.reused_tokens < ticket.read:
                self._keep(ticket, ticket.state)
            states.append(ticket.state)
            ticket.state = ticket.logits = None
        for ticket, state, goes_on in zip(tickets, states, self._draw(tickets, logits, came), strict=True):
            if goes_on:
                self._rows.join(state)
                self.live.append(ticket)
            else:
                self._give_back(ticket)

    def _leave(self, gone: Sequence[int]) -> None:
        if not gone:
            return
        for row in gone:
            ticket = self.live[row]
            if ticket.finish in ("stop", "length"):  # a conversation goes on from there
                self._keep(ticket, *self._rows.place(row))
            self._give_back(ticket)
        self.live = [self.live[row] for row in self._rows.leave(gone)]

    def _keep(self, ticket: Ticket, state: ModelState, row: int = 0, spare: bool = False) -> None:
        """Keep a copy of the state of a request's sequence, for others that begin alike; see `Snapshots.keep`."""
        if self.snapshots is not None:
            tokens = [*ticket.ids, *ticket.made][: int(state.positions[row])]
            owner, after, logits = ticket.request.owner, ticket.kept, ticket.logits
            ticket.kept = self.snapshots.keep(owner, tokens, state, row, after=after, logits=logits, spare=spare)

    def _draw(self, tickets: Sequence[Ticket], logits: Tensor, came: list[tuple[Ticket, Piece]]) -> list[bool]:
        """Draw the next token of each answer from logits [N, vocabulary]; return which of them go on."""
        shaped, failed = self._shaped(tickets, logits)
        going = []
        draws = Draws([t.request.sampling for t in tickets], [t.generator for t in tickets], logits.device)
        for row, (ticket, token) in enumerate(zip(tickets, draws(shaped), strict=True)):
            if row in failed or token < 0:  # of this request alone
                piece = Piece(None, finish="error", error=failed.get(row) or Failure(DAMAGED))
            else:
                try:
                    piece = self._next(ticket, logits[row], token)
                except InterlaceError as error:  # such as a token that the tokenizer cannot write
                    piece = Piece(None, finish="error", error=error)
            self.made_tokens += piece.token is not None
            going.append(self._end(ticket, came, piece))
        return going

    def _shaped(self, tickets: Sequence[Ticket], logits: Tensor) -> tuple[Tensor, dict[int, InterlaceError]]:
        """Return logits [N, vocabulary] after penalties and forms, and what went wrong, by row."""
        failed = dict[int, InterlaceError]()
        if all(ticket.penalised is None and ticket.shape is None for ticket in tickets):
            return logits, failed
        rows = []
        for row, (ticket, given) in enumerate(zip(tickets, logits, strict=True)):
            one = given.float() if ticket.penalised is None else ticket.penalised(given)
            if ticket.shape is not None:
                try:
                    one = ticket.shape.mask(one)
                except InterlaceError as error:
                    failed[row] = error
            rows.append(one)
        return torch.stack(rows), failed

    def _end(self, ticket: Ticket, came: list[tuple[Ticket, Piece]], piece: Piece) -> bool:
        """Hand a piece over; return whether the answer goes on."""
        ticket.finish = piece.finish
        came.append((ticket, replace(piece, reused_tokens=ticket.reused_tokens, prompt=tuple(ticket.likely))))
        ticket.likely = []
        return not piece.finish

    def _next(self, ticket: Ticket, logits: Tensor, token: int) -> Piece:
        """Add a token to an answer; logits: [vocabulary], what it was drawn from, before penalties."""
        request, stops = ticket.request, ticket.stops
        if token in ticket.ends:
            return Piece(None, "" if stops is None else stops.end(), finish="stop")
        ticket.made.append(token)
        if self.pace is not None:
            ticket.lookup.push(token)
        if ticket.penalised is not None:
            ticket.penalised.push(token)
        if ticket.shape is not None:
            ticket.shape.push(token)
        chosen = None if request.logprobs is None else _chosen(logits, token, request.logprobs)
        text = "" if stops is None else stops.push(token)
        if stops is not None and stops.met:
            return Piece(token, text, chosen, "stop")
        if ticket.shape is not None and ticket.shape.met:
            return Piece(token, text + ("" if stops is None else stops.end()), chosen, "stop")
        if len(ticket.made) < request.max_tokens:
            return Piece(token, text, chosen)
        return Piece(token, text + ("" if stops is None else stops.end()), chosen, "length")


def _chosen(logits: Tensor, token: int, top: int) -> Chosen:
    """Return how likely a token was, and the likeliest."""
    likely = logits.float().log_softmax(-1)
    values, places = likely.topk(min(top, likely.shape[0]))
    return Chosen(float(likely[token]), tuple(zip(places.tolist(), values.tolist(), strict=True)))
