"""From a trained model to one that needs few steps, or one: teacher and student are denoisers, and the Trainer trains the student."""

from ddpm.distillation.methods import METHODS, Consistency, Consistent, ContinuousConsistency, Distillation, Guidance, Matching, Progressive
from ddpm.distillation.run import FAMILIES, DistillConfig, distill, kept_teacher, student_folder

__all__ = [
    "FAMILIES",
    "METHODS",
    "Consistency",
    "Consistent",
    "ContinuousConsistency",
    "DistillConfig",
    "Distillation",
    "Guidance",
    "Matching",
    "Progressive",
    "distill",
    "kept_teacher",
    "student_folder",
]
