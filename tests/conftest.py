"""What the tests share: the project on the path, and a data set small enough for them."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "results")]

import train_fa_vs_bp_linear_model as script

torch.set_num_threads(1)  # more gain nothing on networks this small


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder, to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def small():
    """300 + 100 random patterns: an epoch has ten mini-batches of 32, the last one of 12."""
    return script.random_patterns(train_size=300, test_size=100)


@pytest.fixture(scope="session")
def mnist():
    """MNIST itself, for the tests that need it."""
    if "MNIST_DIR" not in os.environ:
        pytest.skip("MNIST_DIR does not name the folder that holds MNIST")
    return script.load_data("mnist", os.environ["MNIST_DIR"])
