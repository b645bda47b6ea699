"""Records on demand with the rlmech on the path, and says what that cost; `benchmarks.accelerated` runs two of them."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import torch

warnings.filterwarnings("ignore")

import rlmech as rlm  # noqa: E402


def main() -> None:
    folder, env_id, config, name = json.loads(sys.argv[1])
    if not Path(rlm.__file__).is_relative_to(folder):
        raise SystemExit(f"{rlm.__file__} is not of {folder}")
    torch.set_num_threads(1)
    policy, env = rlm.load(name), rlm.make_env(env_id, config=config)
    for line in sys.stdin:
        start = time.process_time()
        recording = rlm.record(policy, env, seeds=range(*json.loads(line)), progress=False)
        seconds = time.process_time() - start
        returns = recording.steps.groupby("episode")["reward"].sum().tolist()
        print(json.dumps({"seconds": seconds, "steps": len(recording.steps), "returns": returns}), flush=True)


if __name__ == "__main__":
    main()
