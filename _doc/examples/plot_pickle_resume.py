"""
Stop, pickle, go on
===================

An estimator pickles with its weights, the optimizer's state and its clock. Training that was interrupted ends
at the same weights, bit for bit, as training that was not.
"""

import pickle

import matplotlib.pyplot as plt
import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_diabetes
from sklearn.neural_network import MLPRegressor
from sklearn.preprocessing import scale

from onnxcustom import OnnxRegressor
from onnxcustom.optim import NAG

X, y = load_diabetes(return_X_y=True)
X, y = scale(X).astype(np.float32), scale(y).astype(np.float32)
start = MLPRegressor(hidden_layer_sizes=(16,), random_state=0).partial_fit(X, y)
model = to_onnx(start, X[:1])


def regressor(max_iter):
    optimizer = NAG(1e-3, momentum=0.9)
    return OnnxRegressor(
        model, optimizer=optimizer, batch_size=32, max_iter=max_iter, random_state=0, warm_start=True
    )


# %%
# Ten epochs, a pickle, ten more; beside it twenty epochs at once.

first = regressor(10).fit(X, y)
resumed = pickle.loads(pickle.dumps(first)).fit(X, y)
straight = regressor(20).fit(X, y)
for name, value in straight.weights_.items():
    print(name, np.array_equal(value, resumed.weights_[name]))
    assert np.array_equal(value, resumed.weights_[name])

# %%

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.plot(range(1, 21), straight.history_["loss"], color="0.8", linewidth=6, label="20 epochs")
ax.plot(range(1, 11), first.history_["loss"], label="10 epochs")
ax.plot(range(11, 21), resumed.history_["loss"][-10:], label="10 more, from a pickle")
ax.set(xlabel="epoch", ylabel="½ squared error")
ax.legend(frameon=False)
plt.show()
