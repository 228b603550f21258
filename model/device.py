"""Where the network runs: the device, its threads, and whether it multiplies bfloat16 in hardware."""

import platform
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container on Linux: microseconds of all cores together, in how many


def pick(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is CUDA, else Apple's MPS, else the CPU. Raises ValueError for one that is not there.

    In a container, torch keeps to the share of the cores that is the container's.
    """
    torch.set_num_threads(min(torch.get_num_threads(), threads_allowed()))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"there is no device {name!r} here; --device auto takes what there is") from None


def threads_allowed() -> int:
    """As many threads as the quota of a container has cores: torch takes one for each core of the host, and they would stop each other."""
    try:
        quota, period = QUOTA.read_text().split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or one without a quota: "max"
        return torch.get_num_threads()


def described(device: torch.device) -> str:
    """What a reader of figures wants to know of a device: the GPU's name, or the processor's and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """The name of the CPU, and whether it multiplies bfloat16 in matrix units (AMX)."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), name)
    return name + (" with AMX" if platform.machine() == "x86_64" and torch.cpu._is_amx_tile_supported() else "")


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products have units of their own there (elsewhere they are emulated, and slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
