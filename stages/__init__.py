"""The recipes of kdcache, each readable from top to bottom: train a teacher, precompute its logits, train a student."""

from kdcache.stages.fill import PrecomputeResult, precompute_answers
from kdcache.stages.student import train_student
from kdcache.stages.teacher import train_teacher

__all__ = ["PrecomputeResult", "precompute_answers", "train_student", "train_teacher"]
