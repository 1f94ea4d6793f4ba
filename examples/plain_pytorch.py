"""A training loop in plain PyTorch: CutMix-pick, with the teacher's logits computed once.

It trains twice. The second training finds all logits in the store, and reaches the same loss.
"""

import tempfile

import torch

import kdcache
from kdcache.losses import cross_entropy, kd_loss

TEMPERATURE = 4.0


def train(store: str) -> None:
    images = kdcache.load_dataset("fashion-mini", train_fraction=0.05)
    views = kdcache.Views.of_images(images, "cutmix-pick", batch_size=64, seed=0)
    teacher = kdcache.open_teacher("shipped", views, store)
    student = kdcache.build_network("resnet8", num_classes=10, seed=0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(2):
        for batch in views.epoch(epoch):
            x, candidates = batch.views[: len(batch)], batch.mixed_views()
            teacher_x, teacher_candidates = teacher.logits(batch).tensor_split([len(batch)])

            # Of the two CutMix views of each image, the half on which both networks differ most.
            with torch.no_grad():
                scores = student(candidates)
            rows = kdcache.pick(batch, teacher_candidates, scores, temperature=TEMPERATURE)

            student_x, student_picks = student(torch.cat([x, candidates[rows]])).tensor_split([len(batch)])
            loss = 0.1 * cross_entropy(student_x, batch.labels)
            loss += 0.9 * kd_loss(student_x, teacher_x, TEMPERATURE)
            loss += 0.9 * kd_loss(student_picks, teacher_candidates[rows], TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    print(f"teacher forwards {teacher.pop_counts().forwards}, loss {loss.item():.6f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:  # a folder of your own keeps the logits
        train(store)
        train(store)
