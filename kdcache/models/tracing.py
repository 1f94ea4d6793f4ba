"""Tracing by torch.fx while other threads run networks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn

__all__ = ["symbolic_trace", "tracing_names"]

_TRACING = threading.RLock()
"""Held while a network is traced: torch.fx replaces the call of every module, and two would restore it wrongly."""


class _OfThread(fx.Tracer):
    """Leaves alone the modules that other threads call meanwhile, which are not part of the network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def symbolic_trace(network: nn.Module) -> fx.GraphModule:
    """Trace a network, as `torch.fx.symbolic_trace` does."""
    with _TRACING:
        tracer = _OfThread()
        graph = tracer.trace(network)
    return fx.GraphModule(tracer.root, graph)


@contextmanager
def tracing_names() -> Iterator[None]:
    """Context for the functions of `torchvision.models.feature_extraction`, whose tracer cannot be given to them."""
    from torchvision.models import feature_extraction

    with _TRACING:
        original = feature_extraction.NodePathTracer
        try:
            feature_extraction.NodePathTracer = type("NodePathTracer", (_OfThread, original), {})
            yield
        finally:
            feature_extraction.NodePathTracer = original
