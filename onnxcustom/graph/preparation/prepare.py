"""The trainable form of a model: what real models need before they can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxcustom._garbage import collected_later
from onnxcustom.exceptions import InvalidModelError
from onnxcustom.graph.analysis.traversal import all_nodes
from onnxcustom.graph.files.io import ModelLike, load_both, to_ir, to_proto
from onnxcustom.graph.preparation import passes
from onnxcustom.graph.preparation.checks import check_attributes, check_operands, check_sizes
from onnxcustom.graph.preparation.guards import GuardKernelsPass, NameOutputsPass
from onnxcustom.graph.preparation.ml_operators import ConvertLinearOperatorsPass, is_linear_operator
from onnxcustom.graph.preparation.opsets import ConvertOpsetPass, SetIrVersionPass
from onnxcustom.graph.preparation.sites import tag
from onnxcustom.graph.preparation.statistics import SeparateCopiesPass, SeparateStatisticsPass
from onnxcustom.graph.preparation.unused import RemoveUnusedPass
from onnxcustom.graph.shapes.declared import DeclaredShapesPass

__all__ = ["Prepared", "prepare", "structure"]

# Opset given to a model that has only operators of other domains so far.
_DEFAULT_OPSET = 18

# onnxruntime promises nothing below, and broadcasting was another thing there.
_LOWEST_OPSET = 7


def prepare(
    model: ModelLike, opset: int | None = None, max_opset: int | None = None, max_ir: int | None = None
) -> ir.Model:
    """Bring a model into trainable form.

    Every weight of :func:`onnxcustom.graph.weights` becomes an initializer of the main graph under the
    same name and is no input; functions are inlined; LinearRegressor, LinearClassifier, Scaler and
    Normalizer of ``ai.onnx.ml`` become standard operators with equal results; the optional outputs
    of LayerNormalization and Dropout are declared; shapes are inferred; every value and every node
    has a name of its own. Inputs, outputs and metadata stay as they are, and so do the results.

    Parameters
    ----------
    model : str, path, bytes, file object, onnx.ModelProto or onnx_ir.Model
        The model in any form; left unchanged.
    opset : int, default=None
        Lowest version of the default operator set wanted: an older model is converted to it.
    max_opset : int, default=None
        Highest version wanted (21 for onnxruntime 1.19.2): a newer model is converted down to it
        where that is possible without changing results.
    max_ir : int, default=None
        Highest IR version wanted (10 for onnxruntime 1.19.2).

    Returns
    -------
    onnx_ir.Model

    Raises
    ------
    InvalidModelError
        The model is invalid, or cannot be had in these versions; the message names what stands
        against it.

    Examples
    --------
    >>> import onnx.parser
    >>> model = onnx.parser.parse_model('''
    ...     <ir_version: 8, opset_import: ["": 18]>
    ...     g (float[N, 2] x) => (float[N, 2] y) {
    ...         w = Constant <value = float[2] {1.0, 2.0}> ()
    ...         y = Mul(x, w)
    ...     }''')
    >>> prepared = prepare(model)
    >>> list(prepared.graph.initializers)
    ['w']
    """
    _check_versions(opset, max_opset, max_ir)
    return _prepare(to_ir(model), opset, max_opset, max_ir)


def _prepare(
    ir_model: ir.Model, opset: int | None = None, max_opset: int | None = None, max_ir: int | None = None
) -> ir.Model:
    """Prepare in place."""
    tag(ir_model)
    structure(ir_model, min(max_opset or _DEFAULT_OPSET, _DEFAULT_OPSET))
    if (target := _target(ir_model, opset, max_opset)) is not None:
        passes.InferShapesPass()(ir_model)  # the converter wants types
        DeclaredShapesPass()(ir_model)
        _convert(ir_model, target)
    SetIrVersionPass(max_ir)(ir_model)
    _declare(ir_model)
    check_operands(ir_model.graph)
    check_sizes(ir_model.graph)
    GuardKernelsPass()(ir_model)
    passes.RenameIntegersPass()(ir_model)  # those of all that went before
    return ir_model


class Prepared:
    """A model that was loaded, checked and brought into trainable form, once.

    A function that is given one prepares nothing: it asks for a copy of the trainable form, in the versions
    that it can read. To be made at the door, by whoever is handed a model in any form, and carried along
    from there.

    Parameters
    ----------
    model : onnx_ir.Model
        What :func:`prepare` returned, or a part of it; not to be changed any more.
    proto : onnx.ModelProto or callable, optional
        The user's own model, loaded, or what gives it; by default the prepared one stands for it.

    Attributes
    ----------
    model : onnx_ir.Model
        As given.
    fingerprint : str or None
        What tells it from others, where somebody keeps what is made of it.
    """

    def __init__(
        self, model: ir.Model, proto: onnx.ModelProto | Callable[[], onnx.ModelProto] | None = None
    ) -> None:
        self.model = model
        self._proto = proto
        self._converted: dict[int, ir.Model] = {}
        self.fingerprint: str | None = None

    @property
    def proto(self) -> onnx.ModelProto:
        """The user's own model, loaded."""
        if self._proto is None:
            self._proto = to_proto(self.model)
        elif not isinstance(self._proto, onnx.ModelProto):
            self._proto = self._proto()
        return self._proto

    @classmethod
    @collected_later()
    def of(cls, model: ModelLike | Prepared) -> Prepared:
        """A model in any form, prepared; one that is, as it is.

        Raises
        ------
        InvalidModelError
            As for :func:`prepare`.
        """
        if isinstance(model, Prepared):
            return model
        proto, own = load_both(model)
        return cls(_prepare(own), proto)

    def take(
        self, opset: int | None = None, max_opset: int | None = None, max_ir: int | None = None
    ) -> ir.Model:
        """A copy that the caller may change, in these versions, which mean what they mean to :func:`prepare`.

        Raises
        ------
        InvalidModelError
            The model cannot be had in these versions; the message names what stands against it.
        """
        _check_versions(opset, max_opset, max_ir)
        made = to_ir(self.form(opset, max_opset))
        SetIrVersionPass(max_ir)(made)
        return made

    def form(self, opset: int | None = None, max_opset: int | None = None) -> ir.Model:
        """What :meth:`take` copies, for who only looks at it."""
        target = _target(self.model, opset, max_opset)
        if target is None:
            return self.model
        if target not in self._converted:
            made = to_ir(self.model)
            unread = [v for v in made.graph.initializers.values() if not v.uses()]
            if _convert(made, target):
                _keep(made, unread)
                _declare(made)
                passes.RenameIntegersPass()(made)
            self._converted[target] = made
        return self._converted[target]


