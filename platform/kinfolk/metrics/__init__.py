"""Measures of generated samples: pure functions on tensors, float64 inside, every number with its own name.

Distances between sets of features: ``frechet``, ``kernel``, ``manifold``, ``bins``. Of one set: ``diversity``,
``duplicates``, ``modes``. Of what a model claims or was asked: ``likelihood``, ``accuracy``. Of its cost: ``speed``.
What a run in training is watched by: ``collapse``, and ``alarm``, which judges.
"""
