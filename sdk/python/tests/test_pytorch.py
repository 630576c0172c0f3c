"""PyTorch's modules, where it is installed. Its wheel holds 2.5 GB of GPU libraries, so that `setup.sh` leaves it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tessera
from served import answers

torch = pytest.importorskip("torch", reason="torch is not installed: its wheel is 2.5 GB with what it needs")


def test_a_network_answers_with_its_array(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.Softmax(1))
    rows = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)
    made = tessera.package(network, tmp_path / "package", input_example=rows[:10])
    assert made.flavour == "pytorch" and made.parity is not None and made.parity.rows == 1010
    expected = network(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(answers(made.path, rows), expected, atol=1e-5)


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    rows = np.zeros((2, 5, 4), dtype=np.float32)
    with pytest.raises(tessera.ConversionError, match="answers with tuple, and a package with one tensor"):
        tessera.package(torch.nn.LSTM(4, 3, batch_first=True), tmp_path / "package", input_example=rows)
