"""A student in Lightning, with the teacher's logits computed once. Needs lightning."""

import tempfile
from collections.abc import Iterable
from typing import Any

import lightning
import torch
from torch import Tensor

import kdcache
from kdcache.losses import kd_loss


class Distillation(lightning.LightningModule):
    def __init__(self, student: torch.nn.Module, views: kdcache.Views, store: str) -> None:
        super().__init__()
        self.student, self.views = student, views
        self.teacher = kdcache.open_teacher("shipped", views, store)

    def train_dataloader(self) -> Iterable[kdcache.Batch]:
        return self.views.epoch(self.current_epoch)  # of this process, on the device of the views

    def transfer_batch_to_device(self, batch: kdcache.Batch, *unused: Any) -> kdcache.Batch:
        return batch

    def training_step(self, batch: kdcache.Batch, index: int) -> Tensor:
        loss = kd_loss(self.student(batch.views), self.teacher.logits(batch), 4.0)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.01, momentum=0.9)


def train(store: str) -> None:
    images = kdcache.load_dataset("fashion-mini", train_fraction=0.05)
    views = kdcache.Views.of_images(images, "cutmix", batch_size=64, seed=0)
    module = Distillation(kdcache.build_network("resnet8", num_classes=10, seed=0), views, store)
    trainer = lightning.Trainer(
        max_epochs=2,
        reload_dataloaders_every_n_epochs=1,  # the views of the next epoch
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module)
    print(f"teacher forwards {module.teacher.pop_counts().forwards}, loss {trainer.logged_metrics['loss']:.6f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:  # a folder of your own keeps the logits
        train(store)
        train(store)
