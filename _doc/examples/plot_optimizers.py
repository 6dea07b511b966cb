"""
Every optimizer on two problems
===============================

All update rules minimize Rosenbrock's function, a curved valley with steep sides, and train a small network
on scikit-learn's digits. The settings are in one table, the curves in two pictures. They show that each rule
works, and with what settings; they are no race, since nobody has looked for the best settings.
"""

import matplotlib.pyplot as plt
import numpy as np
import onnx.parser
from matplotlib.ticker import MaxNLocator
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from onnxcustom import OnnxClassifier, TrainingStep
from onnxcustom.optim import Cosine, Exp, create

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)

STEPS = 3000  # on Rosenbrock's function
EPOCHS, BATCH = 15, 64  # on the digits
UPDATES = EPOCHS * -(-len(X) // BATCH)
TEMPERATURE = 0.1


def cosine(rate, total):
    """Down to 0 along half a cosine, step by step."""
    return Cosine(rate, total=total, decay_on_iteration=True)


def decay(rate, total):
    """Down to a ten-thousandth, by the same factor at every step."""
    return Exp(rate, gamma=1e-4 ** (1 / total), decay_on_iteration=True)


# %%
# The settings: options for Rosenbrock's function, options for the digits. What is not mentioned has its
# default. Rules that step by a sign, and so by the same length however close the minimum is, need a rate
# that falls.

SETTINGS = {
    # gradient descent, with and without momentum
    "LearningRateSGD": ({"eta0": 0.002, "learning_rate": "constant"}, {"eta0": 1.5}),
    "LearningRateSGDNesterov": (
        {"eta0": 0.0005, "momentum": 0.97, "learning_rate": "constant"},
        {"eta0": 0.3},
    ),
    "SGD": ({"learning_rate": 0.001, "momentum": 0.9}, {"learning_rate": 0.15, "momentum": 0.9}),
    "NAG": ({"learning_rate": 0.001, "momentum": 0.9}, {"learning_rate": 0.15, "momentum": 0.9}),
    "DCASGD": ({"learning_rate": 0.0007, "momentum": 0.9}, {"learning_rate": 0.15, "momentum": 0.9}),
    "Test": ({"rescale_grad": -0.0015}, {"rescale_grad": -0.4}),  # it adds the gradient
    # Adam and its variants
    "Adam": ({"learning_rate": 0.05}, {"learning_rate": 0.02}),
    "AdamW": ({"learning_rate": 0.05, "wd": 1e-4}, {"learning_rate": 0.02}),
    "AMSGrad": ({"learning_rate": 0.1}, {"learning_rate": 0.03}),
    "Adamax": ({"learning_rate": 0.3}, {"learning_rate": 0.05}),
    "Nadam": ({"learning_rate": cosine(0.05, STEPS)}, {"learning_rate": 0.03}),
    "RAdam": (
        {"learning_rate": cosine(0.02, STEPS), "clip_global_norm": 1.0},
        {"learning_rate": 0.03, "epsilon": 1e-6},
    ),
    # divided by gradients of the past
    "AdaGrad": ({"learning_rate": 0.8}, {"learning_rate": 0.15}),
    "AdaDelta": ({"learning_rate": cosine(0.3, STEPS)}, {"epsilon": 3e-4}),
    "RMSProp": ({"learning_rate": cosine(0.003, STEPS), "centered": True}, {"learning_rate": 0.01}),
    "Ftrl": ({"learning_rate": 0.5, "lamda1": 0.0}, {"learning_rate": 1.2, "lamda1": 0.0}),
    "FTML": ({"learning_rate": cosine(0.05, STEPS)}, {"learning_rate": 0.04}),
    # signs
    "Signum": ({"learning_rate": decay(0.03, STEPS)}, {"learning_rate": cosine(0.02, UPDATES)}),
    "SignSGD": (
        {"learning_rate": decay(0.02, STEPS), "momentum": 0.9, "nesterov": True},
        {"learning_rate": cosine(0.02, UPDATES), "momentum": 0.9, "nesterov": True},
    ),
    "Lion": ({"learning_rate": decay(0.03, STEPS)}, {"learning_rate": cosine(0.015, UPDATES)}),
    # in proportion to the norm of the weight, or with a warm-up
    "LARS": (
        {"learning_rate": cosine(0.5, STEPS), "momentum": 0.9, "eta": 0.01},
        {"learning_rate": cosine(0.4, UPDATES), "momentum": 0.9, "eta": 0.01},
    ),
    "LAMB": ({"learning_rate": cosine(0.04, STEPS)}, {"learning_rate": cosine(0.01, UPDATES)}),
    "LBSGD": (
        {"learning_rate": 0.0002, "momentum": 0.9, "batch_scale": 5},
        {
            "learning_rate": 0.04,
            "momentum": 0.9,
            "batch_scale": 4,
            "updates_per_epoch": 29,
            "warmup_epochs": 3,
        },
    ),
    # sampling
    "SGLD": (
        {"learning_rate": 2e-4, "rescale_grad": 1 / TEMPERATURE},
        {"learning_rate": 3e-5, "rescale_grad": len(X) / TEMPERATURE},
    ),
}

# %%
# With them, every loss ends below these bounds. SGLD is the exception: it doesn't minimize a loss
# :math:`f`, it draws samples from the distribution whose density is in proportion to :math:`e^{-f/T}`. On
# Rosenbrock's function, a sum of two squares, the mean of :math:`f` is the temperature :math:`T` there, so
# that its curve must come down to about :math:`T` = 0.1 and stay. What is bounded for it is the mean over
# the second half of the steps, from both sides. On the digits it is still on its way down after these
# epochs, and has the bound of all.

ROSENBROCK_LOSS = 1e-2
DIGITS_LOSS = 0.15
SAMPLED_LOSS = (TEMPERATURE / 3, 3 * TEMPERATURE)

# %%
# Rosenbrock's function as an ONNX model: its weight is the point, its output the function. Since that is
# never negative, its absolute error is the function itself.

rosenbrock = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
rosenbrock (double[N] row) => (double[N] f)
    <double[2] point = {-1.2, 1.0}, double one = {1}, double hundred = {100}> {
    a, b = Split <num_outputs = 2> (point)
    off = Sub(one, a)
    off2 = Mul(off, off)
    a2 = Mul(a, a)
    side = Sub(b, a2)
    side2 = Mul(side, side)
    steep = Mul(hundred, side2)
    sum = Add(off2, steep)
    f = Mul(row, sum)
}""")


def minimize(name, options):
    """The function at every step."""
    step = TrainingStep(rosenbrock, "absolute_error", create(name, **options), threads=1)
    row, zero = np.ones(1), np.zeros(1)
    return np.array([step.run(row, zero) for _ in range(STEPS)])


valley = {name: minimize(name, options) for name, (options, _) in SETTINGS.items()}

# %%
# The digits: a network with 16 hidden units, as scikit-learn initializes it.

network = MLPClassifier((16,), learning_rate_init=1e-6, random_state=0)
network = to_onnx(network.partial_fit(X, y, classes=np.unique(y)), X[:1], options={"zipmap": False})


def train(name, options):
    """The mean loss of every epoch."""
    net = OnnxClassifier(
        network, optimizer=create(name, **options), batch_size=BATCH, max_iter=EPOCHS, random_state=0
    )
    return np.array(net.fit(X, y).history_["loss"])


digits = {name: train(name, options) for name, (_, options) in SETTINGS.items()}

# %%
# One panel for each family, the curves of all others in grey, the bound as a thin line. Some rules go back
# and forth across the valley: of Rosenbrock's function, each point is the median of 30 steps.

PANELS = {
    "Gradient descent": ["LearningRateSGD", "LearningRateSGDNesterov", "SGD", "NAG", "DCASGD", "Test"],
    "Adam and its variants": ["Adam", "AdamW", "AMSGrad", "Adamax", "Nadam", "RAdam"],
    "Divided by past gradients": ["AdaGrad", "AdaDelta", "RMSProp", "Ftrl", "FTML"],
    "Signs": ["Signum", "SignSGD", "Lion"],
    "Norms and warm-up": ["LARS", "LAMB", "LBSGD"],
    "Sampling": ["SGLD"],
}


def spread(places, gap):
    """Heights of labels, in order, moved apart until there is a gap between any two."""
    places = sorted(places)
    for _ in range(200):
        for k in range(len(places) - 1):
            missing = max(0, gap - (places[k + 1] - places[k]))
            places[k], places[k + 1] = places[k] - missing / 2, places[k + 1] + missing / 2
    return places


def draw(x, curves, bound, xlabel, title):
    """Small multiples on a logarithmic scale, each curve with its name at its end."""
    fig, axes = plt.subplots(3, 2, figsize=(9, 9), sharex=True, sharey=True, layout="constrained")
    for ax, (family, names) in zip(axes.flat, PANELS.items(), strict=True):
        for values in curves.values():
            ax.semilogy(x, values, color="0.86", lw=0.7, zorder=1)
        ax.axhline(bound, color="black", lw=0.6)
        for k, name in enumerate(names):
            ax.semilogy(x, curves[name], color=f"C{k}", lw=1.5)
        ax.set_title(family, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(0, x[-1])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    low, high = np.log10(axes[0, 0].get_ylim())
    for ax, names in zip(axes.flat, PANELS.values(), strict=True):
        ordered = sorted(names, key=lambda name: curves[name][-1])
        ends = [(np.log10(curves[name][-1]) - low) / (high - low) for name in ordered]
        for name, place in zip(ordered, spread(ends, 0.075), strict=True):
            color = f"C{names.index(name)}"
            ax.text(1.02, place, name, color=color, transform=ax.transAxes, fontsize=8, va="center")
    fig.supxlabel(xlabel, fontsize=10)
    fig.suptitle(title, fontsize=11)
    return axes


medians = {name: np.median(values.reshape(-1, 30), axis=1) for name, values in valley.items()}
shown = {name: np.maximum(values, 1e-12) for name, values in medians.items()}
x = np.arange(15, STEPS, 30)
axes = draw(x, shown, ROSENBROCK_LOSS, "step", "Rosenbrock's function, 1e-12 and below as 1e-12")
axes[2, 1].axhline(TEMPERATURE, color="C0", lw=0.8, ls=":")
axes[2, 1].text(60, TEMPERATURE * 0.8, "temperature", color="C0", fontsize=8, va="top")
plt.show()

# %%

draw(np.arange(1, EPOCHS + 1), digits, DIGITS_LOSS, "epoch", "Cross-entropy on the digits")
plt.show()
