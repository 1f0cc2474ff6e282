"""The public operator `attention`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interlace.base.errors import ShapeError
from interlace.base.segments import Segments
from interlace.ops.attention import native, ragged, stretch, varlen
from interlace.ops.attention import step as steps
from interlace.ops.attention.recurrent import recurrent
from interlace.ops.attention.step import Step
from interlace.ops.core import gpu, kernels, tables
from interlace.ops.core.attention_state import AttentionState
from interlace.ops.core.backends import ANY, Backend, choose
from interlace.ops.core.custom_op import Signature, custom_op
from interlace.ops.core.operands import check_devices

_ragged = custom_op(
    "ragged_attention",
    Signature(
        "Tensor query, Tensor key, Tensor value, Tensor offsets, float scale, SymInt? window",
        ("query", "key", "value"),
        outputs=1,
    ),
    lambda query, key, value, offsets, *rest: ragged.fresh(query, key, value, offsets, 0, *rest).contiguous(),
    ragged.fresh_back,
    lambda query, key, value, *_: value.new_empty(*query.shape[:2], value.shape[2]),
)


class Attention(NamedTuple):
    """One call of `attention`: its arguments, with `scale` as a number."""

    query: Tensor
    key: Tensor
    value: Tensor
    segments: Segments
    state: AttentionState | None
    scale: float
    window: int | None

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.query.device


def _run_fused(call: Attention) -> tuple[Tensor, AttentionState]:
    query, key, value, segments, state, scale, window = call
    if state is not None:
        return _step_on_gpu(call) or ragged.cached(query, key, value, segments, state, scale)
    if torch.compiler.is_compiling() and segments.time is None:  # the borders are data, so the loop over them is opaque
        out = _ragged(query, key, value, segments.offsets, scale, window)
    else:
        out = ragged.fresh(query, key, value, segments.offsets, segments.time or 0, scale, window)
    return out, AttentionState.of_tokens(key, value, segments, window)


def _run_varlen(call: Attention) -> tuple[Tensor, AttentionState]:
    query, key, value, segments, _, scale, window = call
    out = varlen.fresh(query, key, value, segments, scale, window)
    return out, AttentionState.of_tokens(key, value, segments, window)


def _load_varlen() -> Callable[[Attention], tuple[Tensor, AttentionState]]:
    varlen.load()
    return _run_varlen


def _step_on_gpu(call: Attention) -> tuple[Tensor, AttentionState] | None:
    """Serve one token of each sequence by Triton's kernels, if they can; its positions are copied to the device."""
    query, key, value, segments, state, scale, _ = call
    assert state is not None
    if segments.time != 1 or call.device.type != "cuda" or kernels.wants_graph(query, key, value, state.keys):
        return None
    state.check_unused()
    state.grow()
    places = tables.on_device(torch.tensor(state.positions, device="cpu"), call.device)
    x = Step(query, key, value, state.on_device(places), scale)
    if not STEPS[0].wanted(x) or STEPS[0].obstacle(x) is not None:
        return None
    return step(x, "triton"), state.stepped()


def _run_recurrent(call: Attention) -> tuple[Tensor, AttentionState]:
    query, key, value, segments, state, scale, window = call
    out = recurrent(query, key, value, segments, state, scale, window)
    if state is None:
        return out, AttentionState.of_tokens(key, value, segments, window)
    return out, state.append(key, value, segments)


def compiled_past(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None) -> Tensor:
    """Attend from a sequence's newest tokens to all it has seen, [T, H, V], by the kernel if possible, else torch's."""
    if query.shape[0] > 1 and native.serves_past(query, key, value):
        return native.after_past(query, key, value, scale, window)
    return ragged.after_past(query, key, value, scale, window)


def _run_native(call: Attention) -> tuple[Tensor, AttentionState]:
    query, key, value, segments, state, scale, window = call
    if state is None:
        out = native.fresh(query, key, value, segments, scale, window)
        return out, AttentionState.of_tokens(key, value, segments, window)
    if native.serves(query, key, value, segments, state):
        return native.step(query, key, value, state, scale)
    return ragged.cached(query, key, value, segments, state, scale, compiled_past)


