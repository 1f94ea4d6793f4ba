"""The processes that train one network together, as torchrun starts them; alone, every function gives back its own."""

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
    "world_size",
    "wrap_ddp",
]

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long one waits for another, which may be asking the teacher or evaluating."""

Value = TypeVar("Value")
Module = TypeVar("Module", bound=nn.Module)


def init(device: str) -> None:
    """Join the other processes, if torchrun started this one beside others.

    Parameters
    ----------
    device : str
        As of `Compute.choose`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    place, meeting = Compute.choose(device).device, _meeting()
    if place.type == "mps":
        raise UsageError(problem("--device under torchrun", expected="cpu or cuda", got="mps"))
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        there = f"--nproc-per-node {torch.cuda.device_count()}, the number of GPUs"
        raise UsageError(problem("processes of torchrun", expected=there, got=f"number {place.index} on this machine"))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    # What is counted for the record lies on the CPU, so gloo is there in any case.
    backends = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    own, of = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group(backends, store=meeting, rank=own, world_size=of, timeout=COLLECTIVE_TIMEOUT)
    atexit.register(_destroy)


@cache
def _meeting() -> Any:
    """Where the processes find each other; under torchrun, a process of its own answers there, whoever of them dies."""
    return next(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT))[0]


def is_first_to_exit() -> bool:
    """Tell, once, whether this process is the first of all to end before its time: the one that knows why.

    The others end because it does. Where nobody is left who could be asked, each takes itself for the first.
    """
    if dist.is_initialized() or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        with suppress(RuntimeError):
            ended: int = _meeting().add(f"ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1)
            return ended == 1
    return True


def exit_process(code: int) -> NoReturn:
    """End this process; one beside others without taking Python down.

    DistributedDataParallel leaves threads of gloo behind that outlive their group (torch 2.14). One that is not done
    with the last exchange when Python goes ends the process by a signal: on a busy machine 2 trainings of 40, after
    their last line. So what is to be done at an exit is done, and nothing after it.
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
    """How many processes there are, R."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this one is the one that writes and talks."""
    return rank() == 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes."""
    return _reduced(tensor, dist.ReduceOp.SUM)


def all_reduce_max(tensor: Tensor) -> Tensor:
    """Take the largest of each entry over the processes."""
    return _reduced(tensor, dist.ReduceOp.MAX)


def global_mean(values: Tensor) -> Tensor:
    """Take the mean of the values of all processes, of which one may have more than another."""
    if world_size() == 1:
        return values.mean()
    sums = all_reduce_sum(
        torch.stack([values.sum(), torch.tensor(len(values), dtype=values.dtype, device=values.device)])
    )
    return sums[0] / sums[1]


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first one, as running statistics are."""
    for buffer in module.buffers():
        broadcast(buffer)


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        dist.barrier()


def any_rank(flag: bool) -> bool:
    """Tell whether any process says so; each must ask."""
    return bool(all_reduce_max(torch.tensor(int(flag))))


def _reduced(tensor: Tensor, operation: Any) -> Tensor:
    if world_size() == 1:
        return tensor
    reduced = tensor.clone()
    dist.all_reduce(reduced, operation)
    return reduced


def all_gather(rows: Tensor) -> list[Tensor]:
    """Collect the rows of each process, of which one may have more than another: R tensors, each (B, ...)."""
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
    """Give every process what the first one has; a tensor in place, anything else as a copy."""
    if world_size() == 1:
        return value
    if isinstance(value, Tensor):
        dist.broadcast(value, 0)
        return value
    box = [value]
    dist.broadcast_object_list(box, 0)
    return box[0]


def convert_sync_batchnorm(network: Module, device: torch.device) -> Module:
    """Let batch-norm normalize by the batches of all processes.

    Raises
    ------
    UsageError
        On anything but CUDA, for which alone torch has it.
    """
    if device.type != "cuda":
        raise UsageError(problem("--sync-batchnorm", expected="--device cuda", got=device.type))
    converted: Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return converted


def wrap_ddp(module: nn.Module, *, broadcast_buffers: bool) -> nn.Module:
    """Average the gradients of a module over the processes.

    Parameters
    ----------
    module : Module
    broadcast_buffers : bool
        Whether each forward begins with the buffers of the first process.
    """
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases of torch have another word for the same
        return DistributedDataParallel(module, broadcast_buffers=broadcast_buffers)
