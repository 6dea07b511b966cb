"""Operators through which no gradient flows: random numbers, strings, images.

Random numbers depend on the shape of a tensor or on probabilities that decide between whole
outcomes; drawing them again in a gradient would give others.
"""

from __future__ import annotations

from ..registry import non_differentiable

__all__: list[str] = []

non_differentiable(
    "RandomNormal",
    "RandomUniform",
    reason="it makes random numbers of its own",
)
non_differentiable(
    "RandomNormalLike",
    "RandomUniformLike",
    reason="its output is random numbers, which depend on the shape of its input alone",
)
non_differentiable(
    "Bernoulli",
    "Multinomial",
    reason="its output is random outcomes, which are steps of the probabilities given",
)
non_differentiable(
    "RegexFullMatch",
    "StringConcat",
    "StringNormalizer",
    "StringSplit",
    "TfIdfVectorizer",
    reason="it works on strings or counts of them",
)
non_differentiable("ImageDecoder", reason="its input is the bytes of a file")
