"""A student and a dataset of Hugging Face, with the teacher's logits computed once. Needs transformers and datasets."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from datasets import ClassLabel, Dataset, Features, Image
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import kdcache


@dataclass
class Batches:
    views: kdcache.Views
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.views.steps)

    def __iter__(self) -> Iterator[dict[str, kdcache.Batch]]:
        for batch in self.views.epoch(self.epoch):
            yield {"batch": batch}

    def set_epoch(self, epoch: int) -> None:  # called by the Trainer before each epoch
        self.epoch = epoch


class DistillationTrainer(Trainer):
    def __init__(self, views: kdcache.Views, store: str, **options: object) -> None:
        super().__init__(**options)
        self.views, self.teacher = views, kdcache.open_teacher("shipped", views, store)

    def get_train_dataloader(self) -> Batches:
        return Batches(self.views)

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, kdcache.Batch], **unused: object) -> torch.Tensor:
        student = model(pixel_values=inputs["batch"].views.float() / 255).logits
        return kdcache.losses.kd_loss(student, self.teacher.logits(inputs["batch"]), 4.0)


def train(dataset: Dataset, store: str) -> None:
    views = kdcache.Views.of_images(dataset, "cutmix", batch_size=50, image_size=32, crop="padded")
    torch.manual_seed(0)
    shape = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], num_labels=10)
    options = TrainingArguments(num_train_epochs=2, save_strategy="no", report_to="none", use_cpu=True)
    trainer = DistillationTrainer(views, store, model=ResNetForImageClassification(shape), args=options)
    loss = trainer.train().training_loss
    print(f"teacher forwards {trainer.teacher.pop_counts().forwards}, loss {loss:.6f}")


if __name__ == "__main__":
    mini = kdcache.load_dataset("fashion-mini", train_fraction=0.05).train
    rows = {"image": mini.images.permute(0, 2, 3, 1).numpy(), "label": mini.labels.tolist()}
    columns = Features({"image": Image(), "label": ClassLabel(num_classes=10)})
    with tempfile.TemporaryDirectory() as store:  # a folder of your own keeps the logits
        for _ in range(2):
            train(Dataset.from_dict(rows, columns), store)
