"""The recipes of kdcache, each readable from top to bottom: a teacher, a student, and filling ahead for students."""

from kdcache.stages.fill import Filled, fill_answers
from kdcache.stages.student import train_student
from kdcache.stages.teacher import train_teacher

__all__ = ["Filled", "fill_answers", "train_student", "train_teacher"]
