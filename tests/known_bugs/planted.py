"""A wrong attention for each kind of known bug, made of a right one: what its test is for.

Those that a GPU alone can have (races, gigabytes) are not here, nor what lies behind the mask, of which tests/mutants
has some.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from attnkit.mask import Boolean, Documents, Prefix, Window, dense
from attnkit.variant import Attention
from attnkit.variants import naive

__all__ = ["PLANTED", "noise", "of_gradient"]

Change = Callable[[torch.Tensor], torch.Tensor]
right = naive.VARIANT.attention


class Altered(torch.autograd.Function):
    """What goes in comes out; the gradient is changed on its way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, change: Change) -> torch.Tensor:
        ctx.change = change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return ctx.change(gradient), None


def scores(q: torch.Tensor, k: torch.Tensor, scale: float | None = None) -> torch.Tensor:
    """Return [b, h, sq, skv] in float32, of as many query heads as key heads."""
    products = q.detach().transpose(1, 2).float() @ k.detach().transpose(1, 2).float().mT
    return products * (q.shape[3] ** -0.5 if scale is None else scale)


def of_forward(change: Callable[..., tuple[torch.Tensor, ...]]) -> Attention:
    """Return attention of changed q, k and v."""
    return lambda q, k, v, **options: right(*change(q, k, v, **options), **options)


def of_options(change: Callable[..., dict[str, Any]]) -> Attention:
    """Return attention with some options changed."""
    return lambda q, k, v, **options: right(q, k, v, **options | change(q, k, v, **options))


def of_gradient(which: int, change: Callable[..., torch.Tensor]) -> Attention:
    """Return attention of which one gradient is changed: that of q, k, v or, for 3, of out."""

    def attention(*inputs: torch.Tensor, **options: Any) -> torch.Tensor:
        def changed(gradient: torch.Tensor) -> torch.Tensor:
            return change(gradient.clone() if which < 3 else gradient, *(x.detach() for x in inputs), **options)

        altered = [Altered.apply(x, changed) if i == which else x for i, x in enumerate(inputs)]
        out = right(*altered, **options)
        return Altered.apply(out, changed) if which == 3 else out

    return attention


def hidden_scored_zero(dq: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> Any:
    """exp(0 - lse) is infinite in float32 for a log-sum-exp below -88.7."""
    if isinstance(options["mask"], Boolean | Prefix):
        dq[(scores(q, k).logsumexp(-1) < -88.7).transpose(1, 2)] = math.nan
    return dq


def without_maximum(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Any, scale: Any) -> torch.Tensor:
    weights = scores(q, k, scale).exp() * dense(mask, q.shape[1], k.shape[1], q.device)
    out = (weights / weights.sum(-1, keepdim=True)).to(v.dtype) @ v.transpose(1, 2)
    return out.transpose(1, 2) + 0 * right(q, k, v, mask=mask, scale=scale)


def late_rescale(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Any, scale: Any) -> torch.Tensor:
    """The maximum is that of the first tile of keys."""
    products = scores(q, k, scale)
    weights = (products - products[..., :64].amax(-1, keepdim=True)).exp().to(q.dtype)
    out = (weights @ v.transpose(1, 2)).float() / weights.float().sum(-1, keepdim=True)
    return out.to(q.dtype).transpose(1, 2) + 0 * right(q, k, v, mask=mask, scale=scale)


def late_rescale_in_fp8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: Any, scale: Any) -> torch.Tensor:
    """The same, where the largest weight of the first tile is 2^8, and what is beyond 448 becomes that."""
    products = scores(q.float(), k.float(), scale)
    weights = (products - products[..., :64].amax(-1, keepdim=True)).exp() * 2**8
    rounded = weights.clamp(max=torch.finfo(q.dtype).max).to(q.dtype).float()
    return (rounded @ v.float().transpose(1, 2) / weights.sum(-1, keepdim=True)).transpose(1, 2).bfloat16()


