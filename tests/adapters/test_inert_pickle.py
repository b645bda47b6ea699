"""Pickles are read as data: arrays and containers come out, and nothing that a file names is called."""

from __future__ import annotations

import collections
import contextlib
import fractions
import pickle

import numpy as np
import pytest

from rlmech.adapters.inert_pickle import Stub, read_inert
from rlmech.errors import CheckpointError


class Statistics:
    def __init__(self):
        self.mean, self.count = np.arange(3.0), np.float64(2.5)


class Crater:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.array([1, -2], dtype=">i8"),
        np.array(3.5),
        np.zeros((0, 4), np.uint8),
        np.array([True, False]),
    ],
    ids=["matrix", "fortran", "big endian", "scalar", "empty", "booleans"],
)
def test_arrays_come_back_equal(array, protocol):
    back = read_inert(pickle.dumps({"a": array}, protocol=protocol), name="a pickle")["a"]

    np.testing.assert_array_equal(back, array)
    assert (back.shape, back.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize("protocol", range(6))
def test_an_unknown_object_is_a_stub_with_its_state(protocol):
    stub = read_inert(pickle.dumps(Statistics(), protocol=protocol), name="a pickle")

    assert isinstance(stub, Stub)
    assert stub.name.endswith("Statistics")
    np.testing.assert_array_equal(stub.state["mean"], [0, 1, 2])
    assert stub.state["count"] == 2.5


def test_containers_keep_their_order_and_contents():
    value = collections.OrderedDict(b=[1, (2, 3.5, None)], a={"x": {1, 2}})

    assert list(read_inert(pickle.dumps(value), name="a pickle").items()) == list(value.items())


def test_an_object_that_holds_itself_is_read():
    loop = Statistics()
    loop.itself = loop

    stub = read_inert(pickle.dumps(loop), name="a pickle")

    assert stub.state["itself"] is stub


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_that_a_file_names_is_called(tmp_path, protocol):
    content = pickle.dumps({"data": 1, "bomb": Crater(tmp_path / "crater")}, protocol=protocol)

    read = read_inert(content, name="a pickle")

    assert read["data"] == 1
    assert read["bomb"].args == (str(tmp_path / "crater"), "w")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["V8", "datetime64[s]"])
def test_arrays_of_other_than_numbers_are_refused(dtype):
    with pytest.raises(CheckpointError, match="cannot be read as data"):
        read_inert(pickle.dumps(np.zeros(2, dtype=dtype)), name="a pickle")


def test_a_size_in_a_file_takes_no_memory():
    class Huge:
        def __reduce__(self):
            return bytearray, (10**15,)

    assert isinstance(read_inert(pickle.dumps(Huge()), name="a pickle"), Stub)


def test_a_cut_or_changed_file_is_an_error_of_this_package_or_data():
    content = pickle.dumps({"a": np.arange(50.0), "b": Statistics(), "c": fractions.Fraction(1, 3)})
    rng = np.random.default_rng(0)

    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        with contextlib.suppress(CheckpointError):
            read_inert(bytes(damaged[: rng.integers(1, len(content) + 1)]), name="a pickle")
