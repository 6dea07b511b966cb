"""What is decided of the updates of a step before any graph of it is made: all graphs do as it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxcustom._parameters import check_number
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.trainable.roles import Role, weight_roles
from onnxcustom.optim import BaseLearningRate
from onnxcustom.optim.averaging import Average
from onnxcustom.step.passes.packing import plan_packs
from onnxcustom.step.passes.sparse import gather_only

__all__ = ["BEGINNING", "Origin", "Plan", "make_plan"]

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a training counts from: a part of its state that its graphs have inside of them.

    Parameters
    ----------
    born : tuple of (str, int)
        Updates done when a weight joined, of those that were not there from the beginning.
    seed : int, default=0
        Of the masks of Dropout.

    Raises
    ------
    ValueError, TypeError
        A seed that is no integer of 64 bits.
    """

    born: tuple[tuple[str, int], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("seed", self.seed, f"[{-(2**63)}, {2**64 - 1}]", integral=True)

    @classmethod
    def of(cls, born: Mapping[str, int], seed: int) -> Origin:
        """The origin where weights joined after so many updates."""
        return cls(tuple((name, int(age)) for name, age in born.items() if age), seed)

    def ages(self, weights: Sequence[str]) -> dict[str, int]:
        """The number of updates that were done when a weight joined, for every weight."""
        born = dict(self.born)
        return {name: born.get(name, 0) for name in weights}


#: Of a training that has done nothing yet, and draws masks by the seed 0.
BEGINNING = Origin()


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """How the weights of a model are updated.

    Parameters
    ----------
    weights : tuple of str
        What is trained.
    rule : BaseLearningRate
        Update rule.
    roles : mapping of str to Role
        What each weight is to the model.
    ages : mapping of str to int
        Updates done when a weight joined: its own steps are counted from there.
    by_rows : tuple of str
        Tables that are updated in the rows which a batch reads.
    packs : tuple of tuple of str
        Small weights that are updated as one vector.
    prescaled : bool
        Whether gradients are made multiplied by the learning rate, which goes into their seeds.
    outside : bool
        Whether who runs a graph does arithmetic of scalars beside it, and feeds it what only depends on the
        number of rows: it is then not to be read without :attr:`ComposedStep.scalars`.
    checked : bool
        Whether a graph says if the gradients are finite.
    average : Average or None
        The moving average that is kept of every weight.
    """

    weights: tuple[str, ...]
    rule: BaseLearningRate
    roles: Mapping[str, Role] = dataclasses.field(default_factory=dict)
    ages: Mapping[str, int] = dataclasses.field(default_factory=dict)
    by_rows: tuple[str, ...] = ()
    packs: tuple[tuple[str, ...], ...] = ()
    prescaled: bool = False
    outside: bool = False
    checked: bool = False
    average: Average | None = None

    def plain(self) -> Plan:
        """The same for a graph that is read by itself."""
        return dataclasses.replace(self, packs=(), outside=False)

    def apart(self) -> Plan:
        """The same for gradients that are handed on, or accumulated: they are those of whole weights."""
        return dataclasses.replace(self, by_rows=(), prescaled=False)


def make_plan(
    model: ir.Model,
    weights: Sequence[str],
    rule: BaseLearningRate,
    penalized: Mapping[str, object],
    origin: Origin,
    *,
    average: Average | None,
    fast: bool,
    host: bool,
) -> Plan:
    """Decide how weights are updated.

    Parameters
    ----------
    model : onnx_ir.Model
        What the losses are computed from, prepared; it is only looked at.
    weights, rule
        What is trained, and how.
    penalized : mapping of str to object
        Weights that have a penalty.
    origin : Origin
        Where the training counts from.
    average : Average or None
        The moving average that is kept of every weight.
    fast : bool
        Whether graphs are rewritten to run faster.
    host : bool
        Whether tensors live in host memory: only there a part of one can be seen as another.
    """
    tables: list[str] = []
    lazy = rule.by_rows and getattr(rule, "lazy_update", False)
    if rule.accumulate == 1 and lazy and average is None:  # which moves in every row
        # A penalty has a gradient of its own in every row.
        tables = gather_only(model, [w for w in weights if w not in penalized])
    # Half precision would lose small gradients: they stay as they are.
    values = model.graph.initializers
    tensors = {w: t for w in weights if (t := values[w].const_value) is not None}
    half = any(tensor.dtype in _HALF for tensor in tensors.values()) or _computes_in_half(model.graph)
    prescaled = fast and rule.prescalable and not half
    roles, ages = weight_roles(model, weights), origin.ages(weights)
    packs: list[list[str]] = []
    # Prescaled updates become part of the products that gradients come from, which is better still.
    if fast and host and not prescaled:
        whole = {w: tensors[w] for w in weights if w not in tables}
        packs = plan_packs(rule, whole, roles, ages, {w: k for k, w in enumerate(weights)})
    return Plan(
        tuple(weights),
        rule,
        roles,
        ages,
        tuple(tables),
        tuple(map(tuple, packs)),
        prescaled,
        outside=fast and host,
        checked=rule.hides_nonfinite or not host,
        average=average,
    )


def _computes_in_half(graph: ir.Graph) -> bool:
    """Whether a tensor of the graph, or of a graph inside, is in half precision."""
    made = (v for node in all_nodes(graph) for v in node.outputs)
    return any(v.dtype in _HALF for v in graph.inputs) or any(v.dtype in _HALF for v in made)
