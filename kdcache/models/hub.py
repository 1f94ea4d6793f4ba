"""Weights on the Hugging Face Hub: ``hf-hub:ORG/NAME@REVISION``, in the form of timm or of ``kdcache push``."""

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from kdcache.errors import KdcacheError, UsageError, first_line, problem, require_package

__all__ = ["HUB_PREFIX", "locate", "network_of"]

HUB_PREFIX = "hf-hub:"

TENSORS, FACTS = ("model.safetensors", "pytorch_model.bin"), ("config.json", "preprocessor_config.json")
"""Files of a repository: the first of the former is read, and what the latter state."""

SECONDS_TO_ANSWER = 20
"""Time that the Hub may take to answer."""

log = logging.getLogger("kdcache")


def locate(weights: str, may_download: bool = True) -> Path:
    """Find the file of weights on this machine, in the cache of Hugging Face, or download it with what is beside it.

    Parameters
    ----------
    weights : str
        ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION``.
    may_download : bool
        Whether the user asked for what may have to be downloaded.

    Raises
    ------
    UsageError
        If there are no such weights, or they would have to be downloaded and may not.
    KdcacheError
        If the download fails.
    """
    require_package(f"weights {weights}", "huggingface_hub", "hf")
    import huggingface_hub as hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, stated = weights.removeprefix(HUB_PREFIX).partition("@")
    revision = stated or None
    try:
        for file in TENSORS:
            if isinstance(cached := hub.try_to_load_from_cache(name, file, revision=revision), str):
                return Path(cached)
        if not may_download:
            what = f"weights {weights}, which a file named, would be downloaded"
            raise UsageError(problem(what, remedy="Add --download, or name them on the command line."))
        # The libraries would try for half a minute, and tell of each try.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        found = hub.HfApi().model_info(name, revision=revision, timeout=SECONDS_TO_ANSWER)
        present = {each.rfilename for each in found.siblings or ()}
        file = next((file for file in TENSORS if file in present), "")
        if not file:
            raise UsageError(problem(f"files of {weights}", expected=" or ".join(TENSORS), got="neither"))
        log.info("downloading %s of %s", file, weights)
        for facts in FACTS:
            if facts in present:
                hub.hf_hub_download(name, facts, revision=revision)
        return Path(hub.hf_hub_download(name, file, revision=revision))
    except UsageError:
        raise
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        expected = "a repository of the Hub that you may read, as in hf-hub:timm/resnet18.a1_in1k"
        raise UsageError(problem(f"weights {weights}", expected=expected, got=first_line(error))) from error
    except Exception as error:  # the network is down, or the disk is full
        is_answer = isinstance(error, HfHubHTTPError)
        by_hand = "Without a network connection, copy the files to this machine, and name the file of weights."
        remedy = None if is_answer else by_hand
        raise KdcacheError(problem(f"could not download {weights}", got=first_line(error), remedy=remedy)) from error


def network_of(file: Path) -> str | None:
    """Name the network of weights in the form of timm, which ``config.json`` beside them states."""
    facts: Any = None
    with suppress(OSError, ValueError, RecursionError):
        facts = json.loads((file.parent / FACTS[0]).read_text("utf-8"))
    architecture = facts.get("architecture") if isinstance(facts, dict) else None
    return f"timm:{architecture}" if isinstance(architecture, str) else None
