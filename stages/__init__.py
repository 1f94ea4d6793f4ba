"""The two recipes of kdcache, each readable from top to bottom: a teacher, and a student."""

from kdcache.stages.student import train_student
from kdcache.stages.teacher import train_teacher

__all__ = ["train_student", "train_teacher"]
