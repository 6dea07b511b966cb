"""The names of the package: complete, documented, and there without a runtime."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import onnxcustom

CONTRACT = {
    "OnnxRegressor",
    "OnnxClassifier",
    "OrtGradientForwardBackward",
    "TrainingStep",
    "gradient_graph",
    "gradient_report",
    "load",
    "save",
    "weights",
    "replace_weights",
    "__version__",
}
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(onnxcustom.__path__, "onnxcustom.")
    if not info.name.endswith("__main__")
)
OLD_MODULES = [
    "ortgradient",
    "sgd_learning_rate",
    "sgd_learning_loss",
    "sgd_learning_penalty",
    "optimizers_partial",
    "data_loader",
    "excs",
]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def without_runtime(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter where every package of onnxruntime seems to be missing."""
    return run_python(f"import sys\nsys.modules['onnxruntime'] = None\n{code}")


def test_all_is_the_contract() -> None:
    exceptions = set(importlib.import_module("onnxcustom.exceptions").__all__)
    assert set(onnxcustom.__all__) == CONTRACT | exceptions
    assert len(onnxcustom.__all__) == len(set(onnxcustom.__all__))
    assert set(onnxcustom.__all__) <= set(dir(onnxcustom))


@pytest.mark.parametrize("name", [n for n in onnxcustom.__all__ if n != "__version__"])
def test_public_name_is_documented(name: str) -> None:
    value = getattr(onnxcustom, name)
    assert inspect.getdoc(value), name
    if not (inspect.isclass(value) and issubclass(value, (Exception, Warning))):
        doc = value.__doc__
        for section in ("Parameters\n", "Examples\n"):
            assert section in doc, f"{name} has no section {section.strip()}"


@pytest.mark.parametrize("name", MODULES)
def test_module_lists_what_it_has(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, name
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{public}"


@pytest.mark.parametrize("name", OLD_MODULES)
def test_import_paths_of_older_versions(name: str) -> None:
    assert importlib.import_module(f"onnxcustom.training.{name}").__all__


def test_import_onnxcustom_is_enough() -> None:
    """For every package and public module, and for those of training: each in a room not loaded yet."""
    names = [n for n in MODULES if "._" not in n and (n.count(".") == 1 or n.split(".")[1] == "training")]
    names += [info.name for info in pkgutil.walk_packages(onnxcustom.__path__, "onnxcustom.") if info.ispkg]
    done = run_python(
        f"import importlib, sys\nfor name in {sorted({*names})}:\n"
        "    room = '.'.join(name.split('.')[:2])\n"
        "    for m in [m for m in sys.modules if f'{m}.'.startswith(f'{room}.') or m == 'onnxcustom']:\n"
        "        del sys.modules[m]\n"
        "    onnxcustom = importlib.import_module('onnxcustom')\n"
        "    assert eval(name).__name__ == name\n"
        "assert {'data', 'training', 'cli'} <= set(dir(onnxcustom))\n"
        "assert {'callbacks', 'ortgradient'} <= set(dir(onnxcustom.training))\n"
        "print('all')"
    )
    assert done.stdout.strip() == "all", done.stderr


@pytest.mark.parametrize("name", ["training.no_such_name", "training._no_such_name", "_lazy_", "trainig"])
def test_unknown_modules(name: str) -> None:
    with pytest.raises(AttributeError, match=name.rpartition(".")[2]):
        eval(f"onnxcustom.{name}", {"onnxcustom": onnxcustom})


def test_page_of_the_api_imports_from_where_names_are() -> None:
    text = (Path(__file__).parents[2] / "_doc" / "api.rst").read_text(encoding="utf-8")
    tables = re.split(r"(?m)^(?=For those|Import these)", text.split("Declaring options")[0])[1:]
    assert len(tables) >= 8
    for table in tables:
        said = table.split("\n\n")[0]
        modules = [importlib.import_module(name) for name in re.findall(r"``(onnxcustom[\w.]*)``", said)]
        assert modules, said
        for name in re.findall(r"(?m)^:\w+:`~?([\w.]+)`", table):
            assert any(hasattr(m, name.rpartition(".")[2]) for m in modules), f"{name} is not in {said}"


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        onnxcustom.no_such_name  # noqa: B018


def test_lazy_names_are_those_type_checkers_see() -> None:
    source = Path(onnxcustom.__file__).read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:")[1].split("\n\n")[0]
    seen = {
        name.strip(): module
        for module, names in re.findall(r"from onnxcustom\.([\w.]+) import (.+)", block)
        for name in names.split(",")
    }
    assert seen == onnxcustom._LAZY


def test_import_loads_neither_runtime_nor_scikit_learn() -> None:
    heavy = ["onnxruntime", "sklearn", "onnx", "numpy", "onnxscript", "torch", "jax"]
    done = run_python(f"import sys, onnxcustom; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


def test_every_module_imports_without_a_runtime() -> None:
    code = f"import importlib\nfor name in {MODULES}: importlib.import_module(name)\nprint('all')"
    done = without_runtime(code)
    assert done.stdout.strip() == "all", done.stderr


def test_no_module_imports_torch_or_the_training_package() -> None:
    done = run_python(
        f"import importlib, sys\nfor name in {MODULES}: importlib.import_module(name)\n"
        "print([m for m in ('torch', 'jax', 'tensorflow', 'onnxruntime.training') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "call",
    [
        "onnxcustom.OnnxRegressor(model).fit([[0.0, 1.0]], [[1.0]])",
        "onnxcustom.OrtGradientForwardBackward(model)",
        "onnxcustom.gradient_graph(model, engine='ort')",
    ],
)
def test_what_needs_a_runtime_names_the_extra(call: str) -> None:
    done = without_runtime(
        "import onnx.parser, onnxcustom\n"
        'model = onnx.parser.parse_model(\'<ir_version: 8, opset_import: ["": 17]>'
        "m (float[N, 2] X) => (float[N, 1] Y) <float[2, 1] W = {1, 2}> { Y = MatMul(X, W) }')\n"
        "assert list(onnxcustom.weights(model)) == ['W']\n"
        f"try:\n    {call}\nexcept ImportError as error:\n    print(type(error).__name__, error)"
    )
    assert done.stdout.startswith("MissingRuntimeError"), done.stderr
    assert "onnxcustom[cpu]" in done.stdout


def test_exceptions_pickle_with_their_fields() -> None:
    import pickle

    error = onnxcustom.GradientNotImplementedError("no rule", node="n0", op_type="Elu", opset=6)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == "no rule"
    assert (again.node, again.op_type, again.domain, again.opset) == ("n0", "Elu", "", 6)


@pytest.mark.parametrize(
    ("name", "bases"),
    [
        ("ConvergenceError", (RuntimeError,)),
        ("ConvergenceWarning", (UserWarning,)),
        ("EvaluationError", (RuntimeError,)),
        ("GradientNotImplementedError", (NotImplementedError, RuntimeError)),
        ("InvalidDataError", (ValueError,)),
        ("InvalidModelError", (ValueError,)),
        ("InvalidParameterError", (ValueError, TypeError)),
        ("MissingRuntimeError", (ImportError,)),
        ("NoTrainableWeightError", (RuntimeError,)),
        ("ProviderError", (RuntimeError,)),
        ("UnknownNameError", (ValueError,)),
    ],
)
def test_exceptions_are_those_callers_expect(name: str, bases: tuple[type, ...]) -> None:
    assert issubclass(getattr(onnxcustom, name), bases[0])
    assert all(issubclass(getattr(onnxcustom, name), base) for base in bases)
