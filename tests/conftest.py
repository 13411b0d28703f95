"""What the tests share: the project on the path, and a data set small enough for them."""

import os
import sys
from pathlib import Path

import pytest
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("", "results")]
torch.set_num_threads(1)  # more gain nothing on networks this small

import train_fa_vs_bp_linear_model as script


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def small():
    """300 + 100 random patterns: an epoch has ten mini-batches of 32, the last one of 12."""
    return script.random_patterns(train_size=300, test_size=100)


@pytest.fixture(scope="session")
def mnist():
    return script.load_data("mnist", os.environ.get("MNIST_DIR") or pytest.skip("no MNIST_DIR"))
