"""The state of attention between calls: the keys and values of each sequence, as far back as they are visible."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from interlace.base.segments import Segments
from interlace.ops.core.kernels import wants_gradients
from interlace.ops.core.layer_state import UNLIMITED, LayerState


class AttentionState(LayerState):
    """Keys and values of N sequences; a ring of `window` slots where attention slides.

    A token at position p lies in slot p, or p mod window. The state of a call that had no past keeps the flat
    tokens and lays them out per sequence only when somebody asks, so training pays nothing for it.

    Attributes:
        window: how many tokens a query sees, itself included; None for all.
        reserve: slots to allocate when the buffer first grows; 0 to grow by a quarter at a time.
        places: int64 [N] on the device, how many tokens each sequence has seen, in a view that `on_device` made;
            else None.
    """

    places: Tensor | None = None

    def __init__(self, keys: Tensor, values: Tensor, positions: list[int], window: int | None, reserve: int = 0):
        """keys [N, capacity, heads, K], values [N, capacity, heads, V]; positions: tokens seen, per sequence."""
        self._buffers: tuple[Tensor, Tensor] | None = (keys, values)
        self._positions = positions
        self._tokens: tuple[Tensor, Tensor, Segments] | None = None
        self.window, self.reserve = window, reserve

    @staticmethod
    def empty(
        rows: int, heads: int, key_dim: int, value_dim: int, window: int | None, like: Tensor, reserve: int = 0
    ) -> AttentionState:
        """Return a state that has seen nothing, in the dtype and on the device of `like`."""
        keys, values = (like.new_empty(rows, 0, heads, dim) for dim in (key_dim, value_dim))
        return AttentionState(keys, values, [0] * rows, window, reserve)

    @staticmethod
    def of_tokens(key: Tensor, value: Tensor, segments: Segments, window: int | None) -> AttentionState:
        """Return the state after these tokens [total, heads, ...] of sequences that had no past."""
        state = AttentionState(key[:0, None], value[:0, None], [], window)
        state._tokens, state._buffers = (key, value, segments), None
        return state

    def _lay_out(self) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            assert self._tokens is not None
            key, value, segments = self._tokens
            heads, key_dim, value_dim = key.shape[1], key.shape[2], value.shape[2]
            empty = AttentionState.empty(segments.count, heads, key_dim, value_dim, self.window, key, self.reserve)
            full = empty.append(key, value, segments)
            self._buffers, self._positions, self._tokens = full._buffers, full._positions, None
        assert self._buffers is not None
        return self._buffers

    @property
    def keys(self) -> Tensor:
        """The keys, [N, capacity, heads, K]."""
        return self._lay_out()[0]

    @property
    def values(self) -> Tensor:
        """The values, [N, capacity, heads, V]."""
        return self._lay_out()[1]

    @property
    def positions(self) -> list[int]:
        """How many tokens each sequence has seen; a view on the device does not know it here."""
        assert self.places is None, "the positions of this state are on the device"
        self._lay_out()
        return self._positions

    @property
    def count(self) -> int:
        """N, the number of sequences."""
        return self.keys.shape[0]

    def tensors(self) -> list[Tensor]:
        """Return keys and values."""
        return [self.keys, self.values]

    def held(self, row: int) -> int:
        """Return how many tokens of this sequence are still visible."""
        return min(self.positions[row], self.window or self.positions[row])

    def past(self, row: int) -> tuple[Tensor, Tensor]:
        """Return (keys [held, heads, K], values) of one sequence, oldest first."""
        held, seen = self.held(row), self.positions[row]
        if self.window is None or seen <= self.window:
            return self.keys[row, :held], self.values[row, :held]
        cut = seen % self.window
        roll = torch.cat((torch.arange(cut, self.window), torch.arange(cut))).to(self.keys.device)
        return self.keys[row, roll], self.values[row, roll]

    def append(self, key: Tensor, value: Tensor, segments: Segments) -> AttentionState:
        """Return the state after these tokens [total, heads, ...].

        self is used up, and changed in place where autograd allows.
        """
        self.use()
        if wants_gradients(key, value, self.keys, self.values):
            return self._append_functional(key, value, segments)
        lengths = segments.lengths
        self._make_room(max(p + t for p, t in zip(self.positions, lengths, strict=True)))
        if segments.time == 1 and len(set(self.positions)) == 1:
            slot = self.positions[0] % (self.window or self.positions[0] + 1)
            self.keys[:, slot], self.values[:, slot] = key, value
        else:
            for row, (first, end) in enumerate(segments.spans()):
                first = max(first, end - (self.window or end))
                stop = self.positions[row] + lengths[row]
                slots = torch.arange(stop - (end - first), stop, device=key.device)
                slots = slots % self.window if self.window else slots
                self.keys[row].index_copy_(0, slots, key[first:end])
                self.values[row].index_copy_(0, slots, value[first:end])
        positions = [p + t for p, t in zip(self.positions, lengths, strict=True)]
        return AttentionState(self.keys, self.values, positions, self.window, self.reserve)

    @property
    def room(self) -> int:
        """How many more tokens of each sequence fit without a larger buffer."""
        capacity = self.keys.shape[1]
        if self.window is not None and capacity >= self.window:
            return UNLIMITED
        return capacity - max(self.positions)

    def advance(self) -> None:
        """Count one more token of each sequence, whose key and value are already in the buffers."""
        self._positions = [p + 1 for p in self.positions]

    def stepped(self) -> AttentionState:
        """Return the state with space for one more token of each sequence, counted as seen; the caller fills it in."""
        self.use()
        positions = [p + 1 for p in self.positions]
        self._make_room(max(positions))
        return AttentionState(self.keys, self.values, positions, self.window, self.reserve)

    def grow(self) -> None:
        """Allocate space for one more token of each sequence, if there is none."""
        self._make_room(max(self.positions) + 1)

    def clear_unseen(self) -> None:
        """Fill the slots that hold no token with zeros: what masks them multiplies them by 0."""
        for row in range(self.count):
            held = self.held(row)
            self.keys[row, held:], self.values[row, held:] = 0, 0

    def on_device(self, places: Tensor) -> AttentionState:
        """Return a view on the same buffers; see `LayerState.on_device`."""
        self.check_unused()
        view = AttentionState(self.keys, self.values, [], self.window, self.reserve)
        view.places = places
        return view

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of a token's keys and of its values, [heads, K] and [heads, V]."""
        return tuple(self.keys.shape[2:]), tuple(self.values.shape[2:])

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token of one sequence."""
        return sum(math.prod(shape) for shape in self.shapes) * self.dtype.itemsize

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of keys and values."""
        return self.keys.dtype

    @property
    def is_contiguous(self) -> bool:
        """Whether the buffers have no gaps."""
        return self.keys.is_contiguous() and self.values.is_contiguous()

    def caches(self) -> Tensor:
        """Return int64 [N, 3]: addresses of each sequence's keys and values on a CPU, and the capacity in tokens."""
        found = []
        for row in range(self.count):
            found.append([self.keys[row].data_ptr(), self.values[row].data_ptr(), self.keys.shape[1]])
        return torch.tensor(found, dtype=torch.int64, device="cpu")

    def in_rows(self, slots: int) -> AttentionRows:
        """Return memory for the caches of so many sequences of this layer; see `LayerState.in_rows`."""
        return AttentionRows(self, slots)

    def enlarge(self) -> None:
        """Allocate what is reserved, if it is not there."""
        self._make_room(self.reserve)

    def pair(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return keys [capacity, heads, K] and values of one sequence."""
        return self.keys[slot], self.values[slot]

    def one(self, slot: int, seen: int, reserve: int = 0, growing: bool = True) -> AttentionState:
        """Return a copy of one sequence; see `LayerState.one`."""
        pair, window = self.pair(slot), self.window
        held = min(seen, window or seen) if growing or window else 0
        size = max(held, min(reserve, window or reserve))
        keys, values = (x.new_empty(1, size, *x.shape[1:]) for x in pair)
        keys[0, :held], values[0, :held] = pair[0][:held], pair[1][:held]
        return AttentionState(keys, values, [seen], window, reserve)

    def growing(self) -> list[AttentionState]:
        """Return itself if it sees all tokens; see `LayerState.growing`."""
        return [] if self.window else [self]

    def stretch(self, slot: int, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Return copies of keys [end - begin, heads, K] and values of some tokens of one sequence."""
        keys, values = self.pair(slot)
        return keys[begin:end].clone(), values[begin:end].clone()

    def fill(self, begin: int, stretch: tuple[Tensor, Tensor]) -> None:
        """Write what `stretch` returned into the cache of one sequence, from a token on."""
        for buffer, copied in zip(self.pair(0), stretch, strict=True):
            buffer[begin : begin + copied.shape[0]] = copied

    def put(self, key: Tensor, value: Tensor) -> None:
        """Write one token of each sequence, [N, heads, ...], where `places` says; for a view on the device."""
        assert self.places is not None
        rows = torch.arange(self.count, device=key.device)
        slots = self.places if self.window is None else self.places % self.window
        self.keys[rows, slots], self.values[rows, slots] = key, value

    def visible(self) -> Tensor:
        """Return bool [N, capacity]: which slots the token at `places` sees, itself included."""
        assert self.places is not None
        return torch.arange(self.keys.shape[1], device=self.places.device) <= self.places[:, None]

    def _make_room(self, tokens: int) -> None:
        capacity = self.keys.shape[1]
        needed = min(tokens, self.window or tokens)
        if needed <= capacity:
            return
        grown = max(needed, self.reserve, capacity + capacity // 4)
        grown = min(grown, self.window or grown)

        def widen(old: Tensor) -> Tensor:
            new = old.new_empty(old.shape[0], grown, *old.shape[2:])
            new[:, :capacity] = old
            return new

        self._buffers = widen(self.keys), widen(self.values)

    def _append_functional(self, key: Tensor, value: Tensor, segments: Segments) -> AttentionState:
        """Append in a way that autograd can follow: new buffers, as long as the longest sequence needs."""
        positions = [p + t for p, t in zip(self.positions, segments.lengths, strict=True)]
        capacity = max(min(p, self.window or p) for p in positions)
        buffers = []
        for new, which in ((key, 0), (value, 1)):
            rows = []
            for row, (first, end) in enumerate(segments.spans()):
                tokens = torch.cat((self.past(row)[which], new[first:end]))
                tokens = tokens[-min(positions[row], self.window or positions[row]) :]
                if self.window and positions[row] > self.window:
                    tokens = tokens.roll(positions[row] % self.window, dims=0)
                rows.append(torch.nn.functional.pad(tokens, (0, 0, 0, 0, 0, capacity - tokens.shape[0])))
            buffers.append(torch.stack(rows))
        return AttentionState(buffers[0], buffers[1], positions, self.window, self.reserve)

    def select(self, rows: Sequence[int]) -> AttentionState:
        """Return a copy that holds these sequences, in this order; raises StateUsed."""
        self.check_unused()
        index = torch.as_tensor(list(rows), device=self.keys.device)
        positions = [self.positions[r] for r in rows]
        return AttentionState(self.keys[index], self.values[index], positions, self.window, self.reserve)

    def aged(self, seen: int, reserve: int) -> AttentionState:
        """Return an aged state; see `LayerState.aged`."""
        size = min(reserve, self.window or reserve)
        keys, values = (x.new_empty(x.shape[0], size, *x.shape[2:]) for x in (self.keys, self.values))
        return AttentionState(keys, values, [seen] * keys.shape[0], self.window, reserve)

    def write(self, rows: Sequence[int], other: AttentionState) -> None:
        """Replace rows; see `LayerState.write`. The buffers grow if the other's sequences are longer than they."""
        self.check_unused()
        other.check_unused()
        held = max(other.held(row) for row in range(len(other.positions)))
        self.reserve = max(self.reserve, other.reserve)
        self._make_room(held)
        for row, source in zip(rows, range(len(other.positions)), strict=True):
            count = other.held(source)  # in both, a token at position p lies in slot p, or p mod window
            self.keys[row, :count], self.values[row, :count] = other.keys[source, :count], other.values[source, :count]
            self._positions[row] = other.positions[source]

    @classmethod
    def concat(cls, states: Sequence[AttentionState]) -> AttentionState:
        """Return the sequences of several states, in order; raises StateUsed."""
        for state in states:
            state.check_unused()
        capacity = max(s.keys.shape[1] for s in states)

        def widen(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (0, 0, 0, 0, 0, capacity - x.shape[1]))

        keys, values = (torch.cat([widen(getattr(s, name)) for s in states]) for name in ("keys", "values"))
        positions, reserve = [p for s in states for p in s.positions], max(s.reserve for s in states)
        return AttentionState(keys, values, positions, states[0].window, reserve)


class AttentionRows(AttentionState):
    """The caches of sequences that decode together on a CPU, each in memory of its own; they come and go one by one.

    A step finds them by a table of addresses. So no sequence is as long as the longest, and none is copied when another
    one comes, goes or takes its place. There are no buffers for all of them.

    Attributes:
        table: int64 [slots, 3], as `AttentionState.caches`.
        rows: for each slot, keys [capacity, heads, K] and values, or None for a slot without a sequence.
        places: int64 [N], how many tokens each sequence has seen, in a view of the first N slots; else None.
    """

    def __init__(self, like: AttentionState, slots: int):
        """like: a state of the same layer; slots: the most sequences at a time."""
        super().__init__(like.keys[:0], like.values[:0], [], like.window)
        self._shapes = like.shapes
        self.table = torch.zeros(slots, 3, dtype=torch.int64)
        self.rows: list[tuple[Tensor, Tensor] | None] = [None] * slots

    @property
    def count(self) -> int:
        """N, the number of sequences of a view; of the whole, that of its slots."""
        return self.table.shape[0]

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See `AttentionState.shapes`."""
        return self._shapes

    @property
    def is_contiguous(self) -> bool:
        """See `AttentionState.is_contiguous`."""
        return True

    def caches(self) -> Tensor:
        """Return the table, int64 [N, 3]."""
        return self.table

    def tensors(self) -> list[Tensor]:
        """Return all keys and values."""
        return [x for pair in self.rows if pair is not None for x in pair]

    def first(self, rows: int, places: Tensor) -> AttentionRows:
        """Return a view; see `LayerState.first`."""
        view = AttentionRows.__new__(AttentionRows)
        view.__dict__.update(self.__dict__)
        view.table, view.places = self.table[:rows], places
        return view

    def place(self, slot: int, state: AttentionState) -> None:
        """Take over the memory of a state of one sequence; see `LayerState.place`."""
        state.use().enlarge()
        keys, values = state.keys[0], state.values[0]
        self.rows[slot] = keys, values
        self.table[slot] = torch.tensor([keys.data_ptr(), values.data_ptr(), keys.shape[0]])

    def move(self, source: int, target: int) -> None:
        """Give a sequence another slot; see `LayerState.move`."""
        self.rows[target], self.rows[source] = self.rows[source], None
        self.table[target] = self.table[source]

    def clear(self, slot: int) -> None:
        """Give the memory of a sequence back; see `LayerState.clear`."""
        self.rows[slot] = None
        self.table[slot] = 0

    def pair(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of one sequence."""
        found = self.rows[slot]
        assert found is not None
        return found

    def take(self, after: AttentionState) -> None:
        """Do nothing: a step writes its tokens in place."""
