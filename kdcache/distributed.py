"""Distributed training under torchrun. In a single process every function is the identity."""

import atexit
import os
import sys
import warnings
from contextlib import suppress
from datetime import timedelta
from functools import cache
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from kdcache.compute import Compute
from kdcache.errors import UsageError, problem

__all__ = [
    "all_gather",
    "all_reduce_max",
    "all_reduce_sum",
    "any_rank",
    "barrier",
    "broadcast",
    "broadcast_buffers",
    "convert_sync_batchnorm",
    "exit_process",
    "global_mean",
    "init",
    "is_first_to_exit",
    "is_main",
    "rank",
    "require_group",
    "world_size",
    "wrap_ddp",
]

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a collective waits: another process may be busy with the teacher or an evaluation."""

Value = TypeVar("Value")
Module = TypeVar("Module", bound=nn.Module)


def init(device: str) -> None:
    """Join the process group if torchrun started several processes.

    Parameters
    ----------
    device : str
        As in `Compute.choose`.

    Raises
    ------
    UsageError
        If the device cannot be used, or there are more processes than GPUs on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    place, store = Compute.choose(device).device, _store()
    if place.type == "mps":
        raise UsageError(problem("--device under torchrun", expected="cpu or cuda", got="mps"))
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        gpus = torch.cuda.device_count()
        remedy = f"Start torchrun with --nproc-per-node {gpus}."
        got = f"local rank {place.index} on a machine with {gpus}"
        raise UsageError(problem("torchrun", expected="a GPU for each process", got=got, remedy=remedy))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    # Counts are CPU tensors, so gloo is needed beside NCCL.
    backends = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    own_rank, size = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group(backends, store=store, rank=own_rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)
    atexit.register(_destroy)


@cache
def _store() -> Any:
    """Connect to the rendezvous store; under torchrun it is served by the agent, which outlives any worker."""
    return next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))[0]


def require_group() -> None:
    """Refuse to go on in one of several processes of torchrun that have not joined: each would do all the work.

    Raises
    ------
    UsageError
    """
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1 and not dist.is_initialized():
        remedy = "Call torch.distributed.init_process_group first."
        raise UsageError(
            problem(f"torchrun with {size} processes", expected="a process group", got="none", remedy=remedy)
        )


def is_first_to_exit() -> bool:
    """Whether this process is the first one to fail, and so the one that knows why; call it once.

    The others fail because the first did. If the store is gone, every process takes itself for the first.
    """
    if dist.is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        with suppress(RuntimeError):
            ended: int = _store().add(f"ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1)
            return ended == 1
    return True


def exit_process(code: int) -> NoReturn:
    """Exit; in distributed training, without finalizing the interpreter.

    DistributedDataParallel leaves gloo threads behind that outlive their group (torch 2.14). If one is still busy while
    Python finalizes, the process dies by a signal: on a busy machine in 2 of 40 trainings, after their last line. So
    the exit functions are run and the streams flushed, and then the process ends at once.
    """
    if dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _destroy() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the main one, rank 0, which writes files and prints."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over the processes."""
    return _all_reduce(tensor, dist.ReduceOp.SUM)


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Maximum of a tensor over the processes, elementwise."""
    return _all_reduce(tensor, dist.ReduceOp.MAX)


def global_mean(values: Tensor) -> Tensor:
    """Mean over the values of all processes, whose numbers of values may differ."""
    if world_size() == 1:
        return values.mean()
    count = torch.tensor(len(values), dtype=values.dtype, device=values.device)
    total, count = all_reduce_sum(torch.stack([values.sum(), count]))
    return total / count


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the main process's buffers, such as running statistics, to every process."""
    for buffer in module.buffers():
        broadcast(buffer)


def barrier() -> None:
    """Wait until every process has reached this call."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process; every process must call it."""
    return bool(all_reduce_max(torch.tensor(int(flag))))


def _all_reduce(tensor: Tensor, operation: Any) -> Tensor:
    if world_size() == 1:
        return tensor
    reduced = tensor.clone()
    dist.all_reduce(reduced, operation)
    return reduced


def all_gather(rows: Tensor) -> list[Tensor]:
    """Rows (B, ...) of every process, in the order of ranks; their numbers of rows may differ."""
    if world_size() == 1:
        return [rows]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[rank()] = len(rows)
    lengths: list[int] = all_reduce_sum(counts).tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return [part[:length] for part, length in zip(parts, lengths, strict=True)]


def broadcast(value: Value) -> Value:
    """Copy the main process's value to every process; a tensor in place, anything else by pickling."""
    if world_size() == 1:
        return value
    if isinstance(value, Tensor):
        dist.broadcast(value, 0)
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def convert_sync_batchnorm(network: Module, device: torch.device) -> Module:
    """Replace batch norms by `torch.nn.SyncBatchNorm`, which uses the statistics of all processes.

    Raises
    ------
    UsageError
        On any other device than CUDA, which PyTorch does not support.
    """
    if device.type != "cuda":
        raise UsageError(problem("--sync-batchnorm", expected="--device cuda", got=f"--device {device.type}"))
    converted: Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


def wrap_ddp(module: nn.Module, *, broadcast_buffers: bool) -> nn.Module:
    """Wrap a module in DistributedDataParallel, if there are several processes and it has anything to train.

    Parameters
    ----------
    module : Module
    broadcast_buffers : bool
        Whether every forward starts with the buffers of the main process.
    """
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases of torch rename the argument
        return DistributedDataParallel(module, broadcast_buffers=broadcast_buffers)
