"""From an augmentation to a view plan: its kinds of views, named with all that they depend on."""

from collections.abc import Sequence

from kdcache.choices import Augmentation
from kdcache.config.augs import with_batch_size, with_mean_color
from kdcache.errors import UsageError, problem
from kdcache.extensions import is_address
from kdcache.views.plan import ViewPlan

__all__ = ["plan_views"]


def plan_views(
    augmentation: Augmentation,
    samples: int,
    image_size: int,
    padding: int | None,
    seed: int,
    batch_size: int,
    mean: Sequence[float] | None,
) -> ViewPlan:
    """Make the view plan of an augmentation of some images.

    Parameters
    ----------
    augmentation : Augmentation
    samples, image_size, padding, seed
        See `ViewPlan`.
    batch_size : int
        Samples of a step, on which only views with ``mode=batch`` depend.
    mean : sequence of float or None
        Mean color of the images, on a scale of 0 to 1, for views with ``fill=mean``; ``None`` if it is not known.

    Raises
    ------
    UsageError
        If the views depend on the mean color, and it is not known.
    """
    mixes = tuple(_with_facts(mix, image_size, batch_size, mean) for mix in augmentation.mixes)
    return ViewPlan(samples, image_size, padding, augmentation.crop_flip, seed, mixes)


def _with_facts(mix: str, image_size: int, batch_size: int, mean: Sequence[float] | None) -> str:
    """Name a mix with what its views depend on besides its options, such as the user's own code."""
    if is_address(mix):
        from kdcache.views.custom import identified  # which imports torch

        return identified(mix, image_size)
    if mean is not None:
        mix = with_mean_color(mix, mean)
    elif with_mean_color(mix, (0, 0, 0)) != mix:
        expected = "a color RRGGBB, since the mean color of these images is not stated"
        raise UsageError(problem(f"fill of {mix}", expected=expected, got="mean"))
    return with_batch_size(mix, batch_size)
