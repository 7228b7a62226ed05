"""Measures of generated samples: pure functions on tensors, float64 inside, every number with its own name.

Distances between sets of features: ``frechet``, ``kernel``, ``manifold``. Of one set: ``diversity``, ``modes``. Of what
a model claims or was asked: ``likelihood``, ``accuracy``. Of its cost: ``speed``.
"""
