"""Weights of what ``torch.onnx.export`` writes are the module's parameters, buffers not among them."""

from __future__ import annotations

import io
import logging
import math
import warnings

import numpy as np
import onnx
import pytest

from onnxcustom.graph import weights

torch = pytest.importorskip("torch")
nn = torch.nn


# -- modules -------------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """As BERT: embeddings of words, places and kinds, a mask of padding, a pooler."""

    def __init__(self):
        super().__init__()
        self.word, self.place, self.kind = nn.Embedding(11, 16), nn.Embedding(6, 16), nn.Embedding(2, 16)
        self.norm = nn.LayerNorm(16, eps=1e-12)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pooler = nn.Linear(16, 16)
        self.register_buffer("positions", torch.arange(6)[None])

    def forward(self, ids, mask):
        h = self.word(ids) + self.place(self.positions) + self.kind(torch.zeros_like(ids))
        h = self.encoder(self.norm(h), src_key_padding_mask=mask == 0)
        return torch.tanh(self.pooler(h[:, 0]))


class Vision(nn.Module):
    """As ViT: patches, a token of the class, learned positions, layers that are scaled."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.positions = nn.Parameter(torch.zeros(1, 5, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.scale = nn.Parameter(torch.full((16,), 0.1))
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))

    def forward(self, x):
        h = self.patch((x - self.mean) / self.deviation).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1) + self.positions
        return (h + self.scale * self.layer(h))[:, 0]


class Windows(nn.Module):
    """As Swin: shifted windows, a table of relative positions, a mask between windows."""

    def __init__(self, low=-100.0):
        super().__init__()
        self.qkv, self.out, self.merge = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(32, 16, bias=False)
        self.table = nn.Parameter(torch.zeros(9, 2))
        place = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        apart = (place[:, :, None] - place[:, None]).permute(1, 2, 0) + 1
        self.register_buffer("places", apart[..., 0] * 3 + apart[..., 1])
        region = torch.tensor([0.0, 0, 1, 2])
        region = self.windows((3 * region[:, None] + region[None])[None, :, :, None]).view(-1, 4)
        self.register_buffer("mask", torch.where(region[:, None] != region[:, :, None], low, 0.0))

    def windows(self, x):
        rows, size, _, width = x.shape
        cut = x.view(rows, size // 2, 2, size // 2, 2, width)
        return cut.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, width)

    def forward(self, x):
        rows = x.shape[0]
        w = self.windows(torch.roll(x, (-1, -1), (1, 2)))
        q, k, v = self.qkv(w).view(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * 0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.places.view(-1)].view(4, 4, 2).permute(2, 0, 1)[None]
        scores = scores.view(-1, 4, 2, 4, 4) + self.mask[None, :, None]
        mixed = scores.view(-1, 2, 4, 4).softmax(-1) @ v
        o = self.out(mixed.transpose(1, 2).reshape(-1, 4, 8)).view(rows, 2, 2, 2, 2, 8)
        o = x + torch.roll(o.permute(0, 1, 3, 2, 4, 5).reshape(rows, 4, 4, 8), (1, 1), (1, 2))
        return self.merge(torch.cat([o[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1))


class Rotary(nn.Module):
    """As Llama: root mean squares, tables of cosines and sines, a causal mask."""

    def __init__(self):
        super().__init__()
        self.scale, self.qkv = nn.Parameter(torch.ones(8)), nn.Linear(8, 24, bias=False)
        angles = torch.outer(torch.arange(6), torch.tensor([1.0, 0.1])).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        self.register_buffer("causal", torch.full((6, 6), -1e9).triu(1))

    def rotated(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x):
        h = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * self.scale
        q, k, v = (t.view(-1, 6, 2, 4).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        scores = self.rotated(q) @ self.rotated(k).transpose(2, 3) / 2 + self.causal
        return scores.softmax(-1) @ v


class Recurrent(nn.Module):
    def __init__(self, kind, both=False):
        super().__init__()
        self.layers = kind(4, 5, 1 + both, batch_first=True, bidirectional=both)
        self.head = nn.Linear(10 if both else 5, 2)

    def forward(self, x):
        return self.head(self.layers(x)[0][:, -1])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4)
        self.c, self.norm_c = nn.Conv2d(3, 4, 1, 2, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.norm_b(self.b(torch.relu(self.norm_a(self.a(x))))) + self.norm_c(self.c(x))
        return self.head(torch.relu(h).mean((2, 3)))

    def folded(self):
        """What is left of a convolution and its normalization: one convolution."""
        for conv, norm in ((self.a, self.norm_a), (self.b, self.norm_b), (self.c, self.norm_c)):
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            yield conv.weight * scale[:, None, None, None]
            yield norm.bias - norm.running_mean * scale


class Normalizations(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.GroupNorm(2, 4),
            nn.PReLU(4),
            nn.InstanceNorm2d(4, affine=True),
            nn.LayerNorm(6),
        )
        self.temperature = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.layers(x) * self.temperature.exp()


class Sines(nn.Module):
    def __init__(self):
        super().__init__()
        angles = torch.arange(5)[:, None] * torch.exp(torch.arange(0, 8, 2) * (-math.log(1e4) / 8))
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], -1)[None])
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x + self.positions)


def images(size=8):
    return (torch.randn(2, 3, size, size),)


SEQUENCE = (torch.randn(2, 7, 4),)
MODULES = {
    "encoder": (Encoder, (torch.tensor([[1, 2, 3, 4, 5, 6]] * 2), torch.ones(2, 6, dtype=torch.int64))),
    "vision": (Vision, images()),
    "windows": (Windows, (torch.randn(2, 4, 4, 8),)),
    "windows, low": (lambda: Windows(torch.finfo(torch.float32).min), (torch.randn(2, 4, 4, 8),)),
    "rotary": (Rotary, (torch.randn(2, 6, 8),)),
    "lstm": (lambda: Recurrent(nn.LSTM, both=True), SEQUENCE),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCE),
    "rnn": (lambda: Recurrent(nn.RNN), SEQUENCE),
    "residual": (Residual, images()),
    "normalizations": (Normalizations, images()),
    "sines": (Sines, (torch.randn(2, 5, 8),)),
}
TAKEN = {
    "windows": "a learned bias of scores may hold -100; what blocks is -1e4 or less",
    "sines": "learned positions are added in the same way",
}
"""What buffers or constants of the exporter are taken for weights in, and why they cannot be told apart."""
LEFT = {"temperature": "one number that multiplies: as the numbers of formulas do"}
"""Parameters that are no weights, and why."""
WAYS = {
    "torchscript": {"dynamo": False},
    "torchscript, not folded": {"dynamo": False, "do_constant_folding": False},
    "dynamo": {"dynamo": True},
    "dynamo, not optimized": {"dynamo": True, "optimize": False},
}


# -- the comparison ------------------------------------------------------------------------------------


def made(name):
    """A module whose parameters and statistics are all different numbers, for inference."""
    torch.manual_seed(0)
    module, inputs = MODULES[name][0](), MODULES[name][1]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
        for buffer_name, buffer in module.named_buffers():
            if "running_" in buffer_name and buffer.is_floating_point():
                buffer.add_(torch.rand(buffer.shape))
    return module.eval(), inputs


def export(module, inputs, dynamo, **options):
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            pytest.importorskip("onnxscript")
            return torch.onnx.export(module, inputs, dynamo=True, verbose=False, **options).model_proto
        file = io.BytesIO()
        torch.onnx.export(module, inputs, file, dynamo=False, **options)
        return onnx.load_from_string(file.getvalue())


def same_numbers(a, b):
    """Whether two tensors hold the same numbers, in any order and form."""
    return a.size == b.size and np.allclose(np.sort(a, axis=None), np.sort(b, axis=None), rtol=0, atol=1e-6)


def within(a, b):
    """Which numbers of a tensor are in another."""
    found = np.sort(b, axis=None)
    near = np.clip(np.searchsorted(found, a.ravel()), 1, max(1, found.size - 1))
    best = np.minimum(
        abs(found[near - 1] - a.ravel()), abs(found[np.minimum(near, found.size - 1)] - a.ravel())
    )
    return best < 1e-6


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODULES)
def test_weights_are_the_parameters(name, way):
    module, inputs = made(name)
    found = weights(export(module, inputs, **WAYS[way]))
    parameters = {n: p.detach().numpy() for n, p in module.named_parameters()}
    missing = dict(parameters)
    for key, array in parameters.items():  # by name, else by value
        twin = key if key in found and same_numbers(found[key], array) else None
        twin = twin or next((n for n, a in found.items() if same_numbers(a, array)), None)
        if twin is not None:
            del found[twin], missing[key]
    if "not" in way:
        assert not set(missing) - set(LEFT), set(missing)
    # What the exporter computed: parameters side by side, their rows, convolutions with what follows them.
    computed = [p.detach().numpy() for p in getattr(module, "folded", list)()]
    made_of = list(missing)
    for key, array in list(found.items()):
        if any(same_numbers(array, c) for c in computed):
            del found[key]
            continue
        parts = {n for n, p in parameters.items() if within(p, array).any() and within(array, p).any()}
        if parts and within(array, np.concatenate([parameters[n].ravel() for n in parts])).all():
            del found[key]
            made_of = [n for n in made_of if n not in parts]
    if computed and missing:
        made_of = [n for n in made_of if n.split(".")[0] not in ("a", "b", "c", "norm_a", "norm_b", "norm_c")]
    assert not set(made_of) - set(LEFT), made_of
    buffers = [b.numpy() for _, b in module.named_buffers() if b.is_floating_point()]
    left = {n: a.ravel()[:4] for n, a in found.items()}
    assert not found or name in TAKEN, left
    for n, array in found.items():
        known = np.isin(array, (0, 1)).all() or any(same_numbers(array, b) for b in buffers)
        assert known, (n, left)
