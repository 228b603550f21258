"""The compute device: selection, threads, bfloat16 support, memory."""

import platform
import re
import sys
from pathlib import Path

import torch

from model import check

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a Linux container: CPU microseconds per period, period


def pick(name: str = "auto") -> torch.device:
    """The device of that name; `auto` is CUDA, else Apple's MPS, else the CPU. Raises ValueError if it is missing.

    Also limits torch's threads to the CPU quota of a container.
    """
    torch.set_num_threads(min(torch.get_num_threads(), threads_allowed()))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):  # other backends are not installed, or cannot compute
            return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    raise ValueError(f"device {check.shown(name)} is not available here; --device auto picks one that is")


def threads_allowed() -> int:
    """The cores in the container's quota: torch starts a thread per host core, and extra ones would be throttled."""
    try:
        quota, period = QUOTA.read_text(encoding="utf-8").split()
        return max(1, round(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or no quota: "max"
        return torch.get_num_threads()


def described(device: torch.device) -> str:
    """The GPU's name, or the processor's and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def processor() -> str:
    """The name of the CPU, and whether it multiplies bfloat16 in matrix units (AMX)."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (
                line.split(":")[1].strip()
                for line in info.read_text(encoding="utf-8").splitlines()
                if line.startswith("model name")
            ),
            name,
        )
    return name + (" with AMX" if platform.machine() == "x86_64" and torch.cpu._is_amx_tile_supported() else "")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (elsewhere it is emulated, and slower than float32)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def peak_memory(device: torch.device) -> float:
    """Peak memory in GB: reserved on the GPU, else resident in the process (0 on Windows, where it is unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
