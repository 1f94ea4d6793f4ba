"""The networks, by name, each with the pixel normalization that it was trained with."""

from kdcache.models.base import FeatureNet
from kdcache.models.network import Network
from kdcache.models.registry import REGISTRY, build, expected_state

__all__ = ["REGISTRY", "FeatureNet", "Network", "build", "expected_state"]
