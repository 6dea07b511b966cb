"""Gradients of what ``torch.onnx.export`` makes of PyTorch modules equal ``torch.autograd``'s.

Both exporters, with respect to every parameter and every floating-point input, run with another batch size
than the one exported with.
"""

from __future__ import annotations

import io
import logging
import warnings

import numpy as np
import pytest

from onnxcustom.gradient import gradient_graph
from onnxcustom.graph import load
from onnxcustom.runtime import create_session

torch = pytest.importorskip("torch")
F = torch.nn.functional
nn = torch.nn


# -- modules -------------------------------------------------------------------------------------------


def layer(function, *parameters):
    """A module that computes a function of its input and of parameters of these shapes."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            for i, shape in enumerate(parameters):
                self.register_parameter(f"w{i}", nn.Parameter(torch.randn(shape)))

        def forward(self, x):
            return function(x, *(getattr(self, f"w{i}") for i in range(len(parameters))))

    return Layer()


def batch_norm(channels):
    """Not as it starts: the TorchScript exporter makes one tensor of a weight and a variance of ones."""
    norm = nn.BatchNorm2d(channels)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    return norm


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.linear = nn.Linear(4, 3)

    def forward(self, words):
        return self.linear(self.embedding(words).mean(dim=1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.end = nn.Conv2d(9, 2, 1)

    def forward(self, x):
        a = torch.relu(self.down(x))
        b = self.up(torch.tanh(self.middle(a)))
        c = F.interpolate(a, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.end(torch.cat([x, b, c], dim=1))


class MobileBlock(nn.Module):
    """Inverted residual with squeeze and excitation, as in MobileNetV3."""

    def __init__(self):
        super().__init__()
        self.widen, self.norm = nn.Conv2d(4, 8, 1, bias=False), batch_norm(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.narrow = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        h = F.hardswish(self.depthwise(F.hardswish(self.norm(self.widen(x)))))
        s = self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(h, 1))))
        return x + self.narrow(h * F.hardsigmoid(s))


def cnn():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        batch_norm(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 2),
    )


def gather(x, w):
    index = torch.tensor([2, 0, 2])
    return x[:, index] * w.gather(1, torch.tensor([[0, 1, 1]])) + x[:, -1:, None, 0]


def select(x, w):
    return torch.where(x > 0.1, x * w, w.clamp(-0.4, 0.4)) + x.clamp(min=-0.2) + x.masked_fill(x < 0, 0.5)


def top(x, w):
    values, index = torch.topk(x * w, 3, dim=-1)
    return values * torch.gather(x, -1, index)


def grid(x, w):
    points = torch.tanh(w).expand(x.shape[0], -1, -1, -1)
    return F.grid_sample(x, points, align_corners=False)


def moments(x, w):
    y = x * w
    return torch.cat(
        [y.var(-1, keepdim=True), y.std(-1, keepdim=True), y.norm(dim=-1, keepdim=True), y.abs()], -1
    )


def activations(x, w):
    y = x * w
    parts = (F.gelu(y), F.gelu(y, approximate="tanh"), F.silu(y), F.elu(y), F.softplus(y), F.mish(y))
    return torch.stack([*parts, F.leaky_relu(y, 0.1), F.selu(y), F.logsigmoid(y)], dim=1)


def indexed_update(x, w):
    y = torch.zeros_like(x).index_add(1, torch.tensor([0, 2, 0]), x[:, :3] * w)
    return y.scatter_add(1, torch.tensor([[1, 1]]).expand(x.shape[0], -1), x[:, 2:4])


def shapes(x, w):
    a, b = (x * w).chunk(2, dim=1)
    y = torch.cat([a.flip(1), b.roll(1, 2), a.repeat(1, 2, 1)], dim=1)
    return y.unfold(2, 2, 1).permute(0, 3, 1, 2).flatten(2).tril()


def image_norms(x, w):
    y = F.group_norm(x * w, 2)
    return F.instance_norm(y * y + x) + F.local_response_norm(x, 3) + F.normalize(x, dim=1)


def images(*shape):
    return lambda batch: torch.randn(batch, *shape)


MODULES = {
    "cnn": (cnn, images(2, 6, 6)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(2, 4), nn.SiLU()), images(2, 3, 3)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU()), images(5, 3)),
    "image norms": (lambda: layer(image_norms, (4, 1, 1)), images(4, 3, 3)),
    "attention": (Attention, images(3, 8)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
        images(3, 8),
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), images(5, 3)),
    "gru": (lambda: Recurrent(nn.GRU), images(5, 3)),
    "embedding": (Words, lambda batch: torch.randint(0, 11, (batch, 6))),
    "unet": (UNet, images(2, 8, 8)),
    "mobile block": (MobileBlock, images(4, 5, 5)),
    "einsum": (lambda: layer(lambda x, w: torch.einsum("bij,kjl->bkil", x, w), (2, 4, 3)), images(3, 4)),
    "gather": (lambda: layer(gather, (1, 3)), images(3, 3)),
    "select": (lambda: layer(select, (4,)), images(4)),
    "topk": (lambda: layer(top, (5,)), images(5)),
    "softmax": (
        lambda: layer(lambda x, w: (x @ w).softmax(-1) * torch.logsumexp(x, 1, True), (3, 4)),
        images(3),
    ),
    "cumsum": (lambda: layer(lambda x, w: (x * w).cumsum(1) * x.log_softmax(1), (4,)), images(4)),
    "pad": (
        lambda: layer(
            lambda x, w: F.pad(F.pad(x * w, (1, 2, 2, 1), "reflect"), (1, 1, 1, 1), "replicate"), (4, 4)
        ),
        images(1, 4, 4),
    ),
    "pixel shuffle": (lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2)), images(2, 3, 3)),
    "grid sample": (lambda: layer(grid, (1, 3, 3, 2)), images(2, 4, 5)),
    "moments": (lambda: layer(moments, (6,)), images(6)),
    "activations": (lambda: layer(activations, (6,)), images(6)),
    "indexed update": (lambda: layer(indexed_update, (3,)), images(4)),
    "shapes": (lambda: layer(shapes, (4, 1)), images(4, 5)),
}
NOT_EXPORTED = {("torchscript", "transformer"), ("torchscript", "indexed update")}
"""What the exporter itself fails on, or exports as another function (index_add with repeated indices)."""


# -- the comparison ------------------------------------------------------------------------------------


def export(module, x, dynamo):
    """A module as ONNX with a dynamic first dimension, its parameters still initializers of their names."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            pytest.importorskip("onnxscript")
            batch = torch.export.Dim("batch", min=2)
            program = torch.onnx.export(
                module, (x,), dynamo=True, dynamic_shapes=({0: batch},), optimize=False, verbose=False
            )
            return program.model_proto
        file = io.BytesIO()
        torch.onnx.export(
            module,
            (x,),
            file,
            dynamo=False,
            input_names=["x"],
            dynamic_axes={"x": {0: "batch"}},
            do_constant_folding=False,
            opset_version=17,
        )
        return load(file.getvalue())


