"""Networks that are fused for inference: the same logits, up to rounding."""

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdcache.answers.teacher import Teacher
from kdcache.compute import Compute
from kdcache.models import FeatureNet, Network, build
from kdcache.models.external import FeatureExtractor
from kdcache.models.inference import fuse_for_inference
from kdcache.models.tracing import symbolic_trace

BFLOAT16 = Compute(torch.device("cpu"), "bfloat16")
FUSED = ("resnet20", "resnet8x4", "wrn_16_1", "ResNet50", "MobileNetV2", "ShuffleV2")
pytestmark = pytest.mark.skipif(Compute.choose("cpu").precision != "bfloat16", reason="needs bfloat16 in hardware")


def trained(name: str) -> Network:
    """A network whose batch norms are not the identity."""
    network = build(name, num_classes=10, seed=0).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, least in ((module.running_mean, -0.3), (module.running_var, 0.6), (module.weight, 0.6)):
                assert values is not None
                values.copy_(least + 0.6 * torch.rand(values.shape, generator=generator))
            module.bias.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return network


def body(network: Network) -> FeatureNet:
    assert isinstance(network.body, FeatureNet)
    return network.body


def views(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(2)).byte()


@pytest.mark.parametrize("trace", [symbolic_trace, lambda body: FeatureExtractor(body, ())])
def test_networks_run_while_another_is_traced(trace: Callable[[nn.Module], object]) -> None:
    traced, other = build("resnet20", num_classes=4, seed=0).body.eval(), nn.Linear(3, 2)
    expected, failures, stop = other(torch.ones(1, 3)), list[object](), threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                failures.extend([] if other(torch.ones(1, 3)).equal(expected) else ["another value"])
            except Exception as error:
                failures.append(error)

    called_before = nn.Module.__call__
    threads = [
        threading.Thread(target=run),
        *(threading.Thread(target=trace, args=[traced]) for _ in range(3)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads[1:]:
        thread.join()
    stop.set()
    threads[0].join()
    assert not failures
    assert nn.Module.__call__ is called_before


@pytest.mark.parametrize("name", FUSED)
def test_logits_and_features_agree(name: str) -> None:
    network = trained(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        logits, features = network.with_features(views(5))
        fused = fuse_for_inference(body(network), torch.float32)
        assert fused is not None
        for found, wanted in zip(fused(network.normalize(views(5))), (logits, *features), strict=True):
            assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    fuse_for_inference(body(network), torch.bfloat16)
    after = network.state_dict()
    assert all(after[key].dtype == value.dtype and after[key].equal(value) for key, value in before.items())


@pytest.mark.parametrize("name", FUSED)
def test_no_batch_norm_is_left(name: str) -> None:
    fused = fuse_for_inference(body(trained(name)), torch.bfloat16)
    assert fused is not None
    assert not [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d | nn.Identity)]


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_1"])
def test_additions_and_relus_are_fused(name: str) -> None:
    fused = fuse_for_inference(body(trained(name)), torch.bfloat16)
    assert isinstance(fused, torch.fx.GraphModule)
    names = [node.name.split("_")[0] for node in fused.graph.nodes if node.op == "call_function"]
    assert names.count("add") == names.count("relu") == 0


@pytest.mark.parametrize("name", FUSED)
def test_the_error_of_bfloat16_does_not_grow(name: str) -> None:
    network = trained(name)
    truth = Teacher(copy.deepcopy(network), Compute(torch.device("cpu"), "float32"))(views(64))
    with torch.no_grad(), BFLOAT16.autocast():
        plain = network(views(64)).float()
    teacher = Teacher(network, BFLOAT16)
    assert teacher.is_fused
    assert (teacher(views(64)) - truth).square().mean().sqrt() < 1.5 * (plain - truth).square().mean().sqrt()


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_1", "vgg8"])
def test_logits_are_the_same_bits_in_any_batch(name: str) -> None:
    teacher, images = Teacher(trained(name), BFLOAT16), views(70)
    answers = teacher(images)
    assert teacher.with_features(images)[0].equal(answers)
    assert teacher(images[3:67]).equal(answers[3:67])
    assert teacher(images[66:]).equal(answers[66:])
    assert Teacher(trained(name), BFLOAT16)(images).equal(answers)


def test_a_network_that_cannot_be_traced_is_not_fused() -> None:
    network = trained("vgg8")
    assert fuse_for_inference(body(network), torch.bfloat16) is None
    with torch.no_grad(), BFLOAT16.autocast():
        expected = network(views(64)).float()
    assert Teacher(network, BFLOAT16)(views(64)).equal(expected)


def test_in_float32_networks_are_not_fused() -> None:
    network = trained("resnet20")
    teacher = Teacher(network, Compute(torch.device("cpu"), "float32"))
    assert not teacher.is_fused
    with torch.no_grad():
        assert teacher(views(64)).equal(network(views(64)))
