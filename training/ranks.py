"""Several processes for one run, started by torchrun; a process on its own is rank 0 of one and none of this does anything."""

import os

import torch
import torch.distributed as dist


def join() -> None:
    """Become one of the processes that torchrun started, each with the GPU of its local rank where there are GPUs."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait() -> None:
    """Until all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' values, in place and in all of them."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def most(value: torch.Tensor) -> torch.Tensor:
    """The greatest of the processes' values, in place and in all of them."""
    if dist.is_initialized():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value
