"""The update of the weights after a backward pass: scaled loss, clipped gradients, optimizer, and averaged weights."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from kdcache.compute import Compute
from kdcache.config import TrainingConfig
from kdcache.errors import KdcacheError, UsageError, problem
from kdcache.models import Network
from kdcache.models.initial import head_of

__all__ = ["LossScale", "Update", "build_optimizer"]

ADAMW_BETA2 = 0.999

MIN_LOSS_SCALE = 2.0**-20
"""The scale after more than 30 skipped steps in a row: gradients are not finite because of something else."""

MultiAverage = Callable[[Any, Any, Any], None]


def build_optimizer(
    config: TrainingConfig, parameters: Sequence[nn.Parameter], frozen: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer that a config names; the paper's is SGD with momentum, and weight decay on every parameter.

    Parameters
    ----------
    config : TrainingConfig
    parameters : sequence of Parameter
    frozen : collection of Parameter
        Those of them that are frozen at first. They are in groups of their own, since the fused SGD cannot begin with
        some parameters of a group later than with others.
    """
    by_group: dict[tuple[bool, float], list[nn.Parameter]] = {}
    late = set(frozen)
    for parameter in parameters:
        decays = parameter.ndim > 1 or config.decay_norm_and_bias
        by_group.setdefault((parameter in late, config.weight_decay if decays else 0.0), []).append(parameter)
    groups = [{"params": members, "weight_decay": decay} for (_, decay), members in by_group.items()]
    # Fused, a step takes 0.6 of the time that foreach takes (ResNet20 and WRN-16-2 on a CPU).
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, config.lr, betas=(config.momentum, ADAMW_BETA2), fused=True)
    return torch.optim.SGD(groups, config.lr, config.momentum, nesterov=config.nesterov, fused=True)


