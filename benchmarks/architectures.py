"""Thirteen architectures that people train: PyTorch modules, their ONNX models, and a batch for each.

Modules are made from their configuration with random weights; nothing is downloaded. BatchNorm and Dropout
are as in ``module.eval()``, which is what TrainingStep does by default: one normalizes by statistics that
were taken of the batch beforehand, the other passes everything on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from . import common

OPSET = 18
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How to make one.

    Attributes
    ----------
    make : callable
        The module, of the width of an image in pixels; of tokens there is one size.
    tokens : (batch, length, words) or None
        Integers in place of images: how many of which.
    per_token, per_pixel : bool
        Whether there is a label for each of them, rather than one a row.
    needs : tuple of str
        Packages beside PyTorch.
    """

    make: Callable[[int], Any]
    tokens: tuple[int, int, int] | None = None
    per_token: bool = False
    per_pixel: bool = False
    needs: tuple[str, ...] = ()


@dataclasses.dataclass
class Problem:
    """What all contenders are given: module, its inference model as bytes, a batch and its labels."""

    name: str
    px: int
    module: Any
    onnx: bytes
    X: Any
    y: Any


# -- modules ----------------------------------------------------------------------------------------


def vision(name: str, **options: Any) -> Architecture:
    """A model of torchvision."""

    def make(px: int) -> Any:
        models = importlib.import_module("torchvision.models")
        return getattr(models, name)(weights=None, num_classes=CLASSES, **options)

    return Architecture(make, needs=("torchvision",))


def vit(px: int) -> Any:
    """ViT-Ti: 12 layers of width 192; a patch is an eighth of 64 pixels, a fourteenth of 224."""
    models = importlib.import_module("torchvision.models")
    return models.VisionTransformer(px, 8 if px <= 64 else 16, 12, 3, 192, 768, num_classes=CLASSES)


def bert(px: int) -> Any:
    """Four layers of width 256, and a class for each text."""
    transformers = importlib.import_module("transformers")
    config = transformers.BertConfig(
        vocab_size=1000,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=128,
        num_labels=CLASSES,
        attn_implementation="eager",
    )
    model = transformers.BertForSequenceClassification(config)
    torch = common.imported_torch()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model(input_ids=x).logits

    return Logits()


def gpt(px: int) -> Any:
    """Like GPT-2: four layers of width 256, causal, gelu by tanh, and the next word for each."""
    torch = common.imported_torch()
    nn = torch.nn

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

        def forward(self, x: Any) -> Any:
            rows, length, width = x.shape
            q, k, v = (
                t.reshape(rows, length, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
            )
            later = torch.ones(length, length, dtype=torch.bool).triu(1)
            scores = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).masked_fill(later, -1e9)
            return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(rows, length, width))

    class Block(nn.Module):
        def __init__(self, width: int = 256, heads: int = 4) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
            self.layers = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(approximate="tanh"),
                nn.Linear(4 * width, width),
            )

        def forward(self, x: Any) -> Any:
            x = x + self.attention(self.norm(x))
            return x + self.layers(x)

    class GPT(nn.Module):
        def __init__(self, words: int = 1000, length: int = 64, width: int = 256) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(words, width), nn.Parameter(torch.randn(length, width))
            self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

        def forward(self, x: Any) -> Any:
            x = self.blocks(self.words(x) + self.places)
            return self.head(self.norm(x)).transpose(1, 2)  # cross-entropy reads classes second

    return GPT()


def lstm(px: int) -> Any:
    """Words embedded, two layers of LSTM, a class of the last state."""
    torch = common.imported_torch()

    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(1000, 64)
            self.rnn = torch.nn.LSTM(64, 128, num_layers=2, batch_first=True)
            self.head = torch.nn.Linear(128, CLASSES)

        def forward(self, x: Any) -> Any:
            return self.head(self.rnn(self.words(x))[0][:, -1])

    return Text()


