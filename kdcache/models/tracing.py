"""Tracing by torch.fx while other threads run networks."""

import threading
from collections.abc import Callable
from typing import Any

from torch import fx, nn

__all__ = ["TRACING", "symbolic_trace"]

TRACING = threading.RLock()
"""Held while a network is traced: torch.fx replaces the call of every module, and two would restore it wrongly."""


class _Tracer(fx.Tracer):
    """Leaves alone the modules that other threads call meanwhile, which are not part of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.thread = threading.get_ident()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def symbolic_trace(network: nn.Module) -> fx.GraphModule:
    """Trace a network, as `torch.fx.symbolic_trace` does."""
    with TRACING:
        tracer = _Tracer()
        graph = tracer.trace(network)
    return fx.GraphModule(tracer.root, graph)
