"""Distributed training with torchrun; without it there is one process, rank 0 of 1."""

import os

import torch
import torch.distributed as dist

from model.common import python

TORCHRUN_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT")  # numbers set by torchrun


def joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def join(device: str) -> None:
    """Join the processes that torchrun started, each on the GPU of its local rank if `device` is `auto` or `cuda`.

    Raises ValueError if there are more processes than GPUs, or torchrun's variables are missing or invalid.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1" and not joined():
        foreign = [name for name in TORCHRUN_VARIABLES if not os.environ.get(name, "").isdecimal()]
        if foreign or "MASTER_ADDR" not in os.environ:
            raise ValueError(
                "the environment has WORLD_SIZE, but not the other variables of torchrun; "
                "start with torchrun, or unset WORLD_SIZE for a single process"
            )
        on_gpus = torch.cuda.is_available() and device in ("auto", "cuda")
        if on_gpus:
            local = int(os.environ["LOCAL_RANK"])
            if local >= torch.cuda.device_count():
                raise ValueError(
                    f"this machine has {torch.cuda.device_count()} GPUs, and --nproc_per_node asks for more processes"
                )
            torch.cuda.set_device(local)
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")


def leave() -> None:
    if joined():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if joined() else 0


def local_rank() -> int:
    """The rank among the processes of this machine."""
    return int(os.environ["LOCAL_RANK"]) if joined() else 0


def world_size() -> int:
    return dist.get_world_size() if joined() else 1


def launcher() -> str:
    """The start of a command that launches the same number of processes."""
    if not joined():
        return python()
    return python("-m", "torch.distributed.run", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}")


def barrier() -> None:
    """Wait until all processes reach this point."""
    if joined():
        dist.barrier()


def sum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in place on each of them."""
    if joined():
        dist.all_reduce(value)
    return value


def max_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The maximum over all processes, in place on each of them."""
    if joined():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def print_once(*words) -> None:
    """Print on the first process only."""
    if rank() == 0:
        print(*words)
