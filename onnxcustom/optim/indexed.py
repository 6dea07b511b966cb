"""Updates as MXNet's optimizers are called: by index, with a state that the caller keeps."""

from __future__ import annotations

from typing import Any

from onnxcustom.exceptions import InvalidDataError

from .in_place import shape_dtype
from .timed import TimedRule
from .updater import Index, Updater

__all__ = ["IndexedCalls"]


class IndexedCalls(Updater):
    """What a rule remembers of the weights it updated by index: how often, and gradients it accumulates.

    Parameters
    ----------
    rule : BaseLearningRate
        The rule.
    kept : tuple, optional
        What :meth:`kept` has returned.
    """

    def __init__(self, rule: TimedRule, kept: tuple[Any, ...] | None = None) -> None:
        super().__init__(rule)
        if kept is not None:
            self.counts, self._means, self.skipped = kept

    def kept(self) -> tuple[Any, ...]:
        """All of that, without sessions."""
        return self.counts, self._means, self.skipped

    def update(self, index: Index, weight: Any, grad: Any, state: Any = None) -> None:
        """Update a weight and its state in place; see :meth:`BaseLearningRate.update`."""
        layout = self._updates.layout(*shape_dtype("weight", weight))
        given = [] if state is None else list(state) if isinstance(state, (tuple, list)) else [state]
        if len(given) != len(layout):
            raise InvalidDataError(
                f"{type(self._rule).__name__} keeps {list(layout) or 'no state'} for weight {index!r}, "
                f"{len(given)} tensors were given: make them with create_state(index, weight)."
            )
        with self._lock:
            self.states[index] = dict(zip(layout, given, strict=True))
            try:
                self(index, grad, weight)
            finally:  # it is the caller's
                del self.states[index]
