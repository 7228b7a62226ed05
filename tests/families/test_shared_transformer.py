"""Attention of narrow heads is computed in another way than that of wide ones, and is the same."""

import pytest
import torch
import torch.nn.functional as F

from kinfolk_families._shared.transformer import NARROW, attend


def qkv(width, tokens=9):
    x = torch.randn(3, 2, 4, tokens, width, generator=torch.Generator().manual_seed(0)).double()
    return [part.requires_grad_() for part in x.unbind(0)]


@pytest.mark.parametrize("width", [1, NARROW, NARROW + 1, 3 * NARROW])
def test_heads_of_any_width_attend_as_torch_has_it(width):
    ours, theirs = qkv(width), qkv(width)
    value, wanted = attend(*ours), F.scaled_dot_product_attention(*theirs)
    torch.testing.assert_close(value, wanted)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).double()
    for each in (value, wanted):
        (each * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize(("width", "torchs"), [(NARROW, False), (NARROW + 1, True)])
def test_only_wide_heads_use_the_kernel_of_torch(monkeypatch, width, torchs):
    used = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given: used.append(given) or kernel(*given))
    attend(*qkv(width))
    assert bool(used) is torchs


def test_a_row_is_attended_alike_in_any_batch():
    q, k, v = (part.float() for part in qkv(NARROW))
    assert torch.equal(attend(q, k, v)[:1], attend(q[:1], k[:1], v[:1]))
