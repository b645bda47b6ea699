"""Sampling and Running: frozen values that refuse what no analysis can use."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rlmech.errors import ConfigError
from rlmech.options import Running, Sampling


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"n_resamples": 10}, {"confidence": 1.0}, {"confidence": 0.0}])
def test_sampling_refuses_what_gives_no_interval(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"fix: "):
        Sampling(**wrong)


def test_running_needs_one_process() -> None:
    with pytest.raises(ConfigError, match="workers=0"):
        Running(workers=0)


@pytest.mark.parametrize("value", [Sampling(), Running()])
def test_options_are_frozen_and_hashable(value: Any) -> None:
    assert hash(value) == hash(dataclasses.replace(value))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, 1)
