"""Steps that are replayed as a graph. A stand-in for CUDA's runs the step again, and lets it look at no value."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import interlace
from interlace.base.errors import BackendUnavailable, ShapeError
from interlace.base.segments import Segments
from interlace.generation import capture
from interlace.generation.batch import answers
from interlace.generation.capture import Decoder
from interlace.generation.graph import GraphedStep, graphs_for
from interlace.generation.request import Request
from interlace.generation.rows import JoinedRows
from interlace.generation.sampling import Draws, Sampling
from interlace.model.presets import PRESETS, preset
from interlace.ops.core import gpu, kernels, tables
from interlace.ops.core.backends import Backend
from interlace.ops.core.tables import on_device

LOOKS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2", "bincount"}


class Blind(TorchDispatchMode):
    """A GPU's step that needed a value on the host would wait for it, and a replay would not ask again."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in LOOKS, func
        return func(*args, **(kwargs or {}))


class StandIn:
    """A graph that remembers the function. Its addresses are checked, and capturing it changes nothing."""

    made: list[StandIn]
    masks = True

    def __init__(self):
        self.warmed = self.replays = 0
        self.run = None
        StandIn.made.append(self)

    def warm(self, run):
        self.warmed += 1
        run()
        self.places = self.addresses(run.__self__)

    def capture(self, run):
        step, self.run = run.__self__, run
        held = [*step.state.tensors(), step.places, step.logits]
        before = [x.clone() for x in held]
        self.blind(run)  # Python runs, and the device does not
        for x, old in zip(held, before, strict=True):
            x.copy_(old)

    def replay(self):
        self.replays += 1
        self.blind(self.run)
        assert self.addresses(self.run.__self__) == self.places

    def blind(self, run):
        with pytest.MonkeyPatch.context() as patch, Blind():
            patch.setattr(torch.Tensor, "tolist", lambda x: pytest.fail("looked at a tensor"))
            patch.setattr(tables, "on_device", lambda *_: pytest.fail("copied something from the host"))
            run()

    @staticmethod
    def addresses(step):
        return [x.data_ptr() for x in (*step.state.tensors(), step.places, step.tokens, step.logits)]


@pytest.fixture
def graphs(monkeypatch):
    """Decoders capture stand-ins, which are listed."""
    monkeypatch.setattr(StandIn, "made", [], raising=False)
    monkeypatch.setattr(capture, "graphs_for", lambda model: (StandIn, ""))
    return StandIn.made


def build(name, **more):
    torch.manual_seed(0)
    return interlace.HybridLM(preset(name).replace(init_std=0.2), **more).eval()


def relative(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


HOST = {"tiny-hyena": "kind hyena"}  # presets that cannot be captured, and why


EXPERTS = [name for name in PRESETS if "moe" in preset(name).layers]  # in float64 the host sorts their tokens
CASES = [(name, dtype) for name in PRESETS for dtype in (torch.float32, torch.float64)[: 1 + (name not in EXPERTS)]]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_replayed_steps_equal_a_pass(graphs, name, dtype):
    """Law 5: two sequences of different length, with windows that turn, beside one pass over all tokens."""
    model = build(name, dtype=dtype)
    tokens = torch.randint(model.config.vocabulary, (2, 20))
    with torch.no_grad():
        want = [model(tokens[0])[0][8:], model(tokens[1, :15])[0][3:]]
        segments = Segments.from_lengths([8, 3])
        _, state = model(torch.cat((tokens[0, :8], tokens[1, :3])), segments, model.empty_state(2, 30))
        decoder = Decoder(model, state)
        found = [decoder.step(torch.stack((tokens[0, 8 + t], tokens[1, 3 + t]))).clone() for t in range(12)]
    assert HOST.get(name, "") in decoder.reason
    assert bool(decoder.reason) == (name in HOST)
    if name not in HOST:
        (graph,) = graphs
        assert (graph.warmed, graph.replays) == (1, 11)
    assert decoder.state.positions.tolist() == [20, 15]
    close = 2e-5 if dtype == torch.float32 else 1e-10
    for row in range(2):
        assert relative(torch.stack([x[row] for x in found]), want[row]) < close


@pytest.mark.parametrize("name", list(PRESETS))
def test_texts_are_those_of_plain_passes(graphs, monkeypatch, name):
    """Rows end one after another; each halving of the batch captures a graph of its own."""
    model = build(name)
    prompts = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 10]]
    how = zip(prompts, [3, 9, 20, 4], [Sampling(temperature=0)] * 2 + [Sampling()] * 2, range(4), strict=True)
    asked = [Request(tuple(p), most, sampling, seed=seed) for p, most, sampling, seed in how]
    monkeypatch.setattr("interlace.generation.scheduler.rows_for", lambda model, most: JoinedRows(model))
    found = [answer.tokens for answer in answers(model, asked)]
    assert len(graphs) == 3  # 4 rows, 2 and 1
    with monkeypatch.context() as patch:
        patch.setattr(capture, "graphs_for", lambda model: (None, "switched off"))
        assert [answer.tokens for answer in answers(model, asked)] == found


