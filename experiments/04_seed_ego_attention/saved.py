"""The four activations of one decision, written to a file and read back, whatever stands at the path before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from subjects import RECORDED, States, names_of

import rlmech as rlm


def kept(states: States, path: Path) -> dict[str, Any]:
    """Cache the first decision's activations, save them over whatever file is there, load them, compare."""
    names = names_of(states.policy)
    wanted = [names[part] for part in RECORDED]
    with torch.no_grad():
        _, cache = states.policy.run_with_cache(states.obs[:1], wanted)
    path.parent.mkdir(parents=True, exist_ok=True)
    cache.save(path)
    cache.save(path)  # over the file of a moment ago
    again = rlm.ActivationCache.load(path)
    directory = path.with_name("a_directory_of_the_same_name")
    directory.mkdir(exist_ok=True)
    return {
        "shapes": {part: list(again[names[part]].shape) for part in RECORDED},
        "bytes": path.stat().st_size,
        "read back equal": all(torch.equal(again[name], cache[name]) for name in wanted),
        "the recording holds the same": all(
            torch.allclose(again[name][0], torch.as_tensor(states.recording.activation(name)[0]), atol=1e-5)
            for name in wanted
        ),
        "a directory in the way": _refusal(cache, directory),
    }


def _refusal(cache: rlm.ActivationCache, directory: Path) -> str:
    try:
        cache.save(directory)
    except rlm.RlmechError as error:
        left = directory.is_dir()
        directory.rmdir()
        return f"{type(error).__name__}, and the directory is {'left as it was' if left else 'gone'}"
    return "replaced"
