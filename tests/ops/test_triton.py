"""The Triton kernels beside the laws: other tiles, kept states, rows far apart; and that faults in them are found."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interlace.base.segments import Segments
from interlace.ops.core import gpu, kernels, tables
from interlace.ops.core.cases import TOLERANCE, measured, recurrence_case, step_probe
from interlace.ops.core.operands import Recurrence
from interlace.ops.gated_delta.cases import mixer_step_case
from interlace.ops.selective_scan.cases import selective_scan_case

pytestmark = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())

if not gpu.missing():
    from interlace.layers.gated_delta_fused import mixer_case
    from interlace.ops.core import delta_kernels, delta_split, one_token
    from interlace.ops.gated_delta import triton, triton_backward, triton_forward
    from interlace.ops.selective_scan import triton as selective_scan
    from interlace.ops.state_space import triton as state_space

OPS = Path(gpu.__file__).parents[1]


def worst(case, dtype=torch.float32):
    values, gradients = measured(case, "triton", dtype, "cpu")
    return max(values, gradients) if values == values and gradients == gradients else float("inf")


def gated_delta(lengths, shape=(1, 2, 12, 20), state=True):
    return recurrence_case("gated_delta", lengths, "", state, shape=shape)


@pytest.mark.parametrize("name", ["EXACT", "REGISTERS"])
def test_gated_delta_with_other_tiles(monkeypatch, name):
    """float32's and the tiles of GPUs before Hopper; a state kept at every other chunk, many blocks of columns."""
    monkeypatch.setattr(tables, "PERIOD", 2)
    monkeypatch.setattr(triton, "tiles", lambda *_: getattr(triton, name)._replace(keys=16, columns=16, values=16))
    assert worst(gated_delta([1, 101], (1, 2, 20, 24))) <= TOLERANCE[torch.float32]


def test_states_are_kept_and_taken_up_again(monkeypatch):
    monkeypatch.setattr(tables, "PERIOD", 1)
    assert worst(gated_delta([150, 3, 65])) <= TOLERANCE[torch.float32]


def remembering(operator):
    """A case of four and two chunks whose decays are so weak that a border carries something."""
    case = recurrence_case(operator, [193, 70], "", True, shape=(1, 2, 12, 20))
    case.tensors["log_decay"] = 0.02 * case.tensors["log_decay"].clamp(min=-1)
    return case


@pytest.mark.parametrize("operator", ["gated_delta", "kimi_delta"])
def test_stretches_of_a_sequence_are_joined(monkeypatch, operator):
    monkeypatch.setattr(delta_kernels, "period", lambda *_: 1)
    assert worst(remembering(operator)) <= TOLERANCE[torch.float32]


@pytest.mark.slow
def test_joining_stretches_loses_nothing_of_bfloat16(monkeypatch):
    whole = worst(remembering("gated_delta"), torch.bfloat16)
    monkeypatch.setattr(delta_kernels, "period", lambda *_: 1)
    assert worst(remembering("gated_delta"), torch.bfloat16) <= 1.1 * whole


