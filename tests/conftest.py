"""Settings of all tests."""

import os
from pathlib import Path

import pytest
import torch

os.environ["GRADWATCH_ON_ERROR"] = "raise"  # an error inside gradwatch fails a test instead of being contained
torch.set_num_threads(1)  # on small tensors threads cost more than they save, and test runs may share a machine


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real data sets; tests that need it are skipped without it."""
    folder = os.environ.get("GRADWATCH_DATA_DIR")
    if not folder:
        pytest.skip("real data: set GRADWATCH_DATA_DIR to a folder that holds fashion-mnist/")
    return Path(folder)