def unet(px: int) -> Any:
    """Three halvings and as many doublings, 16 to 128 channels, a class for each pixel."""
    torch = common.imported_torch()
    nn = torch.nn

    def block(before: int, after: int) -> Any:
        layers = []
        for first in (before, after):
            layers += [nn.Conv2d(first, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return nn.Sequential(*layers)

    class UNet(nn.Module):
        def __init__(self, width: int = 16, depth: int = 3) -> None:
            super().__init__()
            sizes = [width * 2**k for k in range(depth + 1)]
            self.down = nn.ModuleList([block(a, b) for a, b in zip([3, *sizes], sizes, strict=False)])
            self.up = nn.ModuleList([nn.ConvTranspose2d(2 * s, s, 2, stride=2) for s in sizes[:-1]])
            self.join = nn.ModuleList([block(2 * s, s) for s in sizes[:-1]])
            self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, CLASSES, 1)

        def forward(self, x: Any) -> Any:
            kept = []
            for layer in self.down[:-1]:
                kept.append(layer(x))
                x = self.pool(kept[-1])
            x = self.down[-1](x)
            for up, join, before in zip(self.up[::-1], self.join[::-1], kept[::-1], strict=True):
                x = join(torch.cat([up(x), before], 1))
            return self.head(x)

    return UNet()


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": vision("resnet18"),
    "unet": Architecture(unet, per_pixel=True),
    "mobilenet_v3_small": vision("mobilenet_v3_small"),
    "efficientnet_b0": vision("efficientnet_b0"),
    "convnext_tiny": vision("convnext_tiny"),
    "lstm": Architecture(lstm, tokens=(16, 32, 1000)),
    "bert": Architecture(bert, tokens=(8, 64, 1000), needs=("transformers",)),
    "swin_t": vision("swin_t"),
    "vit": Architecture(vit, needs=("torchvision",)),
    "squeezenet": vision("squeezenet1_1"),
    "densenet": vision("densenet121"),
    "shufflenet": vision("shufflenet_v2_x1_0"),
    "gpt": Architecture(gpt, tokens=(8, 64, 1000), per_token=True),
}


# -- weights, batch, export -----------------------------------------------------------------------------


def problem(name: str, px: int, batch: int, seed: int = 0, export: bool = True) -> Problem:
    """One architecture with its weights, its ONNX model (where asked for) and its batch."""
    import numpy as np

    torch = common.imported_torch()
    torch.manual_seed(seed)
    kind = ARCHITECTURES[name]
    module = kind.make(px)
    rng = np.random.default_rng(seed)
    if kind.tokens is None:
        X: Any = rng.standard_normal((batch, 3, px, px), dtype=np.float32)
        labels: tuple[int, ...] = (batch, px, px) if kind.per_pixel else (batch,)
    else:
        batch, length, words = kind.tokens
        X = rng.integers(0, words, (batch, length))
        labels = (batch, length) if kind.per_token else (batch,)
    y = rng.integers(0, kind.tokens[2] if kind.per_token and kind.tokens else CLASSES, labels)
    untie(module, torch)
    settle(module, torch.from_numpy(X), torch)
    model = exported(module, torch.from_numpy(X), torch) if export else b""
    return Problem(name, px, module, model, X, y)


def untie(module: Any, torch: Any) -> None:
    """No two weights alike: PyTorch's exporter makes one initializer of all that are equal.

    Fresh scales are ones, biases zeros, and ConvNeXt's layer scales 1e-6: those get noise of 5 %.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter.add_(torch.randn_like(parameter), alpha=0.05)


def settle(module: Any, X: Any, torch: Any) -> None:
    """Statistics of BatchNorm that are those of the batch; then the mode in which they stay as they are."""
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    module.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            module(X)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()


def exported(module: Any, X: Any, torch: Any) -> bytes:
    """The module as ONNX, its BatchNorms not folded into convolutions, its batch axis free."""
    buffer = io.BytesIO()
    with quiet():
        torch.onnx.export(
            module,
            (X,),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
        )
    return buffer.getvalue()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of what they trace, and that they are old."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
