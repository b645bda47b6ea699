"""Fixtures that several test modules share; the package's shape annotations are checked while tests run."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the import hook asks for it by name

install_import_hook("rlmech", "tests.typecheck.checked")

import torch  # noqa: E402

SEED_POLICY = Path(__file__).resolve().parents[2] / "shared" / "data" / "seed_policy"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Generator[None]:
    """Graphs that a test run keeps are its own, and those of no other version."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # all workers of a run keep one
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLMECH_CACHE", str(shared / "cache"))
        yield


@pytest.fixture(scope="session")
def seed_policy_dir() -> Path:
    """The published checkpoint with its true outputs; not part of the repository."""
    if not SEED_POLICY.exists():
        pytest.skip("the published checkpoint is not here")
    return SEED_POLICY
