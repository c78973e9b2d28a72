"""Checkpoints: writing, finding, reading without running them, fitting them into a model."""

from .files import CheckpointBackend, fault_of
from .fitting import Fit, StrictLoadHook, fit, load_weights, use_pretrained, weights_of
from .hook import CheckpointHook
from .locate import newest_intact, place_of, resume_of_attempt
from .official import read_official
from .reader import load_local, load_safely

__all__ = [
    'CheckpointBackend',
    'CheckpointHook',
    'Fit',
    'StrictLoadHook',
    'fault_of',
    'fit',
    'load_local',
    'load_safely',
    'load_weights',
    'newest_intact',
    'place_of',
    'read_official',
    'resume_of_attempt',
    'use_pretrained',
    'weights_of',
]
