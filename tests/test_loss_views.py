"""What each loss is trained on: with every augmentation, each kind of view that is paid for gets a gradient."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from kdcache.choices import AUGMENTATIONS, LOSSES, MIXES, LossInfo
from kdcache.config import StudentConfig
from kdcache.config.losses import LossOptions
from kdcache.datasets import Split
from tests.stubs import stub
from tests.test_step import SIZE, Bench

AUGS = (*AUGMENTATIONS, *MIXES, "cutmix+mixup", "randaugment+erasing")
KEEPS_LABEL = ("cutout", "erasing", "autoaugment", "randaugment", "trivialaugment")

ON_X = {"ce", "crd", "sp", "at", "fitnet", "vid", "nst"}
ON_EACH = {
    "embed",
    "rkd",
    "pkt",
    "cc",
    "kd",
    "dkd",
    "dist",
    "nkd",
    "rld",
    "ofa",
    "ttm",
    "wttm",
    "ctkd",
    "mlkd-one-view",
}
ON_PAIRS = {"mlkd", "crld"}


@cache
def is_refused(loss: str, aug: str) -> bool:
    try:
        StudentConfig(loss=loss, aug=aug)
    except ValidationError:
        return True
    return False


def test_losses_are_declared_for_the_views_that_they_are_known_to_act_on() -> None:
    for acts_on, names in (("x", ON_X), ("each", ON_EACH), ("pairs", ON_PAIRS)):
        assert {name: LOSSES[name].acts_on for name in names} == dict.fromkeys(names, acts_on)


@pytest.mark.parametrize("name", LOSSES)
def test_views_that_no_loss_reads_are_refused(name: str) -> None:
    for aug in AUGS:
        mixes = StudentConfig(aug=aug).augmentation.mixes
        if name == "ce":
            expected = aug == "cutmix-pick"  # whose criterion needs a teacher
        elif LOSSES[name].acts_on == "pairs":
            expected = aug not in KEEPS_LABEL
        else:
            expected = bool(mixes) and LOSSES[name].acts_on == "x"
        assert is_refused(name, aug) == expected, aug
        if mixes and name != "ce" and LOSSES[name].acts_on == "x":
            assert not is_refused(f"{name}+kd", aug)
            assert is_refused(f"{name}+kd:0", aug)


def require_gradients(name: str, aug: str, data: Split, **options: Any) -> None:
    """Take a step, and check the gradient of each kind of view that is paid for, unless the loss is refused."""
    # Of a loss alone the gradient is its own. A loss on x needs another one for the x'.
    loss = "ce" if name == "ce" else f"ce:0+{name}:1"
    if is_refused(loss, aug):
        loss = f"{loss}+kd:1"
    if is_refused(loss, aug):
        return
    bench = Bench(data, build=stub, loss=loss, aug=aug, losses={name: options} if options else {})
    batch = replace(bench.batch, views=bench.batch.views.float().requires_grad_())
    bench.step(batch)
    assert batch.views.grad is not None
    gradients = batch.views.grad.flatten(1).abs().sum(1)
    assert gradients.isfinite().all()
    # The teacher pays for all views; without it, cross-entropy on x' leaves x out.
    reached = (gradients > 0).view(1 + batch.slots, SIZE).any(1).tolist()
    assert reached == [bench.step.teacher is not None or not batch.slots] + [True] * batch.slots, aug


@pytest.mark.parametrize("name", LOSSES)
def test_every_view_that_is_paid_for_gets_a_gradient(name: str, noise: Split) -> None:
    for aug in AUGS:
        require_gradients(name, aug, noise)


def other_words() -> Iterator[tuple[str, str, str | bool]]:
    """Each other value of the options of losses that are switches or words."""
    for loss, options in LossOptions().completed(tuple(LOSSES)):
        for option, field in type(options).model_fields.items() if options else ():
            kind = field.annotation
            values = (True, False) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
            yield from ((loss, option, value) for value in values if value != field.default)


@pytest.mark.parametrize(("field", "option", "value"), list(other_words()))
def test_every_view_gets_a_gradient_with_other_words(field: str, option: str, value: object, noise: Split) -> None:
    name = LossOptions.model_fields[field].alias or field
    for aug in ("cutmix", "randaugment"):
        require_gradients(name, aug, noise, **{option: value})


def test_a_declaration_with_an_unknown_value_fails() -> None:
    with pytest.raises(ValueError, match="acts_on of m:c: expected one of x, each, pairs, got both"):
        LossInfo("m:c", reads="logits", acts_on="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reads of m:c: expected one of labels, logits, vectors, features, got maps"):
        LossInfo("m:c", reads="maps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="acts_on of m:c, which reads features: expected x, got each"):
        LossInfo("m:c", reads="features", acts_on="each")
