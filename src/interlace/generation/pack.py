"""Pack a model's weights as decoding reads them fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interlace.layers.projection import Projections
from interlace.model.model import HybridLM
from interlace.ops.core import kernels


def pack_for_decoding(model: HybridLM, int8: bool = False) -> HybridLM:
    """Pack a model's matrices for one-row products, which read every weight once per token. It will only generate.

    Layers that read the same input become one product. Where there are no native kernels, float32 matrices are stored
    column by column instead, which the library reads 1.3 times faster on a CPU. Values stay the same.

    Args:
        model: changed in place; an optimizer made before would still hold the old layout.
        int8: round each output's weights to 255 steps, which halves what bfloat16 reads. The model then cannot be
            trained or saved.
    """
    on_cpu = model.device.type == "cpu"
    for module in model.modules():
        if isinstance(module, Projections) and (int8 or (on_cpu and kernels.available())):
            module.pack(int8)
        elif isinstance(module, nn.Linear) and on_cpu and not kernels.available():
            weight: Tensor = module.weight
            if weight.dtype == torch.float32 and weight.numel():
                weight.data = weight.data.t().contiguous().t()
    if int8:
        model.pack_head()
    return model