def structure(model: ir.Model, default_opset: int = _DEFAULT_OPSET) -> None:
    """Run the steps of :func:`prepare` that decide what is a weight and what its name is.

    Parameters
    ----------
    model : onnx_ir.Model
        Tagged by :func:`onnxcustom.graph.preparation.sites.tag`; changed in place.
    default_opset : int, default=18
        Version of the default domain for a model that does not import it.
    """
    model.opset_imports.setdefault("", default_opset)
    common.RemoveInitializersFromInputsPass()(model)
    passes.InlineFunctionsPass()(model)
    check_attributes(model)  # before anything divides by one
    passes.FoldConstantsPass()(model)
    passes.SeparateOutputsPass()(model)
    if _linear_input_unknown(model):
        passes.InferShapesPass()(model)
    ConvertLinearOperatorsPass()(model)
    passes.LiftConstantsPass()(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    SeparateCopiesPass()(model)
    passes.BypassIdentityPass()(model)
    passes.MergeSharedConstantsPass()(model)
    SeparateStatisticsPass()(model)
    passes.UniqueNamesPass()(model)
    NameOutputsPass()(model)
    RemoveUnusedPass()(model)
    opset = model.opset_imports[""]
    common.RemoveUnusedOpsetsPass()(model)
    model.opset_imports[""] = opset


def _check_versions(opset: int | None, max_opset: int | None, max_ir: int | None) -> None:
    newest = onnx.defs.onnx_opset_version()
    for name, number, low in (
        ("opset", opset, _LOWEST_OPSET),
        ("max_opset", max_opset, _LOWEST_OPSET),
        ("max_ir", max_ir, 4),
    ):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < low):
            raise InvalidModelError(f"{name}={number!r}: an integer from {low} up was expected.")
    if opset is not None and opset > newest:
        raise InvalidModelError(f"opset={opset} is unknown to the installed onnx, which goes up to {newest}.")
    if opset is not None and max_opset is not None and opset > max_opset:
        raise InvalidModelError(f"opset={opset} is above max_opset={max_opset}.")


def _target(model: ir.Model, opset: int | None, max_opset: int | None) -> int | None:
    """The opset that the model has to be converted to, if its own is outside the limits."""
    has = model.opset_imports[""]
    target = max(has, opset or _LOWEST_OPSET)
    target = min(target, max_opset or target)
    return None if target == has else target


def _convert(model: ir.Model, target: int) -> bool:
    """Convert a model whose types are known; whether nodes had to be rewritten."""
    conversion = ConvertOpsetPass(target)
    conversion(model)
    if not conversion.rewritten:
        return False
    # What the conversion added: constants of its own, nodes without a name.
    passes.LiftConstantsPass()(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.UniqueNamesPass()(model)
    RemoveUnusedPass()(model)
    return True


def _keep(model: ir.Model, values: Iterable[ir.Value]) -> None:
    """Have initializers that nothing reads again: a weight that this part of a model does not need is one."""
    for old in values:
        if old.name not in model.graph.initializers:
            value = ir.Value(name=old.name, type=old.type, shape=old.shape, const_value=old.const_value)
            value.meta.update(old.meta)
            model.graph.register_initializer(value)


def _declare(model: ir.Model) -> None:
    """Declare what engines and runtimes read: optional outputs and shapes."""
    passes.DeclareOptionalOutputsPass()(model)
    passes.InferShapesPass(strict=True)(model)
    DeclaredShapesPass()(model)


def _linear_input_unknown(model: ir.Model) -> bool:
    """Whether the type of what a linear ``ai.onnx.ml`` operator reads has yet to be inferred."""
    return any(
        is_linear_operator(node)
        and node.inputs[0] is not None
        and (node.inputs[0].dtype is None or node.inputs[0].shape is None)
        for node in all_nodes(model.graph)
    )
