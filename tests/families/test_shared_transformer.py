"""Attention of narrow heads is computed in another way than that of wide ones, and is the same."""

import pytest
import torch
import torch.nn.functional as F

from kinfolk_families._shared import transformer
from kinfolk_families._shared.networks import PixelAttention
from kinfolk_families._shared.transformer import FEW, NARROW, Block, attend


def qkv(width, tokens=9):
    x = torch.randn(3, 2, 4, width, tokens, generator=torch.Generator().manual_seed(0)).double()
    return [part.requires_grad_() for part in x.unbind(0)]


@pytest.mark.parametrize("width", [1, NARROW, NARROW + 1, 3 * NARROW])
@pytest.mark.parametrize("parts", [1, 2])
def test_heads_of_any_width_attend_as_torch_has_it(monkeypatch, width, parts):
    monkeypatch.setattr(transformer, "WEIGHTS_BYTES", 8 * 4 * 9 * 9 * 2 // parts)
    ours, theirs = qkv(width), qkv(width)
    value, wanted = attend(*ours), F.scaled_dot_product_attention(*(part.mT for part in theirs)).mT
    torch.testing.assert_close(value, wanted)
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(1)).double()
    for each in (value, wanted):
        (each * weights).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad)


@pytest.mark.parametrize(
    ("width", "tokens", "device", "torchs"),
    [
        (NARROW, FEW, "cpu", False),
        (NARROW + 1, FEW, "cpu", True),
        (NARROW, FEW + 1, "cpu", True),
        (NARROW, FEW, "meta", True),
    ],
)
def test_only_narrow_heads_of_few_tokens_on_a_cpu_pass_the_kernel_of_torch_by(
    monkeypatch, width, tokens, device, torchs
):
    used = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *given: used.append(given) or kernel(*given))
    attend(*(part.to(device) for part in qkv(width, tokens)))
    assert bool(used) is torchs


def test_weights_are_made_part_by_part(monkeypatch):
    rows = []
    products = transformer._by_products
    monkeypatch.setattr(transformer, "_by_products", lambda *given: rows.append(len(given[0])) or products(*given))
    monkeypatch.setattr(transformer, "WEIGHTS_BYTES", 8 * 4 * 9 * 9 * 2 - 1)
    attend(*qkv(NARROW))
    assert rows == [1, 1]


def test_a_row_is_attended_alike_in_any_batch():
    q, k, v = (part.float() for part in qkv(NARROW))
    assert torch.equal(attend(q, k, v)[:1], attend(q[:1], k[:1], v[:1]))


@pytest.mark.parametrize("heads", [1, 4])
def test_pixels_attend_as_tokens_do(heads):
    torch.manual_seed(0)
    pixels = PixelAttention(16, heads).double()
    for parameter in pixels.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 16, 3, 5).double()
    tokens = pixels.attention(pixels.norm(x).flatten(2).mT)  # (B, HW, C)
    torch.testing.assert_close(pixels(x), x + tokens.mT.unflatten(2, (3, 5)))


@pytest.mark.parametrize(("built", "told"), [(4, None), (None, 4)])
def test_a_block_is_never_told_less_or_more_than_it_was_built_for(built, told):
    tokens, block = torch.ones(2, 3, 8), Block(8, 2, built)
    right, wrong = (None if width is None else torch.ones(2, width) for width in (built, told))
    assert block(tokens, right).shape == tokens.shape
    with pytest.raises(AssertionError, match="built for one"):
        block(tokens, wrong)
