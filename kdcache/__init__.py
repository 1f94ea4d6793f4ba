"""Knowledge distillation on every augmented view, with teacher answers that are asked once."""

__version__ = "0.1.0"
