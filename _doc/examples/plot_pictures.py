"""
Pictures of trainings and graphs
================================

``onnxcustom.plotting`` draws the history of a training, what it changed in each weight, and graphs:
``pip install "onnxcustom[plot]" graphviz-pure``.
"""

import matplotlib.pyplot as plt
import numpy as np
import onnx.parser
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

from onnxcustom import OnnxClassifier, TrainingStep, gradient_graph
from onnxcustom.plotting import plot_graph, plot_history, plot_weight_changes
from onnxcustom.training.callbacks import Score

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
X_train, X_val, y_train, y_val = train_test_split(X, y, stratify=y, random_state=0)
start = MLPClassifier((64, 32), random_state=0).partial_fit(X_train, y_train, classes=np.unique(y))
model = to_onnx(start, X[:1], options={"zipmap": False})


def train(optimizer, learning_rate):
    net = OnnxClassifier(
        model,
        optimizer=optimizer,
        learning_rate=learning_rate,
        max_iter=40,
        random_state=0,
        callbacks=[Score("accuracy", on="both")],
    )
    return net.fit(X_train, y_train, X_val=X_val, y_val=y_val)


# %%
# The losses of a training, and the scores that were measured. The ring is the best epoch, that of the lowest
# validation loss. ``plot_history`` makes a figure of its own; here it is given axes.

adam = train("adam", 0.002)

fig = plt.figure(figsize=(9.5, 3.8), layout="constrained")
plot_history(adam, fig.subplots(1, 2))
plt.show()

# %%
# Several trainings in one picture; they may be estimators, their ``history_``, or files that ``HistoryFile``
# wrote.

runs = {"adam": adam, "rmsprop": train("rmsprop", 0.001), "sgd": train("sgd", 0.05).history_}

fig = plt.figure(figsize=(9.5, 4.2), layout="constrained")
plot_history(runs, fig.subplots(1, 2), log=True)
plt.show()

# %%
# By how much each weight has changed since before the training.

fig = plt.figure(figsize=(9.5, 3.2), layout="constrained")
plot_weight_changes(adam, ax=fig.subplots(1, 2, sharey=True))
plt.show()

# %%
# A graph. Weights are named in the boxes that read them; what else is known of a node shows when the mouse is
# on it.

small = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
net (float[N, 4] x, bool deep) => (float[N, 2] y)
<float[4, 3] w = {1,0,0, 0,1,0, 0,0,1, 1,1,1}, float[3, 3] v = {1,0,0, 0,1,0, 0,0,1},
 float[3, 2] u = {1,0, 0,1, 1,1}> {
    a = MatMul(x, w)
    h = Relu(a)
    k = If (deep) <
        then_branch = more () => (float[N, 3] t) { m = MatMul(h, v)  t = Tanh(m) },
        else_branch = same () => (float[N, 3] e) { e = Identity(h) }
    >
    y = MatMul(k, u)
}""")
picture = plot_graph(small)

# %%
# The gradient of a network with two layers. The forward pass goes down, gradients come back up beside it, so
# that a layer and its gradient are neighbours.

line = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 18]>
net (float[N, 4] x) => (float[N, 2] y)
<float[4, 3] w0 = {1,0,0, 0,1,0, 0,0,1, 1,1,1}, float[3] b0 = {0,0,0}, float[3, 2] w1 = {1,0, 0,1, 1,1},
 float[2] b1 = {0,0}> {
    m0 = MatMul(x, w0)
    z0 = Add(m0, b0)
    h0 = Tanh(z0)
    m1 = MatMul(h0, w1)
    y = Add(m1, b1)
}""")
picture = plot_graph(gradient_graph(line))

# %%
# A training step is one graph: forward, loss, backward and update. Plain descent is folded into the products
# that compute the gradients of matrices.

picture = plot_graph(TrainingStep(line, optimizer="sgd"))

# %%
# Adam computes more for each weight. ``detail="outline"`` draws the update of a weight as one box; above
# ``max_nodes`` boxes it is chosen by itself.

picture = plot_graph(adam, detail="outline")

# %%
# Of large graphs, only the parts are drawn.

picture = plot_graph(adam, max_nodes=10)
