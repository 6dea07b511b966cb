"""What a fit leaves in an estimator, and what scikit-learn wants to know of it."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from onnxcustom._parameters import check_flag
from onnxcustom._versioning import check_version, stamp_version
from onnxcustom.exceptions import InvalidParameterError
from onnxcustom.step.training_step import TrainingStep

from .columns import check_columns, is_as_wide
from .declaring import Text, as_it_is, same, short
from .run import Run

__all__ = ["Results"]


class Results(BaseEstimator):
    """An estimator as scikit-learn has it: parameters that are stored, and what training has made of them."""

    #: Name of the parameter that holds the model.
    model_parameter: ClassVar[str] = "model"

    # Private attributes that a fit leaves, beside the public ones, whose names end in an underscore.
    _kept: ClassVar[frozenset[str]] = frozenset({"_seed", "_made_from", "_meaning", "_names_from_stream"})

    _run: Run | None = None
    _meaning: Any = None
    _seed: int | None = None
    _names_from_stream: bool = False

    step_: TrainingStep
    history_: dict[str, list[float]]
    n_iter_: int

    # -- parameters ------------------------------------------------------------------------------

    @classmethod
    def _fields(cls) -> tuple[dataclasses.Field, ...]:
        """Parameters as they are declared."""
        return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()

    @classmethod
    def _step_parameters(cls) -> list[str]:
        """Names of the parameters that the step is made of."""
        return [field.name for field in cls._fields() if "of_step" in field.metadata]

    @property
    def _live_parameters(self) -> frozenset[str]:
        """Those of them that may change without a new step."""
        return frozenset()

    def _check_flags(self) -> None:
        """Refuse words that Python would take for True."""
        for field in self._fields():
            value = getattr(self, field.name)
            if "flag" in field.metadata and (value is not None or field.default is not None):
                check_flag(field.name, value)
        verbose = getattr(self, "verbose", 0)
        if not isinstance(verbose, (int, np.integer, np.bool_)) or verbose < 0:
            raise InvalidParameterError(f"verbose must be 0, 1 or 2, not {verbose!r}.")

    def _as_made(self) -> dict[str, Any]:
        """The parameters of the step as they are now."""
        return {name: as_it_is(getattr(self, name)) for name in self._step_parameters()}

    def _changed(self) -> set[str]:
        """Parameters of the step that were set since it was made."""
        # What an older version has made knows nothing of later parameters, which had their defaults.
        made = {field.name: field.default for field in self._fields()} | self._made_from
        return {name for name, value in self._as_made().items() if not same(made[name], value)}

    _made_from: dict[str, Any]

    @property
    def _model(self) -> Any:
        """The model as it was given."""
        return getattr(self, self.model_parameter, None)

    # -- what a fit leaves -----------------------------------------------------------------------

    def _results(self) -> dict[str, Any]:
        """Everything that a fit has left."""
        return {n: v for n, v in vars(self).items() if n.endswith("_") or n in self._kept}

    def _replace_results(self, results: Mapping[str, Any]) -> None:
        """Have these in place of everything that a fit has left."""
        for name in self._results():
            delattr(self, name)
        for name, value in results.items():
            setattr(self, name, value)

    @property
    def weights_(self) -> dict[str, np.ndarray]:
        """Copies of the trained weights, by name: of their averages, if they are kept."""
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"This {type(self).__name__} is not fitted yet: it has no weights_.")
        return self.step_.predicting_weights()

    def get_trained_onnx(self, merge: bool = True) -> onnx.ModelProto:
        """The user's model with the trained weights; names, inputs, outputs and metadata are kept.

        Parameters
        ----------
        merge : bool, default=True
            Whether adapters are taken into the weights they stand beside. If not, they are inputs of the
            model, without which it computes what it did before.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        """
        self._check_fitted()
        return self.step_.trained_model(merge)

    def save_adapter(self, path: str | os.PathLike[str]) -> None:
        """Write the adapters that were trained by ``lora=``.

        Parameters
        ----------
        path : str or PathLike
            Ends in ``.onnx_adapter``, for onnxruntime from 1.20 on, or in ``.safetensors``.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        UnknownNameError, InvalidParameterError, MissingRuntimeError
            As for :meth:`onnxcustom.TrainingStep.save_adapter`.
        """
        self._check_fitted()
        self.step_.save_adapter(path)

    def _takes_arrays(self, columns: Mapping[str, Any] | None = None) -> bool:
        """Whether arrays are as good as tables: columns had no names, or came as a stream, as arrays may."""
        known = columns or vars(self)
        return "feature_names_in_" not in known or bool(known.get("_names_from_stream"))

    def _check_features(self, X: Any, step: TrainingStep | None = None) -> None:
        """Compare columns and their names with those of the first fit."""
        silent = self._run is not None or self._takes_arrays()  # what is scored in training was looked at
        if silent and type(X) is np.ndarray and is_as_wide(self, X):
            return  # looking further takes longer than predicting a row
        check_columns(self, X, self.step_ if step is None else step, silent)

    def _check_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"This {type(self).__name__} is not fitted yet: call fit first.")

    # -- scikit-learn ----------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "step_")

    def __getstate__(self) -> dict[str, Any]:
        kept = {k: v for k, v in super().__getstate__().items() if k != "_run"}
        return stamp_version(kept)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(check_version(state, self))

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        # scikit-learn's own would print whole models.
        parameters = inspect.signature(type(self).__init__).parameters
        given = {n: getattr(self, n) for n in parameters if n in self._get_param_names()}
        changed = {n: v for n, v in given.items() if not same(parameters[n].default, v)}
        return f"{type(self).__name__}({', '.join(f'{n}={short(v)}' for n, v in changed.items())})"

    def _get_params_html(self, *args: Any, **kwargs: Any) -> Any:
        # What scikit-learn (>= 1.7) shows in notebooks.
        shown = super()._get_params_html(*args, **kwargs)
        models = {n: v for n, v in shown.items() if isinstance(v, (bytes, onnx.ModelProto, ir.Model))}
        for name, value in models.items():
            shown[name] = Text(short(value))
        return shown
