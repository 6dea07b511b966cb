"""An update rule with a clock of its own, or of who trains by it: the manner of older calls and of MXNet."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from onnxcustom._parameters import check_count
from onnxcustom._warnings import warn_user

from .clock import Clock
from .rule import Rule

__all__ = ["TimedRule", "with_clock"]

# What older pickles have in place of a clock.
_OLDER = ("_schedules", "_t", "_epoch", "_values", "_constant")

# Options that their giver may still change.
_GROWING = (dict, list, set)

Self = TypeVar("Self", bound="TimedRule")


class TimedRule(Rule):
    """A rule that is asked for the learning rate of a step.

    The rule itself is the formula and its options; the step is that of :attr:`clock`, which is the rule's
    own, or that of the training whose :attr:`~onnxcustom.TrainingStep.optimizer` this is.
    """

    _clock: Clock | None = None
    #: What calls on a rule leave there: no part of the formula.
    _left_by_calls: ClassVar[tuple[str, ...]] = ("_clock",)

    @property
    def revision(self) -> int:
        """A number that changes when options do."""
        return 0

    @property
    def clock(self) -> Clock:
        """Where the training is that this rule counts for."""
        if self._clock is None:
            self.__dict__["_clock"] = self.make_clock()
        assert self._clock is not None
        return self._clock

    def formula(self: Self) -> Self:
        """The rule without a clock: what graphs are made from, for any number of trainings."""
        kept = {k: v for k, v in self.__dict__.items() if k not in self._left_by_calls}
        made = object.__new__(type(self))
        made.__dict__.update({k: copy.copy(v) if isinstance(v, _GROWING) else v for k, v in kept.items()})
        return made

    def on(self: Self, clock: Clock) -> Self:
        """The rule with the clock of a training: what is done to one of them is done to the other."""
        return self.formula().follow(clock)

    def follow(self: Self, clock: Clock) -> Self:
        """Have the clock of a training, and the learning rate that was set there."""
        self.__dict__["_clock"] = clock
        if clock.started:
            self.__dict__["learning_rate"] = clock.rate
        return self

    # -- steps ---------------------------------------------------------------------------------

    def init_learning_rate(self: Self) -> Self:
        """Set the clock to the first step of the first epoch; updates by index are counted anew.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            A schedule gave something else than a number of its range; the clock stays as it was.
        """
        self.clock.become(self.begun())
        return self

    def begun(self) -> Clock:
        """A clock of its own for a training by this rule, at the first step."""
        made = self.make_clock()
        made.start(self.make_schedules(), self.learning_rate)
        return made

    def update_learning_rate(self: Self, t: int) -> Self:
        """Move on to the learning rate of the next step.

        Parameters
        ----------
        t : int
            Number of updates done, in [0, inf), without :attr:`begin_num_update`; the next step is
            ``t + 1`` after it.

        Returns
        -------
        self

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        ValueError, TypeError
            A negative `t`, or something else than an integer.
        ValueError
            A schedule gave something else than a number of its range; the clock stays where it was.
        """
        self.clock.update(t)
        return self

    def report_epoch(self, loss: float) -> bool:
        """Tell the schedule the mean loss of the epoch that has just ended.

        Parameters
        ----------
        loss : float
            Mean objective over the epoch's rows.

        Returns
        -------
        bool
            True if the schedule sees no use in going on: ``'adaptive'`` says so when the loss has
            stalled at a rate of 1e-6 or less.

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        InvalidDataError
            The loss is not finite.
        """
        return self.clock.report_epoch(loss)

    @property
    def value(self) -> float:
        """Learning rate of the current step.

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        """
        return self.values["learning_rate"]

    @property
    def values(self) -> dict[str, float]:
        """Learning rate and every scheduled hyper-parameter of the current step, by name.

        Raises
        ------
        RuntimeError
            Before :meth:`init_learning_rate`.
        """
        self.clock.check_started()
        return self.clock.values

    @property
    def t(self) -> int:
        """The current step, counted from 1: the one that uses :attr:`value`."""
        return self.clock.t

    def take_clock(self, other: TimedRule) -> None:
        """Go on at the step where another rule is; schedules that are the same go on, too."""
        made = self.begun()
        made.follow(other.clock)
        self.clock.become(made)

    def loop(self, n: int = 1000) -> Iterator[float]:
        """Yield the learning rates of the first `n` steps; the clock starts again.

        Examples
        --------
        >>> from onnxcustom.optim import LearningRateSGD
        >>> [round(v, 4) for v in LearningRateSGD(1.0).loop(3)]
        [1.0, 0.8409, 0.7598]
        """
        n = check_count("n", n, 0)
        self.init_learning_rate()
        for t in range(n):
            if t:  # no rate is asked for that is not yielded: a list of them may end there
                self.update_learning_rate(t)
            yield self.value

    # -- in mid-training -----------------------------------------------------------------------

    def use_rate(self, rate: Any) -> None:
        """Use another learning rate from the current step on; clock and hyper-parameters stay."""
        self.clock.set_rate(rate, self.bound(learning_rate=rate).make_schedule())
        self.__dict__["learning_rate"] = rate

    def set_lr_mult(self: Self, args_lr_mult: Mapping[str | int, float]) -> Self:
        """Use other factors of the learning rate; the clock goes on.

        Parameters
        ----------
        args_lr_mult : dict of str or int to float
            As the option ``lr_mult``. An :class:`~onnxcustom.optim.Updater` follows; a training step
            keeps those that its graph was made with.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Something else than factors in [0, inf); nothing is changed.
        """
        return self._set_multipliers("lr_mult", args_lr_mult)

    def set_lr_scale(self: Self, args_lrscale: Mapping[str | int, float]) -> Self:
        """MXNet's older name of :meth:`set_lr_mult`."""
        warn_user("set_lr_scale is deprecated: use set_lr_mult.", DeprecationWarning)
        return self.set_lr_mult(args_lrscale)

    def set_wd_mult(self: Self, args_wd_mult: Mapping[str | int, float]) -> Self:
        """Use other factors of the weight decay; as :meth:`set_lr_mult`."""
        return self._set_multipliers("wd_mult", args_wd_mult)

    def _set_multipliers(self: Self, option: str, table: Mapping[str | int, float]) -> Self:
        self.bound(**{option: table}).check_options()
        self.__dict__[option] = table
        return self


def with_clock(rule: TimedRule, state: dict[str, Any]) -> dict[str, Any]:
    """What a pickle holds of a rule, its clock as one thing: older versions wrote it by its parts."""
    state = {**state}
    parts = {name: state.pop(name, None) for name in _OLDER}
    if parts["_schedules"] is None:
        return state
    rule.__dict__.update(state)
    clock = rule.make_clock()
    clock.rate = rule.learning_rate
    clock.be_at(parts["_schedules"], parts["_t"], parts["_epoch"])
    return {**state, "_clock": clock}
