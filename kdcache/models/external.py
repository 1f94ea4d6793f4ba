"""Networks from elsewhere: torchvision's, timm's, and the user's own."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from kdcache.errors import UsageError, first_line, problem

__all__ = ["SOURCES", "FeatureExtractor", "make", "outline", "trust"]

_trusted: set[str] = set()


def trust(name: str) -> None:
    """Allow the code of a ``python:`` network to be imported, because the user named it.

    A checkpoint names its network too, and nothing that is read from a file may decide which code runs.

    Parameters
    ----------
    name : str
        ``python:module:callable``; other names need no trust.
    """
    _trusted.add(name)


def make(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Make a network from elsewhere, with fresh weights.

    Parameters
    ----------
    name : str
        ``torchvision:NAME``, ``timm:NAME`` or ``python:module:callable``.
    num_classes, image_size : int

    Raises
    ------
    UsageError
        Where there is no such network, its code is not trusted, or it does not give logits of the right shape.
    """
    source, _, rest = name.partition(":")
    body = SOURCES[source](rest, num_classes, image_size)
    _probe(name, body, num_classes, image_size)
    return body


def outline(name: str, num_classes: int, image_size: int) -> nn.Module | None:
    """Make a network under torch's ``meta`` device, which must be in force; ``None`` where that cannot be done."""
    source, _, rest = name.partition(":")
    if source == "python":
        return None
    try:
        return SOURCES[source](rest, num_classes, image_size)
    except (RuntimeError, NotImplementedError):  # a network that looks at its fresh weights
        return None


def _torchvision(rest: str, num_classes: int, image_size: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if rest not in known:
        raise UsageError(problem(f"network torchvision:{rest}", expected=", ".join(known), got=rest))
    options: dict[str, Any] = {"image_size": image_size} if rest.startswith("vit_") else {}
    if rest in ("googlenet", "inception_v3"):  # whose further classifiers have no place in a distillation
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = models.get_model(rest, weights=None, num_classes=num_classes, **options)
    return network


def _timm(rest: str, num_classes: int, image_size: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        raise UsageError(problem(f"network timm:{rest}", expected="after pip install 'kdcache[timm]'")) from None
    if not timm.is_model(rest):
        near = ", ".join(difflib.get_close_matches(rest, timm.list_models(), n=5))
        raise UsageError(problem(f"network timm:{rest}", expected=near or "a name of timm.list_models()", got=rest))
    configuration = timm.get_pretrained_cfg(rest)
    fixed = configuration is not None and configuration.fixed_input_size
    sized: dict[str, Any] = {"img_size": image_size} if fixed else {}
    network: nn.Module = timm.create_model(rest, pretrained=False, num_classes=num_classes, **sized)
    return network


def _python(rest: str, num_classes: int, image_size: int) -> nn.Module:
    name = f"python:{rest}"
    module, _, attribute = rest.partition(":")
    if name not in _trusted:
        raise UsageError(
            problem(
                "code of a network that a file names",
                expected=f"kdcache --trust {name} ..., if you trust it",
                got=name,
            )
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function: Any = importlib.import_module(module)
        for part in attribute.split("."):
            function = getattr(function, part)
        network = function(num_classes=num_classes)
    except Exception as error:  # the user's code may fail in any way
        raise UsageError(problem(f"network {name}", got=f"{type(error).__name__}: {first_line(error)}")) from error
    if not isinstance(network, nn.Module):
        raise UsageError(problem(f"network {name}", expected="a torch.nn.Module", got=type(network).__name__))
    return network


SOURCES: dict[str, Callable[[str, int, int], nn.Module]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "python": _python,
}


def _probe(name: str, body: nn.Module, num_classes: int, image_size: int) -> None:
    """Refuse a network that does not turn images of this size into logits."""
    was_training = body.training
    try:
        with torch.no_grad():
            found = body.eval()(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:
        why = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(problem(f"network {name} on {image_size}x{image_size} images", got=why)) from error
    finally:
        body.train(was_training)
    if not isinstance(found, Tensor) or found.shape != (2, num_classes):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise UsageError(problem(f"logits of network {name} for 2 images", expected=(2, num_classes), got=shape))


class FeatureExtractor:
    """Reads inner tensors of a network by the names of its modules, and its logits, in one forward.

    Parameters
    ----------
    body : Module
    names : sequence of str
        Modules or nodes, see `torchvision.models.feature_extraction`; the vector that the last linear layer reads is
        added behind them.

    Raises
    ------
    UsageError
        Where the network cannot be traced, a name is unknown, or it ends without a linear layer.
    """

    def __init__(self, body: nn.Module, names: tuple[str, ...]) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

        linear = [name for name, module in body.named_modules() if isinstance(module, nn.Linear)]
        try:
            nodes = get_graph_node_names(body)[1]
        except Exception as error:  # torch.fx's tracing fails in many ways
            raise UsageError(problem("--features: the network cannot be traced", got=first_line(error))) from error
        known = {*nodes, *(name for name, _ in body.named_modules() if name)}
        problems = [problem("--features", expected=", ".join(nodes), got=name) for name in names if name not in known]
        if not linear or linear[-1] not in nodes:
            problems.append(problem("--features: the network's last layer", expected="a linear one", got="another"))
        if problems:
            raise UsageError(*problems)
        vector = nodes[nodes.index(linear[-1]) - 1]
        self._names = (*names, vector)
        self._traced = create_feature_extractor(body, return_nodes=[*dict.fromkeys((*self._names, nodes[-1]))])
        self._logits = nodes[-1]

    def __call__(self, images: Tensor, training: bool) -> tuple[Tensor, list[Tensor]]:
        """Compute logits (B, C) and features of normalised images, the last one flat: (B, D)."""
        found = self._traced.train(training)(images)
        features = [found[name] for name in self._names]
        return found[self._logits], [*features[:-1], features[-1].flatten(1)]
