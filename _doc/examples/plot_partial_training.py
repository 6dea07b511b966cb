"""
Train a part of a model
=======================

A classifier of handwritten digits meets other paper: grey, and the ink is pale. It is right on less than
half of them. A few of the new digits are labelled, and the model is trained further on these: all of it, its
last layer, its biases, or all of it again from random weights. How many labelled digits does each want?
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import PercentFormatter
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from onnxcustom.graph import initialize_weights, layers, select_weights
from onnxcustom.training.from_sklearn import describe_conversion, from_sklearn

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=600, random_state=0, stratify=y)
network = MLPClassifier((64, 32), tol=0.03, random_state=0).fit(X_train, y_train)


def on_grey_paper(X):
    return (0.5 + 0.4 * X).astype(np.float32)


before = network.score(on_grey_paper(X_test), y_test)
print(f"accuracy: {network.score(X_test, y_test):.0%} on white paper, {before:.0%} on grey paper")

# %%
# As an ONNX model it has three layers. A choice of weights is a name, a pattern of names, or a word such as
# ``'biases'`` and ``'last:1'``.

start = from_sklearn(network, X, optimizer="adam", learning_rate=0.002, batch_size=10, random_state=0)
print(describe_conversion(start))
for layer in layers(start.model):
    print(layer.level, layer.operator, layer.weights)
for choice in ("biases", "last:1", ["last:2", "intercepts.0"]):
    print(f"{choice!r}: {select_weights(start.model, choice)}")

# %%
# Each choice is trained for as many steps on so many labelled digits, with three draws of them.

CHOICES = {
    "biases": {"weights_to_train": "biases"},
    "last layer": {"weights_to_train": "last:1"},
    "all": {},
    "all, from random weights": {"model": initialize_weights(start.model, method="he", seed=0)},
}
ROWS = [10, 20, 40, 80, 160]
STEPS = 320


def train(parameters, rows, seed):
    chosen = np.random.default_rng(seed).permutation(len(X_train))[:rows]
    network = clone(start).set_params(**parameters, max_iter=STEPS * start.batch_size // rows)
    return network.fit(on_grey_paper(X_train[chosen]), y_train[chosen])


X_new = on_grey_paper(X_test)
curves, sizes = {}, {}
for name, parameters in CHOICES.items():
    networks = [[train(parameters, rows, seed) for seed in range(3)] for rows in ROWS]
    curves[name] = [np.mean([network.score(X_new, y_test) for network in found]) for found in networks]
    sizes[name] = sum(weight.size for weight in networks[0][0].weights_.values())
    print(f"{name:26}", " ".join(f"{score:4.0%}" for score in curves[name]))

# %%
# With few examples, the 106 biases learn the new paper best: what the weights know of shapes is kept.

COLORS = ["tab:blue", "tab:green", "tab:orange", "tab:gray"]
fig, ax = plt.subplots(figsize=(8.5, 4), layout="constrained")
for i, (name, color) in enumerate(zip(CHOICES, COLORS, strict=True)):
    style = {"color": color, "markersize": 5 + i, "linewidth": 1.5 + 0.7 * i, "zorder": 9 - i}
    ax.plot(ROWS, curves[name], "o-", label=f"{name}: {sizes[name]:,} numbers", **style)
ax.axhline(before, color="black", linewidth=1, linestyle=":", label="not trained")
ax.set_xscale("log")
ax.set_xticks(ROWS, [str(rows) for rows in ROWS])
ax.minorticks_off()
ax.set_ylim(0.3, 1)
ax.yaxis.set_major_formatter(PercentFormatter(1))
ax.set_xlabel("labelled digits on grey paper")
ax.set_title("Accuracy on grey paper, by what is trained", loc="left")
ax.spines[["top", "right"]].set_visible(False)
ax.grid(alpha=0.3)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
assert curves["biases"][1] > curves["all"][1] > curves["all, from random weights"][1]
