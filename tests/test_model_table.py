"""The list of networks and pairs, and how parameters and multiply-adds are counted."""

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcache.choices import MODELS
from kdcache.models import REGISTRY
from kdcache.models.sizes import model_sizes, size_of
from tests.processes import kdcache


def test_the_stored_table_of_networks_is_up_to_date() -> None:
    computed = model_sizes(100, 32)
    assert computed == MODELS, "run python data/make_model_sizes.py"
    assert list(computed) == list(MODELS) == list(REGISTRY)


def test_multiply_adds_of_attention_count() -> None:
    class Attention(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            tokens = images.flatten(2).transpose(1, 2)[:, None].contiguous()  # one head
            return functional.scaled_dot_product_attention(tokens, tokens, tokens)

    assert (
        size_of(Attention(), torch.zeros(1, 3, 4, 4)).multiply_adds == 2 * 16 * 16 * 3
    )  # 16 tokens of 3 numbers, twice


def test_multiply_adds_of_a_transformer_count() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            tokens: Tensor = self.layer(images.flatten(2)[..., :4])  # 3 tokens of 4 numbers
            return tokens

    projections, attention, rest = 4 * 3 * 4 * 4, 2 * 3 * 3 * 4, 2 * 3 * 4 * 8
    assert size_of(Encoder().eval(), torch.zeros(1, 3, 4, 4)).multiply_adds == projections + attention + rest
    assert torch.backends.mha.get_fastpath_enabled()


def test_sizes_equal_the_golden_values() -> None:
    golden = json.loads((Path(__file__).with_name("golden") / "models.json").read_text())
    assert {name: MODELS[name].parameters for name in golden} == {
        name: entry["params"] for name, entry in golden.items()
    }
    # The stem of resnet20 is 3 * 16 * 9 * 32 * 32, each of its six first convolutions 16 * 16 * 9 * 32 * 32, and so on.
    stage = 16 * 16 * 9 * 32 * 32
    halved = stage // 2 + 16 * 32 * 16 * 16, 32 * 64 * 8 * 8 + stage // 2
    by_hand = 3 * 16 * 9 * 1024 + 6 * stage + 5 * stage + halved[0] + 5 * stage + halved[1] + 64 * 100
    assert MODELS["resnet20"].multiply_adds == by_hand


def test_networks_and_pairs_of_the_paper_are_listed(tmp_path: Path) -> None:
    listed = kdcache("models", cwd=tmp_path).stdout
    assert re.search(r"resnet8\W+83,892\W+12\.5", listed)
    pairs = re.findall(r"(?m)^│ (\S+)[ │]+(\S+)[ │]+(?:cifar100|tiny-imagenet|imagenet) │$", listed)
    assert len(pairs) == 7 + 7 + 1
    assert {name for pair in pairs for name in pair if not name.startswith("torchvision:")} <= set(MODELS)
    larger = kdcache("models", "--num-classes", "10", "--image-size", "64", cwd=tmp_path).stdout
    assert re.search(r"resnet8\W+78,042\W", larger)
