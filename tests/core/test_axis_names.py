"""Axes are named by what reads them, and only numbered where nothing says what they are."""

import pytest
import torch
from torch import nn

import rlmech as rlm


class Net(nn.Module):
    """A network whose forward pass is a function of itself and the observation."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def axes(net, obs):
    return {name: point.axes for name, point in rlm.HookedPolicy(net.eval(), obs).hook_dict.items()}


def test_the_channel_is_the_axis_that_the_convolution_convolves():
    layers = {"c": nn.Conv2d(3, 4, 3), "l": nn.Linear(4 * 6 * 10, 5)}
    net = Net(lambda s, x: s.l(torch.relu(s.c(x.permute(0, 3, 1, 2) / 255.0)).flatten(1)), **layers)
    found = axes(net, torch.randint(0, 256, (2, 8, 12, 3), dtype=torch.uint8))
    assert found["hook_obs"] == ("batch", "height", "width", "channel")
    assert found["c.hook_out"] == found["relu_0.hook_out"] == ("batch", "channel", "height", "width")
    net = Net(lambda s, x: s.l(torch.relu(s.c(x)).flatten(1)), **layers)
    assert axes(net, torch.rand(2, 3, 8, 12))["hook_obs"] == ("batch", "channel", "height", "width")
    net = Net(lambda s, x: s.l(s.c(x).relu().flatten(1)), c=nn.Conv1d(3, 4, 3), l=nn.Linear(4 * 6, 5))
    found = axes(net, torch.rand(2, 3, 8))
    assert found["hook_obs"] == found["c.hook_out"] == ("batch", "channel", "width")


def test_an_image_that_no_convolution_reads_is_none():
    net = Net(lambda s, x: s.l(x.flatten(1)), l=nn.Linear(24, 3))
    assert axes(net, torch.rand(2, 2, 3, 4))["hook_obs"] == ("batch", "axis_1", "axis_2", "axis_3")


def test_messages_between_pairs_are_no_image():
    def run(s, x):
        y = s.a(x)
        return s.l(s.m(y[:, :, None] + y[:, None]).relu().sum((1, 2)))

    found = axes(Net(run, a=nn.Linear(7, 8), m=nn.Linear(8, 6), l=nn.Linear(6, 3)), torch.rand(3, 5, 7))
    assert found["hook_obs"] == ("batch", "entity", "feature")
    assert found["a.hook_out"] == ("batch", "entity", "neuron")
    assert found["m.hook_out"] == found["relu_0.hook_out"] == ("batch", "axis_1", "axis_2", "neuron")


def test_token_numbers_are_no_features():
    net = Net(lambda s, x: s.l(s.e(x).mean(1)), e=nn.Embedding(10, 8), l=nn.Linear(8, 3))
    found = axes(net, torch.randint(0, 10, (3, 6)))
    assert found["hook_obs"] == ("batch", "axis_1")
    assert found["e.hook_out"] == ("batch", "axis_1", "neuron")


@pytest.mark.parametrize("dim", [1, 2])
def test_a_softmax_of_ones_own_has_no_entities_where_heads_stand(dim):
    def run(s, x):
        w = s.w(x.relu()).transpose(1, 3 - dim).softmax(dim)
        return s.l((w.transpose(1, 3 - dim)[..., None] * s.v(x)[:, :, None]).sum(1).flatten(1))

    found = axes(Net(run, w=nn.Linear(7, 2), v=nn.Linear(7, 4), l=nn.Linear(8, 3)), torch.rand(3, 5, 7))
    softmax = next(name for name in found if "softmax" in name)
    assert found[softmax] == ("batch", "axis_1", "axis_2")


def test_rows_are_entities_where_attention_reads_them():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.mid = nn.Linear(7, 8), nn.Linear(8, 8)
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x):
            y = self.mid(self.embed(x.view(-1, 5, 7)).relu())
            return self.head(self.attention(y, y, y)[0].relu().mean(1))

    found = axes(Flat(), torch.rand(3, 35))
    assert found["hook_obs"] == ("batch", "feature")
    assert found["embed.hook_out"] == found["mid.hook_out"] == ("batch", "entity", "neuron")
