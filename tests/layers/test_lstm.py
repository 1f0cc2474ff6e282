"""The LSTM beside the laws: what cuDNN wants."""

from __future__ import annotations

import torch

from interlace.base.segments import Segments
from interlace.layers.base import Stream
from interlace.layers.lstm import LSTM, LSTMConfig


def test_gradients_ask_for_training_mode(monkeypatch):
    """cuDNN refuses to go back through an LSTM that was not run in training mode."""
    layer, asked, lstm = LSTM(8, LSTMConfig(hidden=4)), [], torch.lstm
    monkeypatch.setattr(torch, "lstm", lambda *a: (asked.append(a[7]), lstm(*a))[1])
    segments = Segments.from_lengths([2, 3])
    stream = Stream(segments, segments.positions())
    layer(torch.randn(5, 8), stream, None)[0].sum().backward()
    with torch.no_grad():
        layer(torch.randn(5, 8), stream, None)
    assert asked == [True, False]
