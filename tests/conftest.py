"""What the tests share: the project on the path, and a data set small enough for them."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import train_fa_vs_bp_linear_model as script

torch.set_num_threads(1)  # more gain nothing on networks this small


@pytest.fixture
def small(monkeypatch, tmp_path):
    """An empty folder to work in, and data sets of 300 + 100 images; returns the stand-in."""
    monkeypatch.setattr(script, "TRAIN_SIZE", 300)
    monkeypatch.setattr(script, "TEST_SIZE", 100)
    monkeypatch.chdir(tmp_path)
    return script.load_digits("synthetic", None, "cpu")


@pytest.fixture
def mnist_dir():
    """The folder of MNIST itself, for the tests that need it."""
    return os.environ.get("MNIST_DIR") or pytest.skip("MNIST_DIR does not name MNIST's folder")
