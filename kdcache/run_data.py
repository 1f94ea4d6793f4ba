"""The images that a run was trained on, which may have been moved since."""

import logging
from pathlib import Path
from typing import Any

from kdcache.datasets import Dataset
from kdcache.errors import UsageError, problem
from kdcache.run.folder import RunFolder
from kdcache.setup import load_data

__all__ = ["load_run_data", "require_unlabelled"]


def load_run_data(
    run: RunFolder,
    dataset: str | None = None,
    data_root: Path | None = None,
    split: str = "train",
    unlabelled: str | None = None,
) -> Dataset:
    """Load the images that a run was trained on, which may have been moved.

    Parameters
    ----------
    run : RunFolder
    dataset : str, optional
        Where they are now, by default where they were.
    data_root : Path, optional
        Folder of the downloaded datasets, by default the run's.
    split : str
        What is needed: ``train``, ``val`` or ``test``. Unlabelled images are left out beside labelled ones unless the
        training images are needed.
    unlabelled : str, optional
        Where they are now, by default where they were.

    Raises
    ------
    UsageError
        If the images there are others, or the run had none without labels.
    """
    from kdcache.models.checkpoint import rendering_of

    config = run.read_config()
    places = {"dataset": dataset or config.dataset, "data_root": data_root or config.data_root}
    has_unlabelled = config.image_settings.get("unlabelled") is not None
    if unlabelled is not None:
        require_unlabelled(has_unlabelled, run.path)
        places["unlabelled"] = unlabelled
    config = config.model_copy(update={**places, "download": False})
    leaves_out = split != "train" and config.train_fraction > 0 and has_unlabelled and unlabelled is None
    if leaves_out:
        config = config.model_copy(update={"unlabelled": None})
    logging.disable(logging.INFO)  # the training said this about its images
    try:
        data = load_data(config)
    finally:
        logging.disable(logging.NOTSET)
    if run.network_file.is_file():
        data = data.rendered(rendering_of(run.network_file))
    if not (_is_tested_on if leaves_out else _is_trained_on)(run, data):
        remedy = "If they were moved, name their place with --dataset."
        expected = f"the images that {run.path} was trained on"
        raise UsageError(problem(f"--dataset {places['dataset']}", expected=expected, got="others", remedy=remedy))
    return data


def require_unlabelled(has_unlabelled: bool, what: object) -> None:
    """Refuse a place of images without labels where there are none."""
    if not has_unlabelled:
        expected = f"no value for {what}, which has no images without labels"
        raise UsageError(problem("--unlabelled", expected=expected, got="one"))


def _is_trained_on(run: RunFolder, data: Dataset) -> bool:
    """Whether a run was trained on some images, by their fingerprint; true if it recorded none."""
    return _recorded_origin(run, "dataset") in (None, data.train.fingerprint)


def _is_tested_on(run: RunFolder, data: Dataset) -> bool:
    """Whether a run was tested on some images, as `_is_trained_on`."""
    return _recorded_origin(run, "test set") in (None, data.test.fingerprint)


def _recorded_origin(run: RunFolder, name: str) -> Any:
    origin = run.read_environment().get("origin")
    return origin.get(name) if isinstance(origin, dict) else None
