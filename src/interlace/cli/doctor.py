"""`interlace doctor`."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from interlace.cli.output import Meter, print_json, print_table, quantity, say


def doctor(*, device: str = "cpu", json: Annotated[bool, Parameter(negative="")] = False) -> int:
    """Versions, processor, threads, and every operator's backends run against the float64 recurrence here.

    On a GPU, its kernels are compiled and checked at the sizes that models have, in under three minutes. Exit code 1 if
    one is wrong on this machine.

    Examples:

        interlace doctor
        interlace doctor --device cuda

    Parameters
    ----------
    device: str
        "cpu", or "cuda".
    json: bool
        Print one JSON document.
    """
    from dataclasses import asdict

    from interlace.model.device import check_device
    from interlace.ops.core import kernels
    from interlace.ops.selftest import check

    check_device(device)
    machine = describe_machine(device)
    with Meter() as meter:
        findings = check(device, meter.update)
    wrong = [f for f in findings if not f.good]
    if json:
        print_json(
            {"machine": machine, "findings": [{**asdict(f), "good": f.good} for f in findings], "good": not wrong}
        )
        return int(bool(wrong))
    print_table("machine", ["", ""], [[k, str(v)] for k, v in machine.items()], words=2)
    timed = device != "cpu"  # kernels are compiled there
    rows = [
        [
            f"{f.operator} {f.backend}",
            f.dtype,
            f"{f.values:.1e}",
            "-" if f.gradients is None else f"{f.gradients:.1e}",
            f"{f.tolerance:.0e}",
            *([f"{f.seconds:.1f}"] if timed else []),
            "good" if f.good else "WRONG",
        ]
        for f in findings
    ]
    print_table(
        "relative error against the float64 recurrence (or formula), worst case"
        + timed * "; seconds of the first call",
        ["operator and backend", "dtype", "values", "gradients", "allowed", *(["first"] if timed else []), ""],
        rows,
        words=2,
    )
    for f in wrong:
        if f.failure:
            say(f"{f.operator} {f.backend} in {f.dtype} does not run here: {f.failure}", style="red")
    if wrong:
        names = ", ".join(f"{f.operator} {f.backend} in {f.dtype}" for f in wrong)
        say(f"Do not trust this machine's results: {names} disagrees with the recurrence.", style="bold red")
        return 1
    say(f"All {len(findings)} checks agree with their truth.")
    if kernels.missing:
        say(
            f"The native CPU kernels are missing: {kernels.missing}. Everything works without them, but on a CPU "
            "training takes about twice and decoding about four times as long (docs/LOG.md).",
            style="yellow",
        )
    elif not kernels.shares_torch_threads():
        say(
            "The native kernels do not run on torch's threads, so each waits for the other's to fall asleep: build "
            "interlace with a compiler whose OpenMP runtime is torch's (gcc's, for torch from PyPI on Linux).",
            style="yellow",
        )
    return 0


def describe_machine(device: str) -> dict[str, Any]:
    """What the numbers depend on."""
    import os
    import platform

    import torch

    from interlace.cli.output import size
    from interlace.model.precision import choose_precision, matmul_flops_per_second
    from interlace.ops.core import gpu, kernels
    from interlace.runs.machine import memory_bytes, processor
    from interlace.runs.versions import versions
    from interlace.sandbox import cage

    facts: dict[str, Any] = {**versions(), "system": platform.platform(terse=True), "processor": processor()}
    facts["instructions"] = torch.backends.cpu.get_cpu_capability()
    facts["native kernels"] = kernels.active() if kernels.available() else f"none: {kernels.missing}"
    if kernels.available():
        facts["native kernels built"] = ", ".join(kernels.instruction_sets())
    facts["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    facts["memory"] = size(memory_bytes()) if memory_bytes() else "unknown"
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    if device != "cpu":
        other = '; on this vendor\'s GPU the chunked form serves, unless backend="triton" is asked for'
        nvidia = device.startswith("cuda") and torch.version.hip is None
        facts["Triton kernels"] = (gpu.missing() or "here") + ("" if nvidia else other)
    for name in ("float32", "bfloat16"):
        rate = matmul_flops_per_second(getattr(torch, name), device, 512)
        facts[f"matrix products, {name}"] = quantity(rate, "FLOP/s")
    facts["cage for programs"] = cage.describe()
    facts["training precision"] = choose_precision("auto", torch.device(device))
    return facts
