"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "seed_policy"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def seed_policy_dir() -> Path:
    """The published checkpoint with its true outputs; not part of the repository."""
    if not SHARED.exists():
        pytest.skip("the published checkpoint is not here")
    return SHARED
