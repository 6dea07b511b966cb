"""Conv and ConvTranspose: each is the other's gradient with respect to its input.

``forms.py`` says what is emitted for which shapes, ``operators.py`` are the rules, and each other file is one
of the three products: ``images.py`` gives the image from the response, ``responses.py`` the response from the
image, ``weights.py`` the weight from both; ``depthwise.py`` is about channels each on its own.
"""

from . import operators  # registers the rules

__all__ = ["operators"]
