"""The files of a network on the Hugging Face Hub: weights, facts, and the card that shows it."""

import json
import shutil
from pathlib import Path
from typing import Any

from kdcache import __version__
from kdcache.choices import FOLDER_PREFIX, HDF5_PREFIX, HF_PREFIX
from kdcache.config import StudentConfig
from kdcache.models import Network, checkpoint
from kdcache.run.folder import EpochMetrics, FinishedRun

__all__ = ["CARD", "FACTS", "WEIGHTS", "write_repository"]

WEIGHTS, FACTS, CARD = "model.safetensors", "config.json", "README.md"

PLACES = ("data_root", "teacher", "further_teachers", "store", "answers", "unlabelled", "init", "dataset", "track")
"""Settings that the card leaves out: they may hold paths of the machine."""

PAGE = """---
{header}
---

# {name}

{network} with {classes} classes, {how}, by [kdcache](https://arxiv.org/abs/2012.02909) {kdcache}.

| dataset | network | parameters | image size | epochs | top-1 | top-5 |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
| {dataset} | {network} | {parameters:,} | {size} | {epochs} | {top1:.2f} % | {top5:.2f} % |

Accuracy is on the test images, of the network after epoch {epochs}{chosen}.

```sh
pip install 'kdcache[hf]'
kdcache teacher-load --weights hf-hub:{repository} --dataset DATASET            # evaluate it, or teach with it
kdcache teacher-train --init hf-hub:{repository} --model {network} --dataset DATASET   # start from it
```

It takes RGB pixels from 0 to 255 and normalizes them itself. A picture is turned as its EXIF orientation says;
{rendering}. The classes, in the order of the logits, are in `{facts}`.

## Training

```toml
{settings}```
"""


def write_repository(run: FinishedRun, file: Path, folder: Path, repository: str, license: str | None) -> None:
    """Write the files of a network into a folder.

    Parameters
    ----------
    run : FinishedRun
    file : Path
        One of its networks.
    folder : Path
        Exists.
    repository : str
        ``ORG/NAME`` on the Hub.
    license : str, optional
        Of the network.
    """
    network, epoch = checkpoint.load(file), run.describe_network(file)[1]
    metrics = next(line for line in run.read_metrics() if line.epoch == epoch)
    shutil.copyfile(file, folder / WEIGHTS)
    facts = {"library_name": "kdcache", **checkpoint.metadata(file)}
    (folder / FACTS).write_text(json.dumps(facts, indent=2, default=str) + "\n", "utf-8")
    (folder / CARD).write_text(_card(run, network, metrics, repository, license), "utf-8")


def _card(run: FinishedRun, network: Network, metrics: EpochMetrics, repository: str, license: str | None) -> str:
    config, dataset = run.config, _public_name(run.config.dataset)
    how = "trained on labels" if not isinstance(config, StudentConfig) else f"a student, trained with {config.loss}"
    if isinstance(config, StudentConfig):
        how += f" on {config.aug} views"
    if "loaded" in run.summary:
        how = "loaded from other weights"
    return PAGE.format(
        header="\n".join(_header(config.dataset, dataset, repository, metrics, license)),
        name=repository.rpartition("/")[2],
        network=network.name,
        classes=network.num_classes,
        how=how,
        kdcache=__version__,
        dataset=dataset,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        size=network.image_size,
        epochs=metrics.epoch,
        top1=metrics.test_top1,
        top5=metrics.test_top5,
        chosen="" if metrics.epoch == run.summary["epochs"] else f", the best on {run.summary['best_on']} images",
        repository=repository,
        rendering=network.rendering.evaluation,
        facts=FACTS,
        settings=config.to_toml(exclude={*config.NOT_RECORDED, *PLACES}),
    )


def _public_name(dataset: str) -> str:
    """Name a dataset without the folders that lead to it."""
    for prefix in (FOLDER_PREFIX, HDF5_PREFIX):
        if dataset.startswith(prefix):
            return Path(dataset.removeprefix(prefix)).name
    return Path(dataset).name if Path(dataset.removeprefix(HF_PREFIX)).is_absolute() else dataset


def _header(dataset: str, title: str, repository: str, metrics: EpochMetrics, license: str | None) -> list[str]:
    """Write the metadata that the Hub reads. JSON is YAML."""
    task = {"type": "image-classification"}
    result = {
        "task": task,
        "dataset": {"name": title, "type": title},
        "metrics": [{"type": "accuracy", "name": "top-1", "value": metrics.test_top1}],
    }
    facts: dict[str, Any] = {
        "library_name": "kdcache",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "knowledge-distillation", "kdcache"],
        **({"license": license} if license else {}),
        **({"datasets": [title.removeprefix(HF_PREFIX).partition("#")[0]]} if title.startswith(HF_PREFIX) else {}),
        "model-index": [{"name": repository.rpartition("/")[2], "results": [result]}],
    }
    return [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items()]
