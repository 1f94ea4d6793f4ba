"""The page about a bundle."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import onnxruntime
import torch

from kdcache import __version__
from kdcache.analysis.cost import BATCH_SIZES, Timing
from kdcache.models import Network

if TYPE_CHECKING:
    from kdcache.bundle.write import Measured

__all__ = ["difference", "readme"]

PAGE = """# {network}, {classes} classes

| file | precision | top-1 on {images:,} test images | bytes | {columns} |
| --- | --- | ---: | ---: | ---: | ---: |
{rows}

{difference} Milliseconds an image: median and quartiles, by onnxruntime {runtime} on {machine} (threads: {threads}).
int8 was calibrated on training views, with a scale for each channel of the weights.

```sh
pip install numpy pillow onnxruntime
python predict.py                                       # the test picture: is the answer the expected one?
python predict.py --model model-int8.onnx PICTURE...
```

| file | content |
| --- | --- |
| `labels.txt` | the classes in the order of the probabilities, one a line |
| `predict.py` | reads pictures and predicts them; needs numpy, Pillow and onnxruntime alone |
| `test.png`, `expected.json` | a test picture, its class, and the answer of each file |

Input `images`: uint8 (batch, 3, {size}, {size}), RGB, 0 to 255. A picture is turned as its EXIF orientation says;
{rendering}. Normalization is part of the network.
Output `probabilities`: float32 (batch, {classes}). The metadata of the files state the same, and the classes, as JSON.

Written by kdcache {kdcache}, torch {torch}; ONNX opset 18.
"""


def readme(network: Network, measured: Sequence["Measured"]) -> str:
    """Write the page about a network and the files that hold it."""
    rows = [
        f"| `{each.file}` | {each.precision} | {each.top1:.2f} % | {each.bytes:,} | "
        + " | ".join(map(_format_timing, each.timings))
        + " |"
        for each in measured
    ]
    return PAGE.format(
        network=network.name,
        classes=network.num_classes,
        images=measured[0].images,
        columns=" | ".join(f"ms, {size} at a time" for size in BATCH_SIZES),
        rows="\n".join(rows),
        difference=difference(measured),
        runtime=onnxruntime.__version__,
        machine=platform.processor() or platform.machine(),
        threads=torch.get_num_threads(),
        size=network.image_size,
        rendering=network.rendering.evaluation,
        kdcache=__version__,
        torch=version("torch"),
    )


def difference(measured: Sequence["Measured"]) -> str:
    """Say how much accuracy the second precision loses."""
    first, second = measured
    loss = first.top1 - second.top1
    how = f"{abs(loss):.2f} points {'less' if loss > 0 else 'more'} accurate than" if loss else "as accurate as"
    return f"{second.precision} is {how} {first.precision}."


def _format_timing(timing: Timing) -> str:
    return f"{timing.median:.2f} ({timing.low:.2f} to {timing.high:.2f})"
