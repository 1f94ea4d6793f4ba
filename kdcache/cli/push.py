"""``kdcache push``."""

import re
import tempfile
from pathlib import Path

import click

from kdcache.cli import COMMANDS
from kdcache.cli.models import BEST
from kdcache.errors import KdcacheError, UsageError, first_line, printable, problem, require_package

__all__ = ["push"]

HUB_PREFIX = "hf-hub:"


@click.command("push", help=COMMANDS["push"].about)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repository", metavar="ORG/NAME")
@click.option(
    "--dry-run",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write the files to this folder, which must not exist, instead of uploading them.",
)
@click.option("--private", is_flag=True, help="Create the repository as a private one.")
@click.option("--license", metavar="NAME", help="License of the network on its card, such as mit. [default: none]")
@BEST
def push(run: Path, repository: str, dry_run: Path | None, private: bool, license: str | None, best: bool) -> None:
    """Push a network."""
    from kdcache.bundle.model_card import write_repository
    from kdcache.files import write_folder_atomically
    from kdcache.run.folder import FinishedRun

    repository = repository.removeprefix(HUB_PREFIX)
    require_package(f"push to {repository}", "huggingface_hub", "hf")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UsageError(problem("repository", expected="ORG/NAME", got=repository))
    folder = FinishedRun(run)
    file = folder.chosen_network_file(best)
    if dry_run is not None and dry_run.exists():
        raise UsageError(problem(f"--dry-run {dry_run}", expected="a folder that does not exist yet", got="one"))

    def write(target: Path) -> None:
        target.mkdir()
        write_repository(folder, file, target, repository, license)

    if dry_run is not None:
        write_folder_atomically(dry_run.resolve(), write)
        click.echo(printable(f"{dry_run}: what would be pushed to {repository}: {_list(dry_run)}"))
        return
    with tempfile.TemporaryDirectory() as temporary:
        files = Path(temporary, "files")
        write(files)
        url = _upload(files, repository, private)
        click.echo(printable(f"{url}: {_list(files)}"))


def _list(folder: Path) -> str:
    return ", ".join(sorted(file.name for file in folder.iterdir()))


def _upload(files: Path, repository: str, private: bool) -> str:
    """Create the repository if it is not there, upload the files in one commit, and return its address."""
    import logging

    import huggingface_hub as hub

    # It tells of each try; who gives up says so.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        api = hub.HfApi()
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=files, commit_message="Push a network of kdcache")
    except Exception as error:  # no network, no login, no permission
        remedy = "Check the connection, and log in with 'hf auth login'. --dry-run FOLDER writes the files alone."
        raise KdcacheError(problem(f"could not push to {repository}", got=first_line(error), remedy=remedy)) from error
    return str(url)
