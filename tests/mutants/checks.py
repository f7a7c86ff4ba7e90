"""The laws that mutants are put to, by name: those of the tests, with the examples that the CI profile gives them.

A name is a word and its arguments, ``parity triton_flash fwd``. Imports attnkit, so it is imported where the mutant is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from attnkit.products import product, triton_dynamic
from attnkit.products.matvec_tiles import Config
from attnkit.variants import variant
from tests.attnkit import (
    test_append,
    test_fuzzed_laws,
    test_laws,
    test_linear,
    test_matvec,
    test_naive,
    test_parity,
    test_problem,
    test_products,
    test_triton_fa1,
    test_triton_flash,
    test_triton_splitkv,
)

__all__ = ["Law", "law"]

Law = Callable[[], object]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FORMS: dict[str, tuple[Any, ...]] = {
    "registers": (torch.bfloat16, "half", Config("registers", 2, 2, 2)),
    "registers-int8": (torch.float16, "int8", Config("registers", 2, 2, 2)),
    "bulk": (torch.float16, "half", Config("bulk", 2, 2, 3)),
    "bulk-int8": (torch.bfloat16, "int8", Config("bulk", 2, 2, 3)),
}


def bound(test: Any, *arguments: object) -> Law:
    """Return a test that hypothesis drives with the arguments bound that it does not draw."""
    found = functools.partial(test, *arguments)
    found.hypothesis = test.hypothesis  # type: ignore[attr-defined] # where trial.py counts examples
    return found


LAWS: dict[str, Callable[..., Law]] = {
    "parity": lambda name, pass_, kind="plain": test_parity.law(variant(name), pass_, DEVICE, kind),
    "hidden-keys": lambda name: test_fuzzed_laws.hidden_keys(variant(name), DEVICE),
    "order": lambda name: test_fuzzed_laws.order(variant(name), DEVICE),
    "lse": lambda: test_fuzzed_laws.test_the_log_sum_exp_is_that_of_the_scores,
    "far-apart": lambda: test_triton_flash.test_batches_may_lie_more_than_two_to_the_31_elements_apart,
    "far-rows": lambda: test_triton_flash.test_rows_too_far_apart_for_offsets_of_32_bits_are_copied,
    "far-sequences": lambda: functools.partial(
        test_triton_flash.test_packed_rows_may_lie_more_than_two_to_the_31_elements_apart, "triton_flash"
    ),
    "far-sequences-fa1": lambda: functools.partial(
        test_triton_flash.test_packed_rows_may_lie_more_than_two_to_the_31_elements_apart, "triton_fa1"
    ),
    "far-below": lambda: test_triton_fa1.test_a_key_behind_the_last_takes_no_weight_where_scores_are_far_below_0,
    "no-sink": lambda: test_triton_fa1.test_a_sink_of_no_weight_has_no_gradient_and_changes_none,
    "other-sequence": lambda name: functools.partial(
        test_laws.test_not_a_number_in_another_sequence_goes_nowhere, name, DEVICE
    ),
    "strided": lambda: test_triton_flash.test_a_last_dimension_that_is_not_contiguous_is_copied,
    "splits": lambda: test_triton_splitkv.test_any_split_of_any_cache_is_attention_on_the_keys_that_are_there,
    "appended": lambda: test_append.test_the_cache_then_holds_the_new_rows_and_what_it_held,
    "append-then-attend": lambda: test_append.test_append_then_attend_is_attention_on_both,
    "no-room": lambda: functools.partial(
        test_append.test_what_there_is_no_room_for_is_not_written, test_append.append, None
    ),
    "far-pages": lambda: test_append.test_pages_may_lie_more_than_two_to_the_31_elements_apart,
    "many-splits": lambda: functools.partial(
        test_triton_splitkv.test_many_splits_are_combined_a_few_at_a_time, test_triton_splitkv.FORMS[1]
    ),
    "workspace": lambda: test_triton_splitkv.test_a_workspace_serves_call_after_call,
    "float64": lambda: test_naive.test_in_float64_it_is_the_oracle,
    "float64-cached": lambda: test_naive.test_in_float64_it_is_the_oracle_on_what_is_cached,
    "mask": lambda: test_problem.test_a_mask_in_memory_is_its_definition,
    "product": lambda name: bound(test_products.test_it_is_the_product, product(name)),
    "tiles": lambda: test_products.test_tiles_do_not_matter,
    "integers": lambda: test_products.test_integers_are_the_product_of_what_x_was_rounded_to,
    "norm": lambda: bound(test_products.test_what_is_rounded_is_the_norm, triton_dynamic.ROUNDING),
    "residual": lambda: bound(
        test_products.test_a_residual_is_added_before_the_result_is_rounded, triton_dynamic.ROUNDING
    ),
    "no-number": lambda: functools.partial(
        test_products.test_a_row_that_holds_no_number_gives_none_and_others_do_not_see_it,
        "triton_dynamic",
        float("inf"),
    ),
    "half-a-scale": lambda: test_linear.test_a_weight_is_off_by_half_a_scale_at_most,
    "whole-range": lambda: test_linear.test_the_largest_weight_of_a_channel_uses_the_whole_range,
    "matvec": lambda form: bound(test_matvec.test_it_is_the_product, *FORMS[form]),
    "matvec-fixed": lambda: bound(test_matvec.test_fixed_point_is_the_product_too, *test_matvec.FIXED_FORMS[0]),
    "fixed-range": lambda: functools.partial(
        test_matvec.test_fixed_point_x_is_itself_but_for_what_is_tiny_beside_its_rows_largest, torch.bfloat16
    ),
}


def law(name: str) -> Law:
    """Return the law of that name."""
    word, *arguments = name.split()
    return LAWS[word](*arguments)