BACKENDS = (
    kernels.backend(lambda: _run_native, lambda call: native.refuses(call.query, call.key, call.value)),
    Backend(
        "varlen",
        _load_varlen,
        ("cuda",),
        lambda call: varlen.refuses(call.query, call.key, call.value, call.state, call.window),
        when=lambda call: call.state is None and call.device.type == "cuda",
    ),
    Backend("chunked", lambda: _run_fused, slow_on=("cpu",)),
    Backend("recurrent", lambda: _run_recurrent, slow_on=(ANY,)),
)


STEPS = (
    gpu.backend("attention", steps.refuses_gpu, steps.selects),
    kernels.backend(lambda: steps.native, steps.refuses, ("cpu",)),
    Backend("masked", lambda: steps.masked, slow_on=("cuda",)),
)


def step(x: Step, backend: str = "auto") -> Tensor:
    """Attend with one token of each sequence whose positions are on the device; its buffers are written: [N, H, V]."""
    run: Callable[[Step], Tensor] = choose("attention of one token", STEPS, backend, x)
    return run(x)


def attention(
    query: Float[Tensor, "total H K"],
    key: Float[Tensor, "total J K"],
    value: Float[Tensor, "total J V"],
    *,
    segments: Segments | None = None,
    state: AttentionState | None = None,
    scale: float | None = None,
    window: int | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "total H V"], AttentionState]:
    """Causal softmax attention of each token over its own sequence.

    Args:
        query: [total, H, K].
        key, value: [total, J, K] and [total, J, V]; H a multiple of J, query head h reads head h // (H / J).
        segments: where sequences start; None means one sequence.
        state: what the sequences saw before; it is used up by the call.
        scale: multiplies the logits; K ** -0.5 if None.
        window: how many tokens a query sees, itself included; None for all. Must equal the state's.
        backend: "auto", "native" (float32 and bfloat16 on a CPU), "varlen" (torch's fused kernel for ragged sequences:
            bfloat16 on a GPU, without a state), "chunked" (torch's fused kernel) or "recurrent".

    Returns:
        out [total, H, V] and the state after these tokens.

    Raises:
        ShapeError: arguments disagree; the message names the argument.
    """
    segments = segments or Segments.from_lengths([query.shape[0]])
    if query.ndim != 3 or query.shape[0] != segments.total:
        raise ShapeError(f"attention: query has shape {list(query.shape)}, but must be [{segments.total}, H, K]")
    total, H, K = query.shape
    if key.ndim != 3 or (key.shape[0], key.shape[2]) != (total, K) or H % key.shape[1]:
        raise ShapeError(
            f"attention: key has shape {list(key.shape)}, but must be [{total}, J, {K}] with H = {H} a multiple of J"
        )
    if value.ndim != 3 or value.shape[:2] != key.shape[:2]:
        raise ShapeError(f"attention: value has shape {list(value.shape)}, but must be {list(key.shape[:2])} + [V]")
    if window is not None and window < 1:
        raise ShapeError(f"attention: window must be at least 1, got {window}")
    if state is not None and state.window != window:
        raise ShapeError(f"attention: window is {window}, but state was made with window {state.window}")
    if state is not None and state.count != segments.count:
        raise ShapeError(f"attention: state holds {state.count} sequences, but segments has {segments.count}")
    if min(query.numel(), key.numel(), value.numel()) < 1:
        raise ShapeError(f"attention: query has shape {list(query.shape)}, but it must hold something")
    check_devices("attention", {"query": query, "key": key, "value": value})
    if state is not None:
        sizes = state.shapes
        if sizes != (tuple(key.shape[1:]), tuple(value.shape[1:])):
            raise ShapeError(
                f"attention: state keeps keys and values of {list(sizes[0])} and {list(sizes[1])}, but key has shape "
                f"{list(key.shape)} and value {list(value.shape)}; it was made for another layer"
            )
    scale = float(K**-0.5 if scale is None else scale)
    if state is not None and state.places is not None:
        return step(Step(query, key, value, state, scale)), state
    if segments.across is not None:
        return stretch.attend(query, key, value, segments, scale, window), AttentionState.of_tokens(
            key, value, segments, window
        )
    call = Attention(query, key, value, segments, state, scale, window)
    run: Callable[[Attention], tuple[Tensor, AttentionState]] = choose("attention", BACKENDS, backend, call)
    return run(call)
