"""Count the floating-point operations of the chunked form; a test counts them in the running code."""

from __future__ import annotations

from interlace.ops.core import delta_scan

flops_per_token_and_head = delta_scan.flops_per_token_and_head