def tail_read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """Behind the last value a weight of 0 meets what lies there."""
    b, skv, h, dv = v.shape
    whole = (b, -(-skv // 64) * 64, h, dv)
    last = v.storage_offset() + sum((n - 1) * stride for n, stride in zip(whole, v.stride(), strict=True))
    out = right(q, k, v, **options)
    if last >= v.untyped_storage().nbytes() // v.element_size():
        return out
    return out + 0 * v.detach().as_strided(whole, v.stride())[:, skv:].sum()


def softmax_begun_anew(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """From query 128 on, what the first 128 keys gave is forgotten."""
    if options["mask"] != "causal" or k.shape[1] <= 256:
        return right(q, k, v, **options)
    seen = k.shape[1] - q.shape[1] + 128
    first = right(q[:, :128], k[:, :seen], v[:, :seen], **options)
    return torch.cat((first, right(q[:, 128:], k[:, 128:], v[:, 128:], **options)), 1)


def compiled_once() -> Attention:
    """The kernel for these sizes is that of the first call with them."""
    kernels: dict[tuple[int, ...], dict[str, Any]] = {}
    return lambda q, k, v, **options: right(q, k, v, **kernels.setdefault((*q.shape, k.shape[1]), options))


def accumulated() -> Attention:
    """What a long call summed up is left for the next."""
    left = [0.0]

    def stale(dq: torch.Tensor, q: torch.Tensor, *_: torch.Tensor, **options: Any) -> torch.Tensor:
        found, left[0] = dq + left[0], 0.1 if q.shape[1] > 100 else 0.0
        return found

    return of_gradient(0, stale)


def far(x: torch.Tensor) -> bool:
    return sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) >= 2**31


def int32(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    q, k, v = (x.flip(1) if far(x) else x for x in (q, k, v))
    return Altered.apply(right(q, k, v, **options), lambda dout: dout.flip(1) if far(dout) else dout)


def unaligned(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    def rounded(x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, 1) if x.data_ptr() % 16 else x

    return Altered.apply(right(*map(rounded, (q, k, v)), **options), rounded)


def empty(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    if not (q.numel() and k.numel()):
        raise ZeroDivisionError
    return right(q, k, v, **options)


def as_if_contiguous(dout: torch.Tensor, *_: torch.Tensor, **options: Any) -> torch.Tensor:
    if dout.storage_offset() + dout.numel() > dout.untyped_storage().nbytes() // dout.element_size():
        return dout * math.nan  # behind the end of it
    return dout.as_strided(dout.shape, torch.empty(dout.shape, device="meta").stride())


def dead_rows(dq: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    dq[:, : max(0, q.shape[1] - k.shape[1])] = math.nan
    return dq


def scattered(dk: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """A query that sees no key adds to the key of index -1."""
    if not dense(options["mask"], q.shape[1], k.shape[1], q.device).any(1).all():
        dk[-1, -1] += 1
    return dk


def first_heads(dq: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    """At sq = 1 the other heads of a group have no log-sum-exp."""
    group = q.shape[2] // k.shape[2]
    if q.shape[1] == 1:
        dq.unflatten(2, (-1, group))[:, :, :, 1:] = math.nan
    return dq


def noise(dk: torch.Tensor, *_: torch.Tensor, **options: Any) -> torch.Tensor:
    """The last bit depends on the run."""
    return torch.nextafter(dk, dk + torch.randint(-1, 2, dk.shape))


def nan_if(condition: Callable[..., bool]) -> Callable[..., torch.Tensor]:
    """Return a change of a gradient to what is not a number, under a condition."""
    return lambda gradient, q, k, v, **options: gradient * (math.nan if condition(q, k, **options) else 1)


def flipped_if(condition: Callable[..., bool]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Return a change of the inputs, values in the wrong order, under a condition."""
    return lambda q, k, v, **options: (q, k, v.flip(1) if condition(q, k) else v)


def fails_if(condition: Callable[..., bool]) -> Callable[..., torch.Tensor]:
    """Return a gradient that cannot be computed, under a condition."""

    def change(dout: torch.Tensor, *_: torch.Tensor, **options: Any) -> torch.Tensor:
        if condition(dout):
            raise RuntimeError("no engine")
        return dout

    return change


def broadcast(x: torch.Tensor) -> bool:
    return any(n > 1 and stride == 0 for n, stride in zip(x.shape, x.stride(), strict=True))


def padded_scale(q: torch.Tensor, *_: torch.Tensor, **options: Any) -> dict[str, Any]:
    return {"scale": (1 << (q.shape[3] - 1).bit_length()) ** -0.5}


def no_bound(*_: torch.Tensor, mask: Any, **options: Any) -> dict[str, Any]:
    return {"mask": Window(mask.left, None) if isinstance(mask, Window) and mask.right == 0 else mask}


def one_key_more(q: torch.Tensor, *_: torch.Tensor, mask: Any, **options: Any) -> dict[str, Any]:
    wider = isinstance(mask, Window) and mask.left is not None and q.shape[1] == 1
    return {"mask": Window(mask.left + 1, mask.right) if wider else mask}


def one_cached_key_more(*_: torch.Tensor, lengths: torch.Tensor, **options: Any) -> dict[str, Any]:
    return {"lengths": torch.where(lengths == lengths.max(), lengths, lengths + 1)}


def all_of_the_padding(*_: torch.Tensor, mask: Any, **options: Any) -> dict[str, Any]:
    return {"mask": "full" if isinstance(mask, Documents) else mask}


PLANTED: tuple[tuple[int, str, Callable[[], Attention]], ...] = (
    (1, "test_scores_far_below_zero_have_finite_gradients", lambda: of_gradient(0, hidden_scored_zero)),
    (
        2,
        "test_a_token_is_generated_with_few_key_heads",
        lambda: of_forward(flipped_if(lambda q, k: q.shape[1] == 1 and k.shape[2] < 8)),
    ),
    (
        3,
        "test_keys_that_are_broadcast_and_one_more_than_a_tile",
        lambda: of_forward(flipped_if(lambda q, k: broadcast(k) and k.shape[1] % 32 == 1)),
    ),
    (4, "test_large_equal_inputs_are_not_a_number_nowhere", lambda: without_maximum),
    (
        6,
        "test_a_gradient_of_stride_zero_reaches_all_keys_of_a_single_query",
        lambda: of_gradient(3, fails_if(lambda dout: dout.shape[1] == 1 and broadcast(dout))),
    ),
    (
        7,
        "test_less_than_a_block_of_a_mask_is_trained",
        lambda: of_gradient(1, nan_if(lambda q, k, mask, **_: mask != "full" and k.shape[1] < 128)),
    ),
    (
        8,
        "test_keys_that_are_a_slice_have_their_own_gradient",
        lambda: of_gradient(1, nan_if(lambda q, k, **_: not k.is_contiguous())),
    ),
    (
        9,
        "test_one_query_on_keys_that_fill_no_block",
        lambda: of_forward(flipped_if(lambda q, k: q.shape[1] == 1 and k.shape[1] % 128 > 0)),
    ),
    (
        10,
        "test_one_row_more_than_two_blocks_with_a_mask_and_a_modifier",
        lambda: of_gradient(0, nan_if(lambda q, k, mask, **rest: q.shape[1] == 257 and len(rest) > 1)),
    ),
    (11, "test_queries_before_the_first_key_have_no_gradient", lambda: of_gradient(0, dead_rows)),
    (12, "test_a_gradient_that_comes_back_may_lie_as_it_likes", lambda: of_gradient(3, as_if_contiguous)),
    (14, "test_what_lies_farther_apart_than_int32_reaches_is_found", lambda: int32),
    (17, "test_what_lies_behind_the_last_key_and_query_does_not_matter", lambda: tail_read),
    (18, "test_where_there_is_nothing_there_is_nothing_to_compute", lambda: empty),
    (
        18,
        "test_packed_sequences_of_which_some_have_more_queries_than_keys_or_none",
        lambda: of_gradient(1, nan_if(lambda q, k, varlen, **_: 0 in varlen.queries)),
    ),
    (19, "test_what_was_computed_before_does_not_matter", accumulated),
    (19, "test_packed_sequences_that_were_computed_before_do_not_matter", accumulated),
    (24, "test_gradients_of_a_group_are_summed_in_one_order", lambda: of_gradient(1, noise)),
    (25, "test_scores_that_grow_from_tile_to_tile_overflow_nothing", lambda: late_rescale),
    (25, "test_scores_that_grow_from_tile_to_tile_saturate_nothing_in_fp8", lambda: late_rescale_in_fp8),
    (26, "test_tiles_in_which_nothing_is_seen", lambda: of_gradient(1, scattered)),
    (27, "test_what_lies_behind_a_length_in_a_cache_does_not_matter", lambda: of_options(one_cached_key_more)),
    (28, "test_the_softmax_goes_on_from_one_causal_block_to_the_next", lambda: softmax_begun_anew),
    (29, "test_padding_has_no_gradient_and_changes_nothing", lambda: of_options(all_of_the_padding)),
    (30, "test_the_same_sizes_with_something_else_are_computed_anew", compiled_once),
    (30, "test_inputs_that_are_not_aligned_follow_those_that_are", lambda: unaligned),
    (31, "test_a_single_query_of_every_head_of_a_group_is_trained", lambda: of_gradient(0, first_heads)),
    (31, "test_a_window_without_keys_behind_the_diagonal_is_causal", lambda: of_options(no_bound)),
    (32, "test_padded_head_dims_of_few_queries_of_a_group", lambda: of_options(padded_scale)),
    (33, "test_decoding_token_by_token_is_prefill", lambda: of_options(one_key_more)),
)
"""The number of a bug, its test, and what makes an attention with it."""
