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
def folder(monkeypatch, tmp_path):
    """An empty folder, to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def small():
    """300 + 100 random patterns, so that an epoch has ten mini-batches of 32."""
    return script.random_patterns(300, 100)


@pytest.fixture(scope="session")
def mnist():
    """MNIST itself, for the tests that need it."""
    folder = os.environ.get("MNIST_DIR")
    if not folder:
        pytest.skip("MNIST_DIR does not name MNIST's folder")
    return script.read_data(Path(folder))
