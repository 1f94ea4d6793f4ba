"""A network that only answers, rewritten for the processor: fewer and longer steps, each pass over memory saved.

A batch norm that follows a convolution alone is folded into it, any other one becomes a convolution of its own, and
each convolution adds and activates on its way out where the network does so next. In bfloat16 this takes half to two
thirds of the time. The operations are those that torch's own compiler uses on processors; no compiler is needed here.
With the shipped teacher, answers are off those in float32 by 1.6 % of the largest logit at most and by 0.13 % in the
mean square; as the network stands, bfloat16 puts them off by 1.3 % and 0.11 %.
"""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdcache.models.base import FeatureNet

__all__ = ["rewrite"]

AGREEMENT = 1e-3
"""How far, by their largest value, outputs in float32 may be off those of the network as it stands."""


class _Exposed(nn.Module):
    """Logits and features of a body, in one tuple."""

    def __init__(self, body: FeatureNet) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.body.features(images)
        return self.body.head(features[-1]), *features


class _Convolution(nn.Module):
    """A convolution with what it does on its way out: add something, in its place or not, and activate."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, of: nn.Conv2d, activates: bool, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("weight", of.weight.detach().clone(memory_format=torch.channels_last))
        self.register_buffer("bias", None if of.bias is None else of.bias.detach().clone())
        self.shape = (of.padding, of.stride, of.dilation, of.groups)
        self.activates, self.in_place = activates, in_place

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        operations, given = torch.ops.mkldnn, (self.weight, self.bias, *self.shape)
        found: Tensor
        if other is None:
            found = operations._convolution_pointwise(images, *given, "relu" if self.activates else "none", [], "")
        else:
            after: tuple[Any, ...] = ("add", 1.0, "relu" if self.activates else None, [], "")
            if self.in_place:
                found = operations._convolution_pointwise_.binary(other, images, *given, *after)
            else:
                found = operations._convolution_pointwise.binary(images, other, *given, *after)
        return found


def rewrite(body: FeatureNet, precision: torch.dtype) -> nn.Module | None:
    """Rewrite a network in evaluation mode, on a processor.

    Parameters
    ----------
    body : FeatureNet
        It stays as it is.
    precision : torch.dtype
        Of its weights, and of what it is to be given.

    Returns
    -------
    Module or None
        Gives the logits and all features, a tuple, for normalised images. ``None`` where torch lacks the operations,
        or the outcome does not agree with the network.
    """
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 4 - 2
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        traced = fx.symbolic_trace(_Exposed(copy.deepcopy(body)).eval())
        _fold(traced)
        _fuse(traced)
        with torch.inference_mode():
            pairs = list(zip(traced(images), _Exposed(body)(images), strict=True))
            traced = traced.to(precision)
            traced(images.to(precision))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # the operations are torch's own affair, and may change
    agrees = all((found - wanted).abs().max() <= AGREEMENT * wanted.abs().max() for found, wanted in pairs)
    return traced if agrees else None


def _fold(traced: fx.GraphModule) -> None:
    """Leave no batch norm, and nothing that does nothing."""
    graph = traced.graph
    for node in list(graph.nodes):
        module = _module(traced, node)
        if isinstance(module, nn.Identity):
            _replace(node, node.args[0])
        elif isinstance(module, nn.BatchNorm2d):
            before = node.args[0]
            convolution = _module(traced, before)
            if isinstance(convolution, nn.Conv2d) and len(before.users) == 1:
                traced.set_submodule(before.target, fuse_conv_bn_eval(convolution, module))
                _replace(node, before)
            else:
                traced.set_submodule(node.target, _as_convolution(module))
    graph.lint()


def _as_convolution(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Make the convolution that scales and shifts each channel as a batch norm does."""
    one = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features, bias=False)
    nn.init.ones_(one.weight)
    return fuse_conv_bn_eval(one.eval(), norm)


def _fuse(traced: fx.GraphModule) -> None:
    """Let convolutions add and activate."""
    graph = traced.graph
    for node in list(graph.nodes):
        convolution = _module(traced, node)
        if not isinstance(convolution, nn.Conv2d):
            continue
        place = {each: number for number, each in enumerate(graph.nodes)}
        last, other, in_place = node, None, False
        following = _only_user(last)
        if following is not None and following.op == "call_function" and following.target in (operator.add, torch.add):
            other = next((each for each in following.args if each is not node), None)
            # Of two convolutions, the later one adds.
            if isinstance(other, fx.Node) and not (
                place[other] > place[node] and isinstance(_module(traced, other), nn.Conv2d) and _only_user(other)
            ):
                last = following
                own = isinstance(_module(traced, other), _Convolution) and other is not node.args[0]
                in_place = own and max(place[user] for user in other.users) == place[following]
            else:
                other = None
        following = _only_user(last)
        activates = following is not None and isinstance(_module(traced, following), nn.ReLU)
        if activates:
            last = following
        traced.set_submodule(node.target, _Convolution(convolution, activates, in_place))
        with graph.inserting_before(last):
            fused = graph.call_module(node.target, (node.args[0], *([] if other is None else [other])))
        _replace(last, fused)
    graph.eliminate_dead_code()
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()


def _module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    """Find what a node calls, if that is a module."""
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return traced.get_submodule(str(node.target)) if called else None


def _only_user(node: fx.Node) -> fx.Node | None:
    """Find what reads a node, if that is one alone."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace(node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)
