"""A recording's manifest: how its episodes were made, in a file that is whole or not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from rlmech.episodes.shards import SHARDS, damaged, unwritable
from rlmech.errors import RecordingError
from rlmech.files import SEAL, DamagedError, read_sealed_json, write_sealed_json
from rlmech.untyped import JsonObject

FORMAT = "rlmech.recording/4"
MANIFEST = "manifest.json"


def create(path: Path, manifest: Mapping[str, object]) -> None:
    """Make a recording's directory, with its manifest and no episode.

    Raises:
        RecordingError: The path is taken, or cannot be written to.
    """
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise RecordingError(
            "There is something at the recording's path already.",
            given=path,
            expected="a path that does not exist, or a recording to go on with",
            fix="choose another path",
        ) from None
    except OSError as error:
        raise unwritable("The recording", path, error) from error
    try:
        (path / SHARDS).mkdir()
        write_manifest(path, manifest)
    except OSError as error:
        shutil.rmtree(path, ignore_errors=True)
        raise unwritable("The recording", path, error) from error


def write_manifest(path: Path, manifest: Mapping[str, object]) -> None:
    """Set a recording's manifest: wholly, or not at all."""
    write_sealed_json(path / MANIFEST, manifest)


def read_manifest(path: Path) -> JsonObject:
    """A recording's manifest.

    Raises:
        RecordingError: The manifest is missing, or it is damaged or of another format.
    """
    try:
        manifest = read_sealed_json(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        raise RecordingError(
            "There is no recording at this path.",
            given=path,
            expected=f"a directory with a {MANIFEST}",
            fix="check the path; rlm.record(..., path=...) makes one",
        ) from None
    except (DamagedError, OSError) as error:
        _check_format(_unsealed(path / MANIFEST))
        raise damaged(path, error) from error
    _check_format(manifest)
    return manifest


def _check_format(manifest: Mapping[str, object]) -> None:
    if manifest.get("format", FORMAT) != FORMAT:
        raise RecordingError(
            "This version of rlmech does not read that recording.",
            given=f"format {manifest['format']!r}",
            expected=f"format {FORMAT!r}",
            fix="record again, or open it with the version that made it",
        )


def _unsealed(path: Path) -> dict[str, object]:
    """What a manifest of an earlier format, before there were seals, says; nothing where it is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and SEAL not in content else {}
