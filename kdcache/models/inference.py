"""Faster inference on CPUs: batch norms, additions and ReLUs are fused into the convolutions.

A batch norm that follows a convolution is folded into it; any other batch norm becomes a 1x1 depthwise convolution. A
convolution that is followed by an addition or a ReLU computes them too. In bfloat16, a forward takes half to two thirds
of the time. The fused operators are those that torch.compile uses on CPUs, but no compiler is needed here.

The logits of the shipped teacher differ from those in float32 by up to 1.6 % of the largest logit (root mean square
0.13 %); without fusing, in bfloat16, by up to 1.3 % (0.11 %).
"""

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdcache.models.base import FeatureNet
from kdcache.models.tracing import symbolic_trace

__all__ = ["fuse_for_inference"]

MAX_RELATIVE_ERROR = 1e-3
"""Largest difference, relative to the largest output, between the fused and the original network in float32."""


class _WithFeatures(nn.Module):
    """Returns the logits and the features of a network as one tuple."""

    def __init__(self, body: FeatureNet) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.body.features(images)
        return self.body.head(features[-1]), *features


class _FusedConvolution(nn.Module):
    """A convolution, followed by an optional addition (into the other operand or not) and an optional ReLU."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, relu: bool, add_in_place: bool) -> None:
        super().__init__()
        self.register_buffer("weight", conv.weight.detach().clone(memory_format=torch.channels_last))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())
        self.arguments = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.relu, self.add_in_place = relu, add_in_place

    def forward(self, images: Tensor, other: Tensor | None = None) -> Tensor:
        ops, arguments = torch.ops.mkldnn, (self.weight, self.bias, *self.arguments)
        output: Tensor
        if other is None:
            output = ops._convolution_pointwise(images, *arguments, "relu" if self.relu else "none", [], "")
        else:
            epilogue: tuple[Any, ...] = ("add", 1.0, "relu" if self.relu else None, [], "")
            if self.add_in_place:
                output = ops._convolution_pointwise_.binary(other, images, *arguments, *epilogue)
            else:
                output = ops._convolution_pointwise.binary(images, other, *arguments, *epilogue)
        return output


def fuse_for_inference(body: FeatureNet, dtype: torch.dtype) -> nn.Module | None:
    """Make a fused copy of a network in evaluation mode, for a CPU.

    Parameters
    ----------
    body : FeatureNet
        Stays unchanged.
    dtype : torch.dtype
        Of the weights of the copy, and of its input.

    Returns
    -------
    Module or None
        Returns a tuple of the logits and all features for normalized images. ``None`` if the network cannot be traced,
        torch lacks the operators, or the outputs differ too much.
    """
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 4 - 2
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        traced = symbolic_trace(_WithFeatures(copy.deepcopy(body)).eval())
        _fold(traced)
        _fuse(traced)
        with torch.inference_mode():
            pairs = list(zip(traced(images), _WithFeatures(body)(images), strict=True))
            traced = traced.to(dtype)
            traced(images.to(dtype))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # the operators are private to torch, and may change
    agrees = all((fused - plain).abs().max() <= MAX_RELATIVE_ERROR * plain.abs().max() for fused, plain in pairs)
    return traced if agrees else None


def _fold(traced: fx.GraphModule) -> None:
    """Fold all batch norms, and remove identities."""
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
    """Make the 1x1 depthwise convolution that scales and shifts each channel as a batch norm does."""
    one = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features, bias=False)
    nn.init.ones_(one.weight)
    return fuse_conv_bn_eval(one.eval(), norm)


def _fuse(traced: fx.GraphModule) -> None:
    """Fuse additions and ReLUs into the convolutions before them."""
    graph = traced.graph
    for node in list(graph.nodes):
        convolution = _module(traced, node)
        if not isinstance(convolution, nn.Conv2d):
            continue
        order = {each: index for index, each in enumerate(graph.nodes)}
        last, other, in_place = node, None, False
        following = _only_user(last)
        if following is not None and following.op == "call_function" and following.target in (operator.add, torch.add):
            other = next((each for each in following.args if each is not node), None)
            # If both operands are convolutions, the later one does the addition.
            if isinstance(other, fx.Node) and not (
                order[other] > order[node] and isinstance(_module(traced, other), nn.Conv2d) and _only_user(other)
            ):
                last = following
                own = isinstance(_module(traced, other), _FusedConvolution) and other is not node.args[0]
                in_place = own and max(order[user] for user in other.users) == order[following]
            else:
                other = None
        following = _only_user(last)
        relu = following is not None and isinstance(_module(traced, following), nn.ReLU)
        if relu:
            last = following
        traced.set_submodule(node.target, _FusedConvolution(convolution, relu, in_place))
        with graph.inserting_before(last):
            fused = graph.call_module(node.target, (node.args[0], *([] if other is None else [other])))
        _replace(last, fused)
    graph.eliminate_dead_code()
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()


def _module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    """Find the module that a node calls, if any."""
    called = isinstance(node, fx.Node) and node.op == "call_module"
    return traced.get_submodule(str(node.target)) if called else None


def _only_user(node: fx.Node) -> fx.Node | None:
    """Find the only user of a node; ``None`` if there are several or none."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace(node: fx.Node, by: Any) -> None:
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)
