"""Layers draw from a given generator, and torch's global stream is left alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

import dr2pipe
from dr2pipe.core.seeding import random_stream
from dr2pipe.training.recipe import unwrap


def drawn_in_stream(seed):
    generator = torch.Generator().manual_seed(seed)
    with random_stream(generator):
        layer = nn.Linear(3, 4)
        dropped = nn.functional.dropout(torch.ones(100))
    return layer.weight.detach(), dropped, torch.rand(5, generator=generator)


def test_layers_and_dropout_follow_from_the_generator():
    first = drawn_in_stream(1)
    torch.rand(7)
    again, other = drawn_in_stream(1), drawn_in_stream(2)
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_stream_continues_the_generator():
    in_block = torch.Generator().manual_seed(3)
    with random_stream(in_block):
        numbers = torch.cat([torch.rand(4), torch.randn(3)])
    rest = torch.rand(4, generator=in_block)
    plain = torch.Generator().manual_seed(3)
    expected = [torch.rand(4, generator=plain), torch.randn(3, generator=plain)]
    assert torch.equal(numbers, torch.cat(expected))
    assert torch.equal(rest, torch.rand(4, generator=plain))


def test_the_global_stream_is_as_before_even_after_an_error():
    before = torch.get_rng_state()
    drawn_in_stream(4)

    def fail_after_a_draw():
        with random_stream(torch.Generator()):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_a_draw()
    assert torch.equal(torch.get_rng_state(), before)


def test_unwrap_finds_the_bare_network():
    layer = nn.Linear(2, 2)
    assert unwrap(layer, nn.Linear) is layer
    assert unwrap(nn.DataParallel(layer), nn.Linear) is layer
    with pytest.raises(TypeError, match="Linear instead of Conv2d"):
        unwrap(layer, nn.Conv2d)


def test_no_code_of_the_package_seeds_the_global_streams():
    files = Path(dr2pipe.__file__).parent.rglob("*.py")
    seeding = [path.name for path in files if "torch.manual_seed(" in path.read_text()]
    assert seeding == []
