"""Which input and output of a gradient graph belongs to which tensor of the model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import onnx
import onnx_ir as ir

from onnxcustom.exceptions import InvalidModelError

__all__ = ["METADATA_KEY", "GradientNames"]

METADATA_KEY = "onnxcustom.gradient"
"""Key of the gradient graph's metadata that holds the names, as JSON."""

_LONGEST = 2**26


@dataclass(frozen=True)
class GradientNames:
    """Names of a gradient graph, stored in its metadata.

    Parameters
    ----------
    inputs, weights, outputs : tuple of str
        Of the model: its inputs, the weights that became inputs, its outputs.
    seeds : dict of str to str
        For each output that is differentiated, the input that takes the gradient coming in.
    gradients : dict of str to str
        For each input and weight differentiated, in this order, the output that holds its gradient.
    engine : str
        The engine that built the graph.
    """

    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]
    seeds: dict[str, str]
    gradients: dict[str, str]
    engine: str = ""

    @classmethod
    def choose(
        cls,
        inputs: Iterable[str],
        weights: Iterable[str],
        outputs: Iterable[str],
        targets: Iterable[str],
        sources: Iterable[str],
        taken: set[str],
        engine: str,
    ) -> GradientNames:
        """Names ``<name>_grad``, with a number behind those that are taken; `taken` grows."""

        def free(name: str) -> str:
            made, k = f"{name}_grad", 0
            while made in taken:
                k += 1
                made = f"{name}_grad_{k}"
            taken.add(made)
            return made

        gradients = {name: free(name) for name in sources}
        seeds = {name: free(name) for name in targets}
        return cls(tuple(inputs), tuple(weights), tuple(outputs), seeds, gradients, engine)

    def to_json(self) -> str:
        """The names as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, model: onnx.ModelProto | ir.Model) -> GradientNames:
        """The names in a gradient graph's metadata.

        Raises
        ------
        InvalidModelError
            If the model is not a gradient graph.
        """
        props: Mapping[str, str]
        if isinstance(model, ir.Model):
            props = model.metadata_props
        else:
            props = {p.key: p.value for p in model.metadata_props}
        if METADATA_KEY not in props:
            raise InvalidModelError(
                f"The model is not a gradient graph: its metadata has no {METADATA_KEY!r}. "
                "Build it with onnxcustom.gradient_graph."
            )
        return cls._read(props[METADATA_KEY])

    @classmethod
    def _read(cls, text: str) -> GradientNames:
        """What :meth:`to_json` wrote; a model may come from anywhere, and anything may be there."""
        try:
            raw = json.loads(text) if len(text) <= _LONGEST else None
        except (ValueError, RecursionError):
            raw = None
        if isinstance(raw, dict) and set(raw) == {field.name for field in fields(cls)}:
            lists = [raw[name] for name in ("inputs", "weights", "outputs")]
            pairs = [raw[name] for name in ("seeds", "gradients")]
            sound = all(isinstance(v, list) for v in lists) and all(isinstance(v, dict) for v in pairs)
            if sound:
                lists += [[*v, *v.values()] for v in pairs] + [[raw["engine"]]]
            if sound and all(isinstance(name, str) for names in lists for name in names):
                return cls(**{**raw, **{name: tuple(raw[name]) for name in ("inputs", "weights", "outputs")}})
        raise InvalidModelError(
            f"The metadata entry {METADATA_KEY!r} is not what onnxcustom.gradient_graph writes: build the "
            "gradient graph again."
        )
