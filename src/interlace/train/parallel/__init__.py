"""Several workers that train one model, by PyTorch's own engine: torchrun, DeviceMesh, FSDP2, DCP.

No layer and no model names a worker. Weights are cut over workers by `fully_shard` (`workers`), heads by building each
worker a layer of fewer heads (`train/cut/tensor.py`), tokens by `Segments.across` (`interlace.ops.core.across`).
"""
