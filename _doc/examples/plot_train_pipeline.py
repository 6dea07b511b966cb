"""
Train a scikit-learn pipeline further
=====================================

A pipeline is fitted on the first rows that were there, converted with skl2onnx and deployed. When more rows
come in, the ONNX model itself goes on training: no need for the pipeline, nor for scikit-learn.
"""

import matplotlib.pyplot as plt
import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from onnxcustom import OnnxClassifier, weights

# %%
# The model as it was deployed, fitted on 30 rows.

X, y = load_breast_cancer(return_X_y=True)
X = X.astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.3, stratify=y, random_state=0)
pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X_train[:30], y_train[:30])
model = to_onnx(pipeline, X[:1])

# %%
# What can be trained: the coefficients. The scaler's offset and scale are preprocessing and stay.

for name, value in weights(model).items():
    print(f"{name}: {value.dtype}{list(value.shape)}")

# %%
# Training. The classifier recognises the model's final sigmoid and takes the cross-entropy on what it reads.

net = OnnxClassifier(model, learning_rate=0.05, batch_size=32, max_iter=60, random_state=0)
net.fit(X_train, y_train, X_val=X_test, y_val=y_test)
print(f"accuracy before {pipeline.score(X_test, y_test):.3f}, after {net.score(X_test, y_test):.3f}")

# %%
# The losses of each epoch are in ``history_``.

fig, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
epochs = range(1, net.n_iter_ + 1)
ax.plot(epochs, net.history_["loss"], label="training")
ax.plot(epochs, net.history_["val_loss"], label="held out")
ax.set(xlabel="epoch", ylabel="log-loss")
ax.legend(frameon=False)
plt.show()
