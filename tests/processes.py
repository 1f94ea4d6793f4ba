"""Commands and trainings in processes of their own, which tests may kill, and the outcome of a run.

The processes are forked from one that has imported what takes seconds to import.
"""

import gc
import hashlib
import math
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import IO, Any, NoReturn

import numpy as np
import torch
import torch._dynamo  # the first step of an optimizer imports it, which takes a second
import torch.distributed as dist
import zarr
from kdcache.stages import precompute_answers, train_student, train_teacher

from kdcache import cli, machine
from kdcache.config import StudentConfig, TeacherConfig
from kdcache.run.folder import FinishedRun
from tests import quick  # noqa: F401

gc.freeze()  # a forked process that searches for garbage copies the memory it searches
_FORKSERVER = multiprocessing.get_context("forkserver")
_FORKSERVER.set_forkserver_preload(["tests.processes"])


class Command:
    """A running command line, in a process group of its own.

    Parameters
    ----------
    words : tuple of str
        Without the program's name.
    cwd : Path
    prepare : callable, optional
        Called in the process before the command.
    daemon : bool
        A daemon ends with the tests, but cannot have workers.
    """

    def __init__(
        self, words: tuple[str, ...], cwd: Path, prepare: Callable[[], None] | None = None, daemon: bool = True
    ) -> None:
        self.words, self.folder = words, tempfile.TemporaryDirectory()
        self.files = [Path(self.folder.name, name) for name in ("output", "errors")]
        self.process = start_process(_run_command, words, cwd, self.files, prepare, daemon=daemon)

    def children(self) -> list[Path]:
        """Find the folders in ``/proc`` of the processes that it started."""
        file = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [Path("/proc", child) for child in file.read_text().split()] if file.exists() else []

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.process.kill()
        self.process.join()

    def wait(self, seconds: float = 240) -> "CompletedProcess[str]":
        """Wait until it has ended."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running: {self.words}"
        output, errors = (file.read_text() for file in self.files)
        return CompletedProcess(self.words, self.process.exitcode, output, errors)


class ForkedInterpreter:
    """What `subprocess.Popen` is for ``python -m kdcache``, but forked from this process, which has imported torch."""

    def __init__(self, args: Sequence[str], env: dict[str, str] | None, **settings: Any) -> None:
        self.args, place = args, args.index("kdcache")
        assert (args[0], args[place - 1]) == (sys.executable, "-m")
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                self._run(args[place + 1 :], env or {}, **settings)
            finally:
                os._exit(1)

    def _run(
        self,
        words: Sequence[str],
        env: dict[str, str],
        stdin: int | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        cwd: Path | None = None,
        **group: object,
    ) -> NoReturn:
        assert group in ({"process_group": 0}, {"start_new_session": True})
        os.setpgid(0, 0) if "process_group" in group else os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for descriptor, file in enumerate((stdout, stderr), start=1):
            if file:
                os.dup2(file.fileno(), descriptor)
        os.closerange(3, 1000)  # locks of the study and sockets of torchrun among them
        # Another thread may have been printing when this process was forked.
        sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", closefd=False) for descriptor in (1, 2))
        os.chdir(cwd or ".")
        os.environ |= env
        sys.argv = ["kdcache", *words]
        try:
            cli.main()
        except SystemExit as error:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(error.code)  # type: ignore[arg-type]

    def poll(self) -> int | None:
        if self.returncode is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if number else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = math.inf if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            time.sleep(0.01)
        return code

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)


def start_command(
    command: str, settings: dict[str, Any], prepare: Callable[[], None] | None = None, daemon: bool = True
) -> Command:
    """Start a command with settings as options, in the parent of its run folder."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "resume"]
    options += ["--resume"] if settings.get("resume") else []
    return Command((command, *options), Path(settings["out"]).parent, prepare, daemon)


def kdcache(*words: str, cwd: Path, prepare: Callable[[], None] | None = None) -> "CompletedProcess[str]":
    """Run a command to its end."""
    return Command(words, cwd, prepare).wait()


def without_advice(errors: str) -> str:
    """Leave out what a training says about other programs on this machine, as other tests are."""
    return "".join(line for line in errors.splitlines(keepends=True) if "--threads" not in line)