@pytest.mark.parametrize("graphed", [True, False])
@pytest.mark.parametrize("name", ["tiny-hybrid", "tiny-sliding", "tiny-kimi", "tiny-granite"])
def test_sequences_join_a_graph_of_others(graphs, monkeypatch, name, graphed):
    """Rows that have ended make place for other sequences; the last one is too long for the caches."""
    if not graphed:
        monkeypatch.setattr(capture, "graphs_for", lambda model: (None, "switched off"))
    model, draw = build(name), torch.Generator().manual_seed(1)
    seen = [torch.randint(61, (n,), generator=draw) for n in (3, 9, 6)]
    found = [[] for _ in seen]

    def read(prompts, reserve):
        return model(
            torch.cat(prompts),
            Segments.from_lengths([len(p) for p in prompts]),
            model.empty_state(len(prompts), reserve),
        )[1]

    def steps(count):
        for _ in range(count):
            tokens = torch.randint(61, (3,), generator=draw)
            logits = decoder.step(tokens)
            for row in range(3):
                seen[row] = torch.cat((seen[row], tokens[row : row + 1]))
                found[row].append(logits[row].clone())

    def check():
        for row in range(3):
            want = model(seen[row])[0][len(seen[row]) - len(found[row]) :]
            assert relative(torch.stack(found[row]), want) < 2e-5

    with torch.no_grad():
        decoder = Decoder(model, read(seen, 40))
        for rows, lengths in (([], []), ([1], [2]), ([2, 0], [20, 1]), ([1], [70])):
            if rows:
                fresh = [torch.randint(61, (n,), generator=draw) for n in lengths]
                decoder.join(rows, read(fresh, 0))
                for row, prompt in zip(rows, fresh, strict=True):
                    seen[row], found[row] = prompt, []
            steps(4)
            check()
    if graphed:
        assert [graph.replays for graph in graphs] in ([11, 3], [15])  # the second where a cache had to grow
    with pytest.raises(ShapeError, match="rows: must name 1 different sequences"):
        decoder.join([0, 1], read([torch.arange(3)], 0))


@pytest.mark.parametrize("reserve", [9, 0, 60])
def test_a_full_cache_is_enlarged_and_captured_again(graphs, reserve):
    model = build("tiny-sliding")
    tokens = torch.randint(61, (40,))
    with torch.no_grad():
        want = model(tokens)[0][3:]
        decoder = Decoder(model, model(tokens[:3], state=model.empty_state(1, reserve))[1])
        found = torch.cat([decoder.step(token).clone() for token in tokens[3:].split(1)])
        assert relative(found, want) < 2e-5
        more = torch.tensor([7])
        assert relative(model(more, state=decoder.state)[0], model(torch.cat((tokens, more)))[0][-1:]) < 2e-5
    assert (len(graphs) == 1) == (reserve == 60)


def test_weights_that_are_replaced_are_captured_again(graphs):
    model = build("tiny-hybrid")
    tokens = torch.arange(12)
    with torch.no_grad():
        decoder = Decoder(model, model(tokens[:3], state=model.empty_state(1, 20))[1])
        for token in tokens[3:6].split(1):
            decoder.step(token)
        state, weight = decoder.state.fork(0), model.blocks[0].mlp.up.weight
        weight.data = weight.data + 0.3 * torch.randn_like(weight)
        assert relative(decoder.step(tokens[6:7]), model(tokens[6:7], state=state)[0]) < 1e-5
    assert [graph.replays for graph in graphs] == [2, 0]


