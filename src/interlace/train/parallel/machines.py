"""Devices on paper: rates, memory and links, as their makers state them."""

from __future__ import annotations

from dataclasses import dataclass

from interlace.base.errors import ConfigError, nearest


@dataclass(frozen=True)
class DeviceKind:
    """One kind of device.

    Attributes:
        flops_per_second: of dense matrix products in bfloat16.
        memory_bytes: that programs can have.
        inside_bytes_per_second, across_bytes_per_second: that a device sends, in one direction, to others of its own
            machine and of other machines.
        devices_per_machine: how many share a machine.
        utilisation: share of the rate that a step's products reach, about, while nothing waits for other devices.
    """

    name: str
    flops_per_second: float
    memory_bytes: float
    inside_bytes_per_second: float
    across_bytes_per_second: float
    devices_per_machine: int
    utilisation: float = 0.40


# Sources: NVIDIA's data sheets of A100, H100, H200 and B200 in SXM form (dense rates, NVLink in one direction), with
# one network card of 200, 400, 400 and 400 Gbit/s for each device. Utilisation: Olmo Hybrid's 8.2K tokens/s on each of
# 128 H100 (arXiv 2604.03444, table 9) are 0.37 of the rate with all that waits in it.
KINDS = {
    kind.name: kind
    for kind in (
        DeviceKind("a100", 312e12, 79e9, 300e9, 25e9, 8),
        DeviceKind("h100", 989e12, 84e9, 450e9, 50e9, 8),
        DeviceKind("h200", 989e12, 150e9, 450e9, 50e9, 8),
        DeviceKind("b200", 2250e12, 190e9, 900e9, 50e9, 8),
    )
}


def device_kind(name: str) -> DeviceKind:
    """Return the kind of this name; raises ConfigError."""
    if name.lower() not in KINDS:
        raise ConfigError(f"--device-kind: there is no kind '{name}'; {nearest(name.lower(), KINDS)}")
    return KINDS[name.lower()]