def start_ranks(world_size: int, command: str, settings: dict[str, Any]) -> list[Command]:
    """Start a command in each process of a process group, with the environment that torchrun gives to its workers."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    ranks = range(world_size)
    return [start_command(command, settings, partial(_set_rank, rank, world_size, port)) for rank in ranks]


def start_torchrun(ranks: int, command: str, settings: dict[str, Any], prepare: Callable[[], None]) -> Command:
    """Start a command under torchrun, whose workers are forked from it after the given preparation."""
    return start_command(command, settings, partial(_become_torchrun, ranks, prepare))


def _become_torchrun(ranks: int, prepare: Callable[[], None]) -> NoReturn:
    import torch.distributed.run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    prepare()
    subprocess_handler.Popen = ForkedInterpreter
    subprocess_handler.subprocess = SimpleNamespace(Popen=ForkedInterpreter)  # where torch before 2.9 finds it
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.distributed.run.main(["--standalone", f"--nproc-per-node={ranks}", "-m", "kdcache", *sys.argv[1:]])
    sys.exit()


def _set_rank(rank: int, world_size: int, port: int) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "localhost", **{name: str(value) for name, value in variables.items()}}


def _run_command(words: tuple[str, ...], cwd: Path, files: list[Path], prepare: Callable[[], None] | None) -> None:
    for descriptor, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    os.setpgid(0, 0)
    os.chdir(cwd)
    sys.argv = ["kdcache", *words]
    if prepare:
        prepare()
    cli.main()


def start_training(kind: str, **settings: Any) -> BaseProcess:
    """Start or resume a training in a process of its own."""
    return start_process(run_stage, kind, settings, daemon=True)


def start_process(function: Callable[..., object], *arguments: object, daemon: bool = False) -> BaseProcess:
    """Call a function in a process of its own, with one thread."""
    process = _FORKSERVER.Process(target=_call, args=(function, *arguments), daemon=daemon)
    process.start()
    return process


def _call(function: Callable[..., object], *arguments: object) -> None:
    torch.set_num_threads(1)
    machine.other_trainings = lambda: []  # those of other tests
    multiprocessing.set_start_method(None, force=True)  # as in a process started by a shell
    function(*arguments)


def run_stage(kind: str, settings: dict[str, Any]) -> None:
    """Train a teacher or a student, or precompute logits, as the command line does."""
    cli.handle_signals()
    if kind == "teacher":
        train_teacher(TeacherConfig.load(**settings))
    elif kind == "precompute":
        precompute_answers(StudentConfig.load(**settings))
    else:
        train_student(StudentConfig.load(**settings))


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function in each process of a process group, and return the results."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(world_size)]
        processes = [
            _FORKSERVER.Process(target=_run_rank, args=(files, rank, function, arguments)) for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        return [pickle.loads(file.read_bytes()) for file in files]


def _run_rank(files: list[Path], rank: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(files[0].with_name("store")), len(files))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(files))
    files[rank].write_bytes(pickle.dumps(function(*arguments)))
    dist.destroy_process_group()


def outcome(path: Path) -> dict[str, Any]:
    """Read everything in a run folder that a run with the same settings must repeat bit for bit."""
    run = FinishedRun(path)
    lines = [vars(line) for line in run.read_metrics()]
    times = ("seconds", "images_per_second", "data_share", "teacher_share")
    varying = (*times, "teacher_forwards", "cache_hits")
    metrics = [{name: value for name, value in line.items() if name not in varying} for line in lines]
    found: dict[str, Any] = {"network": _digest((path / "model.safetensors").read_bytes()), "metrics": metrics}
    for group in ("statistics.zarr", *(f"{store.relative_to(path)}/clean" for store in path.glob("answers/*/"))):
        if (path / group).exists():
            arrays = zarr.open_group(path / group, mode="r").arrays()
            found |= {f"{group}/{name}": _digest(np.asarray(array[...]).tobytes()) for name, array in arrays}
    return found


def _digest(content: bytes) -> str:
    """Hash contents, whose difference pytest would take minutes to print."""
    return hashlib.sha256(content).hexdigest()