def test_a_scan_is_cut_where_it_would_leave_a_gpu_idle(monkeypatch):
    def chunks(rows, total, G, K=128, dtype=torch.bfloat16):
        offsets = torch.arange(rows + 1, dtype=torch.int32) * (total // rows)
        new = torch.empty(total, G, K, dtype=dtype, device="meta")
        gates = torch.empty(total, G, device="meta")
        return delta_kernels.period(Recurrence(new, new, new, gates, gates, offsets, None, 1.0, 0, True), 64, 64)

    assert chunks(1, 32768, 8) == 32  # 512 chunks of 16 programs each: 256 programs
    assert chunks(1, 2048, 8) == 8
    assert [chunks(1, 960, 8), chunks(8, 32768, 8), chunks(1, 32768, 8, K=192), chunks(1, 32768, 32)] == [0] * 4
    monkeypatch.setattr(gpu, "INTERPRETED", False)
    assert chunks(1, 32768, 8, dtype=torch.float32) == 0


@pytest.mark.parametrize("sizes", [(1, 12, 20, 4), (2, 20, 70, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_token_through_a_layer(sizes, dtype):
    """All that lies between a layer's projections, by kernels for a GPU and for a CPU."""
    case = mixer_step_case(*sizes)
    for backend in ("triton", "native") if kernels.available() else ("triton",):
        assert measured(case, backend, dtype, "cpu")[0] <= TOLERANCE[dtype]


@pytest.mark.parametrize("operator", ["gated_delta", "kimi_delta", "state_space"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_token_by_a_rule(operator, dtype):
    launched = []
    with pytest.MonkeyPatch.context() as patch:
        launch = gpu.launch
        patch.setattr(gpu, "launch", lambda kernel, *rest: (launched.append(kernel), launch(kernel, *rest)))
        values, _ = measured(step_probe(operator, 20, 40), "triton", dtype, "cpu")
    assert values <= TOLERANCE[dtype]
    assert launched == [one_token.step]


@pytest.mark.parametrize("sizes", [(1, 12, 20, 4), (2, 20, 24, 3)], ids=str)
def test_all_between_the_projections_of_a_layer(sizes):
    """Convolution, gates, rule and gated norm in one operator, which writes its gradients in place."""
    assert worst(mixer_case([3, 70, 1], *sizes)) <= TOLERANCE[torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize(("state", "dtype"), [(True, torch.float32), (False, torch.bfloat16)], ids=str)
def test_selective_scan_with_short_stretches(monkeypatch, state, dtype):
    """The interpreter scans token by token, so the law's own cases would take minutes."""
    monkeypatch.setattr(selective_scan, "PERIODS", (1,))
    case = selective_scan_case([1, 22, 5], "", state, shape=(5, 3))
    assert worst(case, dtype) <= TOLERANCE[dtype]


def test_state_space_with_short_stretches(monkeypatch):
    """Few sequences are cut, and the parts run at once; decays are weak, so that a border carries something."""
    monkeypatch.setattr(state_space, "PERIODS", (1,))
    case = recurrence_case("state_space", [200, 1, 70], "", True, shape=(1, 2, 12, 20))
    case.tensors["log_decay"] = 0.02 * case.tensors["log_decay"].clamp(min=-1)
    assert worst(case) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("rule", ["gated_delta", "kimi_delta", "state_space"])
def test_what_a_compiler_expects_of_the_gradients(rule):
    """A state in bfloat16 has its gradient in bfloat16, as the shapes say that a compiler sees."""
    case = recurrence_case(rule, [3, 5], "", True, shape=(1, 2, 16, 16))
    strength = next(name for name in ("beta", "step") if name in case.tensors)
    names = ("query", "key", "value", "log_decay", strength, "state")
    *tensors, state = (case.tensors[n].bfloat16() for n in names)
    x = Recurrence.of(tuple(tensors), Segments.from_lengths([3, 5]), state, None, rule != "state_space")
    module = importlib.import_module(f"interlace.ops.{rule}.triton")
    out, final, *saved = module._forward(*x, True)
    operator = getattr(torch.ops.interlace, f"{rule}_triton_backward").default
    torch.library.opcheck(operator, (out, final, *saved, *x, True), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(("channels", "read"), [(8, 16), (16, 16), (20, 32), (64, 64), (128, 128), (256, 256)])
def test_small_channels_are_read_in_one_or_two_pieces(channels, read):
    assert sum(delta_kernels.pieces(channels)) == read


@pytest.mark.parametrize(("channels", "both"), [(48, (32, 16)), (80, (64, 16)), (96, (64, 32)), (100, (64, 64))])
def test_other_channels_are_read_in_two_pieces(channels, both):
    assert delta_kernels.pieces(channels) == both


def test_rows_may_lie_farther_apart_than_32_bits_count():
    """Rows of queries, keys and values almost 2^24 elements apart; the memory between them is never touched."""
    far, case = (1 << 24) - 16, gated_delta([70, 90], state=False)
    room = torch.empty(160 * far, dtype=torch.float32)
    inputs = {}
    for place, (name, x) in enumerate(case.tensors.items()):
        if name in ("query", "key", "value"):
            y = room[100 * place :].as_strided(x.shape, (far, x.shape[2], 1))
            inputs[name] = y.copy_(x)
        else:
            inputs[name] = x.float()
    out = case.call("triton", inputs)[0]
    assert torch.allclose(out.double(), case.call("recurrent", case.tensors)[0], atol=1e-5)


FAULTS = {
    "a border mask": ("triton_forward", "there = rows < count", "there = rows <= count"),
    "a decay's sign": ("triton_forward", "(high[:, None] - high[None, :])", "(high[None, :] - high[:, None])"),
    "a transposed block": ("triton_forward", "U = dot(X.to(t.dtype), tl.trans(t))", "U = dot(X.to(t.dtype), t)"),
    "a dropped state gradient": ("triton_backward", "dS1 += given1", "dS1 += 0 * given1"),
    "a wrong tile edge": ("triton_forward", "v_there = v_cols < V\n", "v_there = v_cols < V - 1\n"),
    "a state kept in another's place": (
        "triton_forward",
        "to = tl.load(sequences + 4 * n + 2) + c // KEEP - 1",
        "to = tl.load(sequences + 4 * n + 2)",
    ),
}


SPLIT_FAULTS = {
    "a border's transition": ("delta_split", "stretch = source", "stretch = target"),
    "a transposed transition": ("delta_split", "            if REVERSE:", "            if not REVERSE:"),
    "a stretch begun anew": ("triton_forward", "in1 & (slot >= 0), in2", "in1 & (slot > 0), in2"),
    "a state counted at every stretch": ("triton_forward", "valued[:, None] & (slot < 0)", "valued[:, None]"),
}  # fmt: skip


def put_in(monkeypatch, folder, module, right, wrong):
    """Let the kernels of a module run with a fault in them."""
    whole = {"delta_split": delta_split, "triton_forward": triton_forward, "triton_backward": triton_backward}[module]
    source = Path(whole.__file__).read_text(encoding="utf-8")
    assert right in source
    (folder / "faulty.py").write_text(source.replace(right, wrong), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("faulty", folder / "faulty.py")
    faulty = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faulty)
    monkeypatch.setattr(delta_kernels if module == "delta_split" else triton, module, faulty)


@pytest.mark.filterwarnings("ignore")  # a wrong decay overflows
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_a_kernel_is_found(monkeypatch, tmp_path, fault):
    monkeypatch.setattr(tables, "PERIOD", 1)
    put_in(monkeypatch, tmp_path, *FAULTS[fault])
    assert worst(gated_delta([3, 150])) > 100 * TOLERANCE[torch.float32]


@pytest.mark.filterwarnings("ignore")  # what no stretch has written is anything
@pytest.mark.parametrize("fault", SPLIT_FAULTS)
def test_a_fault_at_a_border_is_found(monkeypatch, tmp_path, fault):
    monkeypatch.setattr(delta_kernels, "period", lambda *_: 1)
    put_in(monkeypatch, tmp_path, *SPLIT_FAULTS[fault])
    assert worst(remembering("gated_delta")) > 100 * TOLERANCE[torch.float32]


def test_offsets_of_32_bits_are_found(tmp_path):
    """Such a kernel reads and writes other memory: the process dies, or the values are wrong."""
    room = tmp_path / "ops"
    copy = "import shutil, sys; shutil.copytree(sys.argv[1], sys.argv[2])"
    subprocess.run([sys.executable, "-c", copy, OPS / "gated_delta", room], check=True)
    kernels = room / "triton_forward.py"
    source = kernels.read_text(encoding="utf-8")
    assert ".to(tl.int64)" in source
    kernels.write_text(source.replace(".to(tl.int64)", ".to(tl.int32)"), encoding="utf-8")
    program = f"""
import importlib.util, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from interlace.ops.gated_delta import triton
spec = importlib.util.spec_from_file_location("faulty", {str(kernels)!r})
triton.triton_forward = importlib.util.module_from_spec(spec)
spec.loader.exec_module(triton.triton_forward)
import test_triton
test_triton.test_rows_may_lie_farther_apart_than_32_bits_count()
"""
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True)
    assert done.returncode < 0 or "assert torch.allclose" in done.stderr, done.stderr
