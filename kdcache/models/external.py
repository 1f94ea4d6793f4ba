"""Networks from elsewhere: torchvision, timm, and the user's own code."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from kdcache.errors import UsageError, did_you_mean, first_line, problem
from kdcache.extensions import call
from kdcache.models.modes import evaluating
from kdcache.models.onnx_body import build_onnx_body
from kdcache.models.tracing import tracing_names

__all__ = [
    "SOURCES",
    "FeatureExtractor",
    "build_body",
    "build_meta_body",
    "build_timm",
    "import_timm",
    "require_library",
]


def build_body(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Build an external network with fresh weights.

    Parameters
    ----------
    name : str
        ``torchvision:NAME``, ``timm:NAME`` or ``python:module:callable``.
    num_classes, image_size : int

    Raises
    ------
    UsageError
        If there is no such network, its code is not trusted, or its logits have another shape.
    """
    source, _, rest = name.partition(":")
    body = SOURCES[source](rest, num_classes, image_size)
    _check_logits(name, body, num_classes, image_size)
    return body


def build_meta_body(name: str, num_classes: int, image_size: int) -> nn.Module | None:
    """Build a network within ``torch.device("meta")``; ``None`` if it cannot be built there."""
    source, _, rest = name.partition(":")
    if source == "python":
        return None
    try:
        return SOURCES[source](rest, num_classes, image_size)
    except (RuntimeError, NotImplementedError):  # the network reads its fresh weights
        return None


def _build_torchvision(rest: str, num_classes: int, image_size: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if rest not in known:
        expected, remedy = f"one of {', '.join(known)}", did_you_mean(rest, known)
        raise UsageError(problem(f"network torchvision:{rest}", expected=expected, got=rest, remedy=remedy))
    options: dict[str, Any] = {"image_size": image_size} if rest.startswith("vit_") else {}
    if rest in ("googlenet", "inception_v3"):  # leave out the auxiliary classifiers
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = models.get_model(rest, weights=None, num_classes=num_classes, **options)
    return network


def require_library(name: str) -> None:
    """Raise `UsageError` if the library of a network is not installed."""
    source, _, rest = name.partition(":")
    if source == "timm":
        import_timm(rest)


def import_timm(name: str) -> Any:
    """Import timm, which the network `name` needs; a `UsageError` if it is not installed."""
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise UsageError(
            problem(f"network timm:{name}: timm is not installed", remedy="Run pip install 'kdcache[timm]'.")
        ) from None


def build_timm(rest: str, num_classes: int | None, image_size: int, pretrained: bool = False) -> nn.Module:
    """Build a network of timm, for its own number of classes if `num_classes` is ``None``.

    Raises
    ------
    UsageError
        If timm is not installed, or has no such network.
    """
    timm = import_timm(rest)
    if not timm.is_model(rest):
        similar = ", ".join(difflib.get_close_matches(rest, timm.list_models(), n=5))
        remedy = f"Similar names: {similar}." if similar else None
        raise UsageError(
            problem(f"network timm:{rest}", expected="a name of timm.list_models()", got=rest, remedy=remedy)
        )
    configuration = timm.get_pretrained_cfg(rest)
    fixed = configuration is not None and configuration.fixed_input_size
    sized: dict[str, Any] = {"img_size": image_size} if fixed else {}
    if num_classes is not None:
        sized["num_classes"] = num_classes
    network: nn.Module = timm.create_model(rest, pretrained=pretrained, **sized)
    return network


def _build_python(rest: str, num_classes: int, image_size: int) -> nn.Module:
    return call("network", f"python:{rest}", (nn.Module, "a torch.nn.Module"), num_classes=num_classes)


SOURCES: dict[str, Callable[[str, int, int], nn.Module]] = {
    "onnx": build_onnx_body,
    "torchvision": _build_torchvision,
    "timm": build_timm,
    "python": _build_python,
}


def _check_logits(name: str, body: nn.Module, num_classes: int, image_size: int) -> None:
    """Raise `UsageError` unless the network turns images of this size into logits."""
    try:
        with torch.no_grad(), evaluating(body):
            logits = body(torch.zeros(2, 3, image_size, image_size))
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(problem(f"network {name} fails on {image_size}x{image_size} images", got=reason)) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        what = f"shape of the logits of network {name} for 2 images"
        raise UsageError(problem(what, expected=(2, num_classes), got=shape))


class FeatureExtractor:
    """Computes the logits of a network and the outputs of some of its modules in one forward pass.

    Parameters
    ----------
    body : Module
    names : sequence of str
        Modules or nodes, see `torchvision.models.feature_extraction`. The vector that the last linear layer reads is
        appended.

    Attributes
    ----------
    last_linear : Linear
    ends_linear : bool
        Whether it computes the logits of the vector.

    Raises
    ------
    UsageError
        If the network cannot be traced, a name is unknown, or the last layer is not linear.
    """

    def __init__(self, body: nn.Module, names: tuple[str, ...]) -> None:
        from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

        linear = [name for name, module in body.named_modules() if isinstance(module, nn.Linear)]
        try:
            with tracing_names():
                nodes = get_graph_node_names(body)[1]
        except Exception as error:  # torch.fx fails in many ways
            raise UsageError(problem("--features: could not trace the network", got=first_line(error))) from error
        known = {*nodes, *(name for name, _ in body.named_modules() if name)}
        problems = [
            problem("--features", expected=f"one of {', '.join(nodes)}", got=name)
            for name in names
            if name not in known
        ]
        if not linear or linear[-1] not in nodes:
            problems.append(problem("--features: last layer of the network", expected="a linear layer", got="another"))
        if problems:
            raise UsageError(*problems)
        vector = nodes[nodes.index(linear[-1]) - 1]
        self.last_linear: nn.Linear = body.get_submodule(linear[-1])  # type: ignore[assignment]
        self._names = (*names, vector)
        with tracing_names():
            traced = create_feature_extractor(body, return_nodes=[*dict.fromkeys((*self._names, nodes[-1]))])
        # They share the modules of the body: `traced.train(mode)` would set the mode of batch norms that are frozen.
        self._by_training = {
            True: fx.GraphModule(traced, traced.train_graph),
            False: fx.GraphModule(traced, traced.eval_graph),
        }
        self._body, self._logits = body, nodes[-1]
        self.ends_linear = _ends_linear(self._by_training[False], linear[-1], vector, nodes[-1])

    def __call__(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Compute logits (B, C) and features of normalized images; the last feature is flattened to (B, D)."""
        outputs = self._by_training[self._body.training](images)
        features = [outputs[name] for name in self._names]
        return outputs[self._logits], [*features[:-1], features[-1].flatten(1)]


def _ends_linear(traced: fx.GraphModule, linear: str, vector: str, logits: str) -> bool:
    """Whether the last step of a network is a linear layer on the vector; dropout and the like change nothing."""
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    node, ends = output.args[0][logits], output.args[0]
    modules = dict(traced.named_modules())
    while node.op == "call_module" and isinstance(modules.get(str(node.target)), nn.Identity | nn.Dropout | nn.Flatten):
        node = node.args[0]
    return bool(node.op == "call_module" and node.target == linear and node.args[0] is ends[vector])
