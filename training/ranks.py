"""Several processes for one run, started by torchrun; a process on its own is rank 0 of one and none of this does anything."""

import os

import torch
import torch.distributed as dist


def joined() -> bool:
    return dist.is_available() and dist.is_initialized()


def join(device: str) -> None:
    """Become one of the processes that torchrun started; on GPUs (`auto` where there are any, or `cuda`) each has that of its local rank.

    Raises ValueError for more processes than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not joined():
        on_gpus = torch.cuda.is_available() and device in ("auto", "cuda")
        if on_gpus:
            if local_rank() >= torch.cuda.device_count():
                raise ValueError(f"there are {torch.cuda.device_count()} GPUs here, and --nproc_per_node asks for more processes")
            torch.cuda.set_device(local_rank())
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo")


def leave() -> None:
    if joined():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if joined() else 0


def local_rank() -> int:
    """Of the processes of one machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if joined() else 1


def launcher() -> str:
    """The beginning of the line that starts as many processes again, on one machine or on each of several."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not joined():
        return "python"
    return f"torchrun --nproc_per_node={here}" if here == world() else f"torchrun --nnodes={world() // here} --nproc_per_node={here} …"


def wait() -> None:
    """Until all processes have come here."""
    if joined():
        dist.barrier()


def total(value: torch.Tensor) -> torch.Tensor:
    """The sum of the processes' values, in place and in all of them."""
    if joined():
        dist.all_reduce(value)
    return value


def most(value: torch.Tensor) -> torch.Tensor:
    """The greatest of the processes' values, in place and in all of them."""
    if joined():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value
