"""
Forward and backward by hand
============================

The gradient of an ONNX graph with respect to its weights trains it; with respect to its inputs it tells what
the model looks at. Here it tells which pixels speak for and against the digit that a classifier sees: more
ink makes it surer where the picture is blue, and less sure where it is red.
"""

import matplotlib.pyplot as plt
import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from onnxcustom import OrtGradientForwardBackward, gradient_graph, weights

X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
classifier = MLPClassifier(hidden_layer_sizes=(32,), random_state=0)
for _ in range(30):
    classifier.partial_fit(X, y, classes=np.unique(y))
model = to_onnx(classifier, X[:1], options={"zipmap": False})

# %%
# ``forward`` takes the model's inputs, then its weights, and keeps what ``backward`` needs. ``backward``
# takes one gradient per floating-point output, so none for the labels, and returns those of the inputs and
# the weights, in that order.

function = OrtGradientForwardBackward(model).new_instance()
images = X[:5]
_, probabilities = function.forward([images, *weights(model).values()], training=True)
seen = probabilities.numpy().argmax(axis=1)
seed = np.zeros((5, 10), dtype=np.float32)
seed[np.arange(5), seen] = 1
d_images, *d_weights = function.backward([seed])

fig, axes = plt.subplots(2, 5, figsize=(8, 3.4), layout="constrained")
for i in range(5):
    gradient = d_images.numpy()[i].reshape(8, 8)
    limit = np.abs(gradient).max()
    axes[0, i].imshow(images[i].reshape(8, 8), cmap="gray_r")
    axes[0, i].set_title(f"seen as {seen[i]}")
    axes[1, i].imshow(gradient, cmap="RdBu", vmin=-limit, vmax=limit)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()

# %%
# The same gradient is an ONNX model of its own, which any onnxruntime runs.

for value in gradient_graph(model, outputs=["probabilities"]).graph.output:
    print(value.name)