def test_a_single_step_is_not_captured(graphs):
    model = build("tiny-hybrid")
    with torch.no_grad():
        decoder = Decoder(model, model(torch.arange(3), state=model.empty_state(1, 9))[1])
        decoder.step(torch.tensor([3]))
    assert graphs[0].run is None
    with pytest.raises(ShapeError, match="vocabulary"):
        decoder.step(torch.tensor([61]))
    with pytest.raises(ShapeError, match="must be \\[1\\]"):
        decoder.step(torch.tensor([1, 2]))


def test_a_capture_that_fails_leaves_plain_passes(graphs, monkeypatch):
    def refuse(self, run):
        raise RuntimeError("operation not permitted when stream is capturing\nof something")

    monkeypatch.setattr(StandIn, "capture", refuse)
    model, tokens = build("tiny-hybrid"), torch.arange(9)
    with torch.no_grad():
        decoder = Decoder(model, model(tokens[:3], state=model.empty_state(1, 20))[1])
        found = torch.cat([decoder.step(token).clone() for token in tokens[3:].split(1)])
        assert relative(found, model(tokens)[0][3:]) < 2e-5
    assert decoder.reason.endswith("RuntimeError: operation not permitted when stream is capturing")


def test_garbage_beyond_what_was_written_is_not_read(graphs, monkeypatch):
    """Space for tokens to come is not initialised."""
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *size, **how: empty(x, *size, **how).fill_(torch.nan))
    model, tokens = build("tiny-kimi"), torch.arange(9)
    with torch.no_grad():
        decoder = Decoder(model, model(tokens[:3], state=model.empty_state(1, 20))[1])
        found = torch.cat([decoder.step(token).clone() for token in tokens[3:].split(1)])
        assert relative(found, model(tokens)[0][3:]) < 2e-5


def test_positions_on_the_device_are_not_known_on_the_host():
    model = build("tiny-hybrid")
    view = model.empty_state(1, 9).on_device(torch.zeros(1, dtype=torch.int64))[3]
    with pytest.raises(AssertionError, match="on the device"):
        _ = view.positions
    with pytest.raises(BackendUnavailable, match="hyena"):
        GraphedStep(build("tiny-hyena"), build("tiny-hyena").empty_state(1), Segments.equal(1, 1), None)


def test_which_devices_have_graphs_and_that_they_can_be_switched_off(monkeypatch):
    def on(device, dtype=torch.float32):
        return graphs_for(SimpleNamespace(device=torch.device(device), dtype=dtype))

    assert on("cuda")[0] is not None
    assert (on("cpu")[0] is not None) == kernels.available()
    assert on("mps") == (None, "there are no graphs for mps")
    assert not kernels.available() or "not float64" in on("cpu", torch.float64)[1]
    monkeypatch.setenv("INTERLACE_GRAPHS", "off")
    assert on("cuda") == on("cpu") == (None, "INTERLACE_GRAPHS=off")


# Draws on the device, of all rows at once


class Apart(Draws):
    """Draws as on a GPU."""

    def __init__(self, samplings, generators):
        super().__init__(samplings, generators, torch.device("cpu"))
        self._together = True
        for sampling in dict.fromkeys(samplings):
            places = [i for i, other in enumerate(samplings) if other == sampling]
            self._groups.append((sampling, places, torch.tensor(places)))