class LossScale(nn.Module):
    """Scales the loss, so that gradients in float16 do not vanish, and has steps skipped in which they overflow.

    A skipped step leaves weights and optimizer as they are, and halves the scale. Whether a step is skipped is known on
    the device alone, for which the host does not wait.

    Parameters
    ----------
    device : torch.device
    optimizer : Optimizer
        One with fused steps, which skips by itself.
    """

    taken: Tensor
    skipped: Tensor

    def __init__(self, device: torch.device, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self._scaler, self._optimizer = torch.amp.GradScaler(device.type), optimizer
        self._last_skipped = torch.zeros((), device=device)
        for count in ("taken", "skipped"):
            self.register_buffer(count, torch.zeros((), dtype=torch.int64, device=device))
        optimizer.register_step_pre_hook(self._note_skip)
        # A fused SGD whose first step is skipped would go on with momentum that was never written.
        for group in optimizer.param_groups:
            for parameter in group["params"] if group.get("momentum") else ():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def scaled(self, loss: Tensor) -> Tensor:
        """Scale a loss."""
        scaled: Tensor = self._scaler.scale(loss)
        return scaled

    def unscale_gradients(self) -> None:
        """Divide the gradients by the scale."""
        self._scaler.unscale_(self._optimizer)

    def step(self) -> None:
        """Take the step of the optimizer, or skip it, and adapt the scale."""
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def of_steps_taken(self, average: MultiAverage) -> MultiAverage:
        """Have a function that averages weights leave out those after skipped steps."""

        def averaged(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
            before = [value.clone() for value in averages]
            average(averages, current, count)
            for value, old, new in zip(averages, before, current, strict=True):
                started = torch.where(self.taken > 1, value, new)  # the average is that of the first step at first
                value.copy_(torch.where(self._last_skipped > 0, old, started))

        return averaged

    def pop_skipped(self) -> int:
        """Return the number of skipped steps since the last call, and reset it; waits for the device.

        Raises
        ------
        KdcacheError
            If gradients are not finite whatever the scale.
        """
        if (scale := self._scaler.get_scale()) < MIN_LOSS_SCALE:
            got = f"gradients that are not finite, down to a scale of {scale:g}"
            remedy = "Train in --precision float32."
            raise KdcacheError(problem("loss scale of float16", expected="finite gradients", got=got, remedy=remedy))
        skipped = int(self.skipped)
        self.skipped.zero_()
        return skipped

    def get_extra_state(self) -> Tensor:
        """Return the scale, and the steps since it last changed: what a checkpoint has besides the buffers."""
        state = self._scaler.state_dict()
        return torch.tensor([state["scale"], state["_growth_tracker"]], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore them."""
        if state.shape != (2,):
            raise RuntimeError(problem("loss scale", expected="two numbers", got=f"shape {tuple(state.shape)}"))
        scale, growth_tracker = state.tolist()
        restored = {"scale": scale, "_growth_tracker": int(growth_tracker)}
        self._scaler.load_state_dict(self._scaler.state_dict() | restored)

    def _note_skip(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._last_skipped = optimizer.found_inf  # type: ignore[attr-defined]
        self.skipped += self._last_skipped > 0
        self.taken += self._last_skipped == 0


class Update:
    """Updates the weights of a training by the gradient of a loss.

    Parameters
    ----------
    config : TrainingConfig
    compute : Compute
        In float16, the loss is scaled.
    network : Network
        The network that is trained.
    others : sequence of Module
        Further modules that are trained, such as the layers of losses.

    Raises
    ------
    UsageError
        If all but the head is to be frozen, and the head is not known.

    Attributes
    ----------
    optimizer : Optimizer
    average : AveragedModel or None
        The exponential moving average of the network's weights and buffers, if the config asks for it.
    scale : LossScale or None
    """

    def __init__(self, config: TrainingConfig, compute: Compute, network: Network, *others: nn.Module) -> None:
        self._network, self._config, self._compute, self._is_frozen = network, config, compute, False
        self._parameters = [*nn.ModuleList([network, *others]).parameters()]
        self._frozen: list[nn.Parameter] = []
        if config.freeze_epochs:
            head = head_of(network.name, network.num_classes, network.image_size)
            if not head:
                expected = "0 for a network of a fixed number of classes, whose head is not known"
                raise UsageError(problem("--freeze-epochs", expected=expected, got=config.freeze_epochs))
            self._frozen = [parameter for name, parameter in network.body.named_parameters() if name not in head]
        self.optimizer = build_optimizer(config, self._parameters, self._frozen)
        self.scale = LossScale(compute.device, self.optimizer) if compute.precision == "float16" else None
        self.average = None
        if config.ema is not None:
            average = get_ema_multi_avg_fn(config.ema)
            if self.scale is not None:
                average = self.scale.of_steps_taken(average)
            self.average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)

    @property
    def evaluated(self) -> Network:
        """The network to evaluate and save: the averaged one, if there is one."""
        found = self._network if self.average is None else self.average.module
        assert isinstance(found, Network)
        return found

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What updates change besides the modules that are trained, by name."""
        found = {"average": self.average, "loss_scale": self.scale}
        return {name: module for name, module in found.items() if module is not None}

    def begin_step(self, epoch: int, step: int, steps: int) -> None:
        """Set the learning rate of a step, and whether all but the head is frozen, see `TrainingConfig`."""
        self._is_frozen = epoch < self._config.freeze_epochs
        for group in self.optimizer.param_groups:
            group["lr"] = self._config.learning_rate(epoch, step, steps)

    def __call__(self, loss: Tensor) -> None:
        """Compute the gradient of a loss, and update the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._compute.float32_products():
            (loss if self.scale is None else self.scale.scaled(loss)).backward()
        if self._is_frozen:
            # An optimizer skips parameters without a gradient. DDP would wait for those that do not require one.
            for parameter in self._frozen:
                parameter.grad = None
        if self.scale is not None:
            self.scale.unscale_gradients()
        if self._config.clip_grad is not None:
            clip_grad_norm_(self._parameters, self._config.clip_grad)
        (self.optimizer if self.scale is None else self.scale).step()
        if self.average is not None:
            self.average.update_parameters(self._network)
