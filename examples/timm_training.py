"""A student, optimizer and scheduler of timm, with the teacher's logits computed once. Needs timm."""

import tempfile

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torchvision.transforms.v2.functional import normalize

import kdcache
from kdcache.losses import dist_loss, mixed_cross_entropy

EPOCHS = 2


def train(store: str) -> None:
    images = kdcache.load_dataset("fashion-mini", train_fraction=0.05)
    views = kdcache.Views.of_images(images, "mixup", options={"mixup": {"alpha": 0.2}}, batch_size=64, seed=0)
    teacher = kdcache.open_teacher("shipped", views, store)
    torch.manual_seed(0)
    student = timm.create_model("test_resnet", num_classes=10)
    mean, std = student.default_cfg["mean"], student.default_cfg["std"]
    optimizer = create_optimizer_v2(student, opt="adamw", lr=2e-3)
    scheduler, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, warmup_epochs=0)
    for epoch in range(EPOCHS):
        for batch in views.epoch(epoch):
            teacher_logits = teacher.logits(batch)
            logits = student(normalize(batch.views / 255, mean, std))
            mixed = logits[len(batch) :]
            loss = dist_loss(logits, teacher_logits)
            loss += mixed_cross_entropy(mixed, batch.labels, batch.partner_labels, batch.lam)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step(epoch + 1)
    print(f"teacher forwards {teacher.pop_counts().forwards}, loss {loss.item():.6f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:  # a folder of your own keeps the logits
        train(store)
        train(store)