CASES = [(e, n) for e in ("torchscript", "dynamo") for n in MODULES if (e, n) not in NOT_EXPORTED]


@pytest.mark.parametrize(("exporter", "name"), CASES)
def test_module(exporter, name):
    make, draw = MODULES[name]
    torch.manual_seed(sum(map(ord, name)))
    module = make().eval()
    model = export(module, draw(3), exporter == "dynamo")
    x = draw(5)
    if x.is_floating_point():
        x.requires_grad_()
    y = module(x)
    seed = torch.randn(y.shape)
    parameters = dict(module.named_parameters())
    wrt = {**({"x": x} if x.requires_grad else {}), **parameters}
    expected = torch.autograd.grad(y, list(wrt.values()), seed)

    made = gradient_graph(model, wrt=list(parameters), engine="onnx")
    names = [v.name for v in made.graph.input]
    feeds = {n: parameters[n].detach().numpy() for n in names if n in parameters}
    feeds[names[0]], feeds[names[-1]] = x.detach().numpy(), seed.numpy()
    session = create_session(made)
    got = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=False))
    own = model.graph.output[0].name
    np.testing.assert_allclose(got[own], y.detach().numpy(), rtol=1e-4, atol=1e-5)
    for (n, _), dv in zip(wrt.items(), expected, strict=False):
        found = got[f"{names[0] if n == 'x' else n}_grad"]
        scale = max(1.0, float(dv.abs().max()))
        np.testing.assert_allclose(found, dv.numpy(), rtol=2e-4, atol=2e-5 * scale, err_msg=n)
