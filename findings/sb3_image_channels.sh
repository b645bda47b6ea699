#!/usr/bin/env bash
# Package: stable-baselines3 2.9.2 with minigrid 3.2.0 (torch 2.13.0).
#
# Expected: the picture of MiniGrid's OneHotPartialObsWrapper, 7 x 7 cells with 20 bits each, is an image with its
#   channels last, and is transposed for a convolutional policy as MiniGrid's plain picture of 7 x 7 x 3 is.
# Seen: Stable-Baselines3 takes the smallest axis for the channels. Of (7, 7, 20) that is the first, so the picture counts
#   as channels first and is not transposed: a convolution runs over rows and bits, with the columns of the view as its
#   channels. Nothing is said; training goes on and a policy of that kind is saved.
#
# Output:
#   Box(0, 255, (7, 7, 3), uint8): channels first False, the policy sees (3, 7, 7)
#   Box(0, 255, (7, 7, 20), uint8): channels first True, the policy sees (7, 7, 20)
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3.11 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
  stable-baselines3==2.9.2 minigrid==3.2.0 gymnasium==1.4.0 numpy==2.4.6

cd "$work"
"$work/venv/bin/python" -W error::UserWarning:stable_baselines3 - <<'PY'
import gymnasium as gym
import minigrid  # registers the environments
import torch
from minigrid.wrappers import ImgObsWrapper, OneHotPartialObsWrapper
from stable_baselines3 import PPO
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor


class Small(BaseFeaturesExtractor):
    """A convolution over whatever it is given."""

    def __init__(self, space):
        super().__init__(space, 16)
        self.conv = torch.nn.Conv2d(space.shape[0], 16, 3)

    def forward(self, x):
        return self.conv(x).amax((2, 3))


seen = {}
for wrapper in (lambda env: env, OneHotPartialObsWrapper):
    env = ImgObsWrapper(wrapper(gym.make("MiniGrid-Empty-5x5-v0")))
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, policy_kwargs={"features_extractor_class": Small})
    model.learn(8)
    first = is_image_space_channels_first(env.observation_space)
    seen[env.observation_space.shape] = (bool(first), model.observation_space.shape)
    print(f"{env.observation_space}: channels first {first}, the policy sees {model.observation_space.shape}")
if seen != {(7, 7, 3): (False, (3, 7, 7)), (7, 7, 20): (True, (7, 7, 20))}:
    raise SystemExit("the behaviour has changed")
PY
