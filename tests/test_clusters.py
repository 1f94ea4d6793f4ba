"""The sbatch file of docs/clusters.md, taken from the page and run with stand-ins for Slurm's commands."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "clusters.md"
SCRIPT, RESOURCES = re.findall(r"```bash\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)

STEP = """#!/bin/bash
# In place of a training: it begins, ends with the code in the file "exit", or is stopped by SIGUSR1 or SIGTERM.
echo "$@" >> commands
trap 'echo saved >> log; exit 143' USR1 TERM
touch begun
until [ -e exit ]; do read -rt 0.02 < <(:); done
exit "$(cat exit)"
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """A folder with the script, and with commands of Slurm that write what they are asked to a file."""
    (tmp_path / "student.sh").write_text(SCRIPT)
    (tmp_path / "runs" / "student").mkdir(parents=True)
    for name, text in {"srun": STEP, "scontrol": '#!/bin/bash\necho "$@" >> scontrol.log\n'}.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def start(cluster: Path) -> "subprocess.Popen[bytes]":
    environment = {"PATH": f"{cluster / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    job = subprocess.Popen(["bash", "student.sh"], cwd=cluster, env=environment)
    while job.poll() is None and not (cluster / "begun").exists():
        time.sleep(0.01)
    return job


@pytest.mark.parametrize("text", [SCRIPT, RESOURCES])
def test_the_scripts_are_valid(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_a_job_that_is_stopped_before_its_time_limit_gets_another_turn(cluster: Path) -> None:
    job = start(cluster)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 143
    assert (cluster / "log").read_text() == "saved\n"  # the script waited for the training
    assert (cluster / "scontrol.log").read_text() == "requeue 17\n"


def test_a_training_that_finishes_in_spite_of_the_signal_gets_no_other_turn(cluster: Path) -> None:
    (cluster / "runs" / "student" / "summary.json").touch()
    job = start(cluster)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 143
    assert not (cluster / "scontrol.log").exists()


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_job_ends_with_the_exit_code_of_its_training(code: int, cluster: Path) -> None:
    (cluster / "exit").write_text(str(code))
    assert start(cluster).wait(20) == code
    assert not (cluster / "scontrol.log").exists()


def test_each_turn_has_the_command_that_resumes(cluster: Path) -> None:
    (cluster / "exit").write_text("0")
    start(cluster).wait(20)
    assert (cluster / "commands").read_text().endswith("--out runs/student --resume\n")
