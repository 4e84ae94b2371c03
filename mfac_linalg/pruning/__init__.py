"""Optimal brain surgeon with F⁻¹: scores of weights, updates of those that remain, and pruning in steps."""

from .exchange import exchange, joint_objective
from .loop import Pruned, Step, prune
from .relative import relative_damping
from .scores import group_scores, n_m_mask, obs_scores
from .updates import group_update, joint_update, obs_update

__all__ = [
    "Pruned",
    "Step",
    "exchange",
    "group_scores",
    "group_update",
    "joint_objective",
    "joint_update",
    "n_m_mask",
    "obs_scores",
    "obs_update",
    "prune",
    "relative_damping",
]