SAMPLINGS = [Sampling(), Sampling(temperature=0), Sampling(1.0, top_k=3), Sampling(1.3, top_p=0.7), Sampling(min_p=0.2)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_row_draws_alike_in_every_batch():
    logits = 3 * torch.randn(6, 40, 500)
    together = Apart(SAMPLINGS * 8, [seeded(i) for i in range(40)])
    alone = [Apart([s], [seeded(i)]) for i, s in enumerate(SAMPLINGS * 8)]
    for step in logits:
        assert together(step) == [draw(step[i : i + 1])[0] for i, draw in enumerate(alone)]


def test_draws_follow_the_probabilities_of_each_sampling():
    logits = torch.randn(12)
    for sampling in SAMPLINGS:
        want = sampling.probabilities(logits)
        uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
        drawn = sampling.pick(logits.expand(20_000, 12), None if sampling.temperature == 0 else uniform)
        share = torch.bincount(drawn, minlength=12) / 20_000
        torch.testing.assert_close(share, want, atol=2e-4, rtol=0)
        assert bool((share[want == 0] == 0).all())


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_line_are_tokens(uniform):
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    drawn = Sampling().pick(logits, torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [1 if uniform == 0 else 2]


def test_drawing_looks_at_nothing_until_the_tokens_are_copied():
    draw = Apart(SAMPLINGS, [seeded(i) for i in range(5)])
    draw._uniform = lambda place: 0.4  # the numbers come from the host
    with Blind():
        drawn = draw.draw_together(torch.randn(5, 50))
    assert drawn.shape == (5,)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("damaged", [torch.nan, torch.inf])
def test_a_damaged_row_changes_no_other(together, damaged):
    logits = torch.randn(3, 20)
    for sampling in (Sampling(), Sampling(temperature=0)):
        made = Apart if together else lambda *given: Draws(*given, torch.device("cpu"))
        whole = made([sampling] * 3, [seeded(i) for i in range(3)])(logits)
        broken = logits.clone()
        broken[1] = damaged
        found = made([sampling] * 3, [seeded(i) for i in range(3)])(broken)
        assert found == [whole[0], -1, whole[2]]


def test_a_batch_that_draws_on_the_device_makes_the_texts_of_its_rows(graphs, monkeypatch):
    """The whole loop as on a GPU: each row as if it were alone."""
    monkeypatch.setattr("interlace.generation.scheduler.Draws", lambda s, g, device: Apart(s, g))
    monkeypatch.setattr("interlace.generation.scheduler.rows_for", lambda model, most: JoinedRows(model))
    model = build("tiny-hybrid")
    prompts, most = [[1, 2, 3], [4], [5, 6], [7, 8]], [4, 12, 9, 20]
    how = zip(prompts, most, SAMPLINGS, range(4), strict=False)
    asked = [Request(tuple(p), m, s, seed=i) for p, m, s, i in how]
    together = [answer.tokens for answer in answers(model, asked)]
    assert together == [answers(model, [request])[0].tokens for request in asked]
    assert [len(made) for made in together] == most


def test_a_copy_to_the_device_is_a_copy_of_the_same_numbers():
    assert torch.equal(on_device(torch.arange(5), torch.device("cpu")), torch.arange(5))


INTERPRETED = ["tiny-hybrid", "tiny-gated-attention", "tiny-kimi", "tiny-nemotron", "tiny-mamba"]  # 2 to 9 seconds each


@pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())
@pytest.mark.parametrize(
    "name", ["tiny-sliding", *(pytest.param(name, marks=pytest.mark.slow) for name in INTERPRETED)]
)
def test_the_kernels_of_a_gpu_make_the_same_steps(graphs, monkeypatch, name):
    """Triton's interpreter runs all that has a kernel, one decoded token of attention among it."""
    launches = []
    launch = gpu.launch
    monkeypatch.setattr(gpu, "launch", lambda kernel, *rest: (launches.append(kernel.__name__), launch(kernel, *rest)))
    torch.manual_seed(0)
    model = interlace.HybridLM(preset(name).replace(init_std=0.2, depth=len(preset(name).pattern))).eval()
    tokens = torch.randint(61, (2, 8))
    with torch.no_grad():
        want = model(tokens)[0][:, 5:7]
        decoder = Decoder(model, model(tokens[:, :5], state=model.empty_state(2, 9))[1])
        monkeypatch.setattr(Backend, "wanted", lambda row, *_: row.name != "native")
        found = torch.stack([decoder.step(tokens[:, 5 + t]).clone() for t in range(2)], 1)
    assert relative(found, want) < 2e-5
    assert graphs[0].replays == 1
    assert ("attend" in launches) == ("attention" in model.config.pattern)
    assert len(launches) % 3 == 0  # of the first step, the capture and a replay: the same
    assert launches[: len(launches) // 3] * 3 == launches
