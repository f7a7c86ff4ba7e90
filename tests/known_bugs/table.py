"""Real bugs of attention libraries, by kind, with the tests that find one of that kind in any variant.

An issue without a repository is one of Dao-AILab/flash-attention. Which of the installed libraries still has a bug is
in KNOWN as far as it is expected, and in outcomes/ as it was found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BUGS", "KNOWN", "OURS", "Bug", "Known", "known"]

OURS = ("naive", "triton_unfused", "triton_flash", "triton_fa1", "triton_splitkv", "triton_paged")
LEAST_D = {"triton_splitkv": math.inf, "triton_paged": math.inf, "flashinfer": math.inf, "flash_attn_4": 64}
"""Variants that have no gradients, or none below a head dim, wherever they run."""
HERE = "tests/attnkit/test_known_bugs.py"
LAWS = "tests/attnkit/test_laws.py"
FUZZED = "tests/attnkit/test_fuzzed_laws.py"
SPLITKV = "tests/attnkit/test_triton_splitkv.py"


@dataclass(frozen=True, slots=True)
class Bug:
    """A bug that was shipped.

    Attributes:
        number: As the bugs are counted here.
        kind: What is wrong, in few words.
        library: Where it was.
        issues: Issues, pull requests and commits.
        sentence: What happened.
        tests: What finds one of its kind: a function of test_known_bugs.py, or path and function.
        gradients: The largest head dim of its tests, where it is one of gradients that forward alone says nothing of.
    """

    number: int
    kind: str
    library: str
    issues: tuple[str, ...]
    sentence: str
    tests: tuple[str, ...]
    gradients: int | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        """The tests as pytest names them."""
        return tuple(test if "::" in test else f"{HERE}::{test}" for test in self.tests)

    def needs_more_than(self, name: str) -> bool:
        """Whether this is a bug of gradients that a variant does not have, wherever it runs."""
        return self.gradients is not None and self.gradients < LEAST_D.get(name, 0)


@dataclass(frozen=True, slots=True)
class Known:
    """A bug that an installed library is expected to have.

    Attributes:
        reason: What happens, and the issue or that none is known.
        cases: What the parameters of a test that fails contain, one of them; any where there is none.
        strict: Whether a test that passes fails the run, so that nobody overlooks that the bug is gone.
        needs_gpu: Whether only the library's kernels for a GPU have it.
        raises: What a test fails with.
        refuses: Whether that is the library's saying so, where others compute: no bug, but no computation either.
    """

    reason: str
    cases: tuple[str, ...] = ()
    strict: bool = False
    needs_gpu: bool = True
    raises: tuple[type[Exception], ...] = (AssertionError, RuntimeError)
    refuses: bool = False

    def has(self, parameters: str) -> bool:
        """Whether a test with these parameters, ``causal-2-0-5-flex``, is expected to fail."""
        return not self.cases or any(case in parameters for case in self.cases)


NOTHING = "test_where_there_is_nothing_there_is_nothing_to_compute"
LENGTHS_OF_0 = ("-2-0-5-", "-2-5-0-", "-2-0-0-")
FAR = "test_what_lies_farther_apart_than_int32_reaches_is_found"

KNOWN: dict[tuple[str, str], Known] = {
    ("test_torch_has_finite_gradients_of_scores_far_below_zero_under_a_mask", "sdpa_cudnn"): Known(
        "dq is not a number where the log-sum-exp is below -88.7, on Hopper since torch 2.11 (pytorch#196678)"
    ),
    ("test_scores_far_below_zero_have_finite_gradients", "sdpa_cudnn"): Known(
        "dk and dv of a single query with a log-sum-exp below -88.7 are not numbers (kind of pytorch#196678)",
        cases=("1-128-full",),
        strict=True,
    ),
    ("test_more_than_int32_counts_is_computed", "sdpa_cudnn"): Known(
        "dq and dk of tensors of more than 2^31 elements are wrong, in cuDNN 9.19; no issue is known",
        cases=("batches",),
        strict=True,
        raises=(AssertionError,),
    ),
    ("test_torch_has_finite_gradients_under_the_lowest_number", "sdpa_efficient"): Known(
        "not a number under masks of the lowest number (pytorch#109517)"
    ),
    ("test_torch_takes_keys_that_are_broadcast_under_a_mask", "sdpa_efficient"): Known(
        "wrong with keys of stride 0 and skv % 32 = 1 (pytorch#191937)"
    ),
    ("test_keys_that_are_broadcast_and_one_more_than_a_tile", "sdpa_efficient"): Known(
        "wrong with keys of stride 0 and skv % 32 = 1 (pytorch#191937)"
    ),
    ("test_torch_takes_a_gradient_that_lies_otherwise_than_the_one_before", "sdpa_cudnn"): Known(
        "a backward is kept by the strides of q, k and v alone, not those of dout (pytorch#191576)", strict=True
    ),
    ("test_torch_trains_more_sequences_than_int32_counts", "sdpa_flash"): Known(
        "the offset into what dq is summed up in overflows from 8300 sequences on (#1500, #2260)", strict=True
    ),
    (FAR, "sdpa_efficient"): Known(
        "its strides of rows and heads are 32 bits, and it refuses those that do not fit; no issue is known",
        cases=("h-q", "h-k", "h-v"),
        strict=True,
        raises=(RuntimeError,),
        refuses=True,
    ),
    (FAR, "flex"): Known(
        "its kernel is not compiled: an index of 64 bits meets one of 32, which Triton refuses; no issue is known",
        cases=("-q-", "-k-", "-v-"),
        strict=True,
        raises=(RuntimeError,),
        refuses=True,
    ),
    **{
        (NOTHING, name): Known(
            reason,
            cases=cases,
            raises=(AssertionError, RuntimeError, AttributeError, IndexError),
        )
        for name, reason, cases in (
            ("sdpa_flash", "lengths of 0 are not promised; no issue is known", LENGTHS_OF_0),
            ("sdpa_cudnn", "a batch of 0 (pytorch#133780) and lengths of 0 are not promised", ()),
            ("flex", "lengths of 0 are not promised; no issue is known", LENGTHS_OF_0),
            ("flash_attn", "a batch of 0 (#1159) and lengths of 0 are not promised", ()),
        )
    },
}
"""By test and variant, or backend of torch's.

What is strict was seen with torch 2.11 on Hopper, and depends neither on the order of tests nor on what memory holds.
"""


def known(bug: Bug, name: str) -> list[Known]:
    """Return what is expected of a variant in the tests of a bug."""
    return [entry for (test, way), entry in KNOWN.items() if way == name and test in bug.tests]


BUGS: tuple[Bug, ...] = (
    Bug(
        1,
        "hidden keys scored 0 instead of -inf",
        "cuDNN, torch",
        ("pytorch#196678", "cudnn-frontend#1072"),
        "dq is not a number for sq % 128 = 64 with a mask, where the log-sum-exp of a row is below -88.7: exp(0 - lse) "
        "of the padding overflows.",
        (
            "test_scores_far_below_zero_have_finite_gradients",
            "test_torch_has_finite_gradients_of_scores_far_below_zero_under_a_mask",
        ),
        gradients=32,
    ),
    Bug(
        2,
        "few key heads in decoding",
        "cuDNN, torch",
        ("pytorch#193893",),
        "Generation on B200 is corrupt with fewer than 8 key heads.",
        ("test_a_token_is_generated_with_few_key_heads",),
    ),
    Bug(
        3,
        "broadcast keys",
        "torch, memory-efficient",
        ("pytorch#191937",),
        "Wrong with a mask where k and v have stride 0 and skv % 32 = 1.",
        (
            "test_keys_that_are_broadcast_and_one_more_than_a_tile",
            "test_torch_takes_keys_that_are_broadcast_under_a_mask",
        ),
    ),
    Bug(
        4,
        "lowest numbers and large equal ones",
        "torch, memory-efficient",
        ("pytorch#109517", "pytorch#119320", "pytorch#125674", "pytorch#178251"),
        "Masks of the dtype's lowest number, and inputs that are large and equal, give not a number in both passes.",
        (
            "test_large_equal_inputs_are_not_a_number_nowhere",
            "test_torch_has_finite_gradients_under_the_lowest_number",
        ),
    ),
    Bug(
        5,
        "not a number behind the mask",
        "torch",
        ("pytorch#101967",),
        "What is not a number in a key that is masked out reaches the output.",
        (
            f"{LAWS}::test_not_a_number_in_a_key_that_nobody_sees_goes_nowhere",
            f"{FUZZED}::test_what_is_in_a_key_that_a_query_does_not_see_does_not_matter",
        ),
    ),
    Bug(
        6,
        "gradient of stride 0, one query",
        "cuDNN, torch",
        ("pytorch#138529",),
        "Backward fails where dout has stride 0, sq = 1 and skv = 65536.",
        ("test_a_gradient_of_stride_zero_reaches_all_keys_of_a_single_query",),
        gradients=16,
    ),
    Bug(
        7,
        "block of the mask longer than the sequence",
        "FlexAttention",
        ("pytorch#136232",),
        "Gradients are not a number where a block of the mask is longer than the sequence.",
        ("test_less_than_a_block_of_a_mask_is_trained",),
        gradients=16,
    ),
    Bug(
        8,
        "gradient of a slice",
        "FlexAttention",
        ("pytorch#146377",),
        "dk is garbage for keys that are a slice, and so not contiguous.",
        ("test_keys_that_are_a_slice_have_their_own_gradient",),
        gradients=16,
    ),
    Bug(
        9,
        "ragged keys in decoding",
        "FlexAttention",
        ("pytorch#133717",),
        "Decoding reads what is not its own where skv is no multiple of a block.",
        ("test_one_query_on_keys_that_fill_no_block",),
    ),
    Bug(
        10,
        "one row more than whole blocks",
        "FlexAttention",
        ("pytorch#153799",),
        "Gradients are not a number at s = 257 in bf16 with a mask and a modified score.",
        ("test_one_row_more_than_two_blocks_with_a_mask_and_a_modifier",),
        gradients=16,
    ),
    Bug(
        11,
        "fully masked rows",
        "FlashAttention-2",
        ("#443",),
        "dq is not a number for causal attention with sq > skv, where the first queries see no key.",
        (
            "test_queries_before_the_first_key_have_no_gradient",
            "test_packed_sequences_of_which_some_have_more_queries_than_keys_or_none",
        ),
        gradients=16,
    ),
    Bug(
        12,
        "strided dout",
        "FlashAttention-2",
        ("#355", "commit e7786a79"),
        "Gradients are wrong where dout is not contiguous, and where q, k and v are strided.",
        (
            "test_a_gradient_that_comes_back_may_lie_as_it_likes",
            "test_keys_that_are_a_slice_have_their_own_gradient",
        ),
        gradients=16,
    ),
    Bug(
        13,
        "int32 offset of a batch",
        "FlashAttention-2",
        ("#1500", "#2260", "#47"),
        "The offset into what dq is summed up in overflows from 8300 sequences on; large caches give results that "
        "depend on the batch.",
        (
            "test_more_than_int32_counts_is_computed",
            "test_what_lies_farther_apart_than_int32_reaches_is_found",
            "test_torch_trains_more_sequences_than_int32_counts",
        ),
    ),
    Bug(
        14,
        "int32 product with a stride",
        "FlashAttention-4",
        ("#2611",),
        "Begin of a sequence times stride of dout overflows: all gradients are silently wrong.",
        ("test_what_lies_farther_apart_than_int32_reaches_is_found",),
    ),
    Bug(
        15,
        "int32 count of bytes",
        "FlashAttention-4",
        ("#2662",),
        "The scheduler's size of a head's keys in bytes overflows at about 4 million keys.",
        ("test_more_than_int32_counts_is_computed",),
    ),
    Bug(
        16,
        "int32 block pointer",
        "flash-linear-attention",
        ("flash-linear-attention#1080",),
        "Block pointers overflow at 2^31 elements and read other tensors: wrong, finite and repeatable.",
        ("test_more_than_int32_counts_is_computed", "test_what_lies_farther_apart_than_int32_reaches_is_found"),
    ),
    Bug(
        17,
        "tail of the last tile",
        "FlashAttention-4",
        ("#2374",),
        "0 times what lies behind the last value, which nobody has written, is not a number.",
        ("test_what_lies_behind_the_last_key_and_query_does_not_matter",),
    ),
    Bug(
        18,
        "nothing to compute",
        "FlashAttention-4",
        ("#2470", "#2515", "#2421"),
        "No keys crash, no queries and no batch divide by zero, an empty sequence has gradients that are not a number.",
        (
            "test_where_there_is_nothing_there_is_nothing_to_compute",
            "test_packed_sequences_of_which_some_have_more_queries_than_keys_or_none",
        ),
    ),
    Bug(
        19,
        "stale accumulator",
        "FlashAttention-4",
        ("#2337",),
        "Two kernels disagree on a tile of packed sequences, and dq is added to what another call left: right alone, "
        "wrong in sequence.",
        (
            "test_what_was_computed_before_does_not_matter",
            "test_packed_sequences_that_were_computed_before_do_not_matter",
        ),
        gradients=16,
    ),
    Bug(
        20,
        "missing fence",
        "FlashAttention-4",
        ("#2462",),
        "Backward on Hopper lacks a fence between writes and the tensor cores that read them.",
        ("test_tensor_cores_wait_for_their_operands",),
    ),
    Bug(
        21,
        "missing wait for the kernel before",
        "FlashAttention-4",
        ("#2756",),
        "With a block-sparse mask the kernel does not wait for that which it overlaps with.",
        ("test_a_sparse_mask_waits_for_the_kernel_before",),
    ),
    Bug(
        22,
        "shared memory used again too early",
        "TileOPs",
        ("TileOPs#1616", "TileOPs#1633", "TileOPs#1404"),
        "17 to 19 % of the output is wrong on an H200, with a window to the right alone.",
        ("test_a_window_to_the_right_alone_is_written_before_memory_is_used_again",),
    ),
    Bug(
        23,
        "sums in memory that are not waited for",
        "FastVideo",
        ("FastVideo#735",),
        "The copy engine adds up gradients, and the kernel ends before it has.",
        ("test_gradients_that_are_added_up_in_memory_are_all_there",),
        gradients=64,
    ),
    Bug(
        24,
        "deterministic backward that is not",
        "FlashAttention-3 and 4",
        ("#2510", "#2549", "#1596", "#1870"),
        "With groups of heads the order of sums depends on the run, and so do bits.",
        ("test_gradients_of_a_group_are_summed_in_one_order", f"{FUZZED}::test_the_same_inputs_give_the_same_bits"),
        gradients=64,
    ),
    Bug(
        25,
        "late rescale",
        "FlashAttention-4",
        ("#2717",),
        "Where the maximum grows and is applied late, weights in fp8 saturate, and in fp16 overflow.",
        (
            "test_scores_that_grow_from_tile_to_tile_overflow_nothing",
            "test_scores_that_grow_from_tile_to_tile_saturate_nothing_in_fp8",
        ),
    ),
    Bug(
        26,
        "index of nothing",
        "FlashAttention-4",
        ("#2755",),
        "Gradients are scattered to index -1, which says that there is no key.",
        (
            "test_tiles_in_which_nothing_is_seen",
            "test_entries_of_a_table_behind_the_last_page_are_not_used",
        ),
    ),
    Bug(
        27,
        "table of pages read past its end",
        "FlashAttention-2 and 4",
        ("#2709", "#2711", "#2550", "commit ede9c36c", "#2388"),
        "Pages behind the last one are read; with split keys the log-sum-exp of packed sequences has a wrong offset.",
        (
            "test_entries_of_a_table_behind_the_last_page_are_not_used",
            "test_what_lies_behind_a_length_in_a_cache_does_not_matter",
            f"{SPLITKV}::test_any_split_of_any_cache_is_attention_on_the_keys_that_are_there",
        ),
    ),
    Bug(
        28,
        "softmax begun anew",
        "FlashAttention-4",
        ("commit c85cb224",),
        "Each causal block resets maximum and sum; with one such block nobody sees it.",
        ("test_the_softmax_goes_on_from_one_causal_block_to_the_next",),
    ),
    Bug(
        29,
        "used length ignored",
        "FlashAttention-4",
        ("#2315",),
        "Backward on Hopper computes the padding behind the used length, too.",
        (
            "test_padding_has_no_gradient_and_changes_nothing",
            "test_what_lies_behind_a_length_in_a_cache_does_not_matter",
            f"{LAWS}::test_a_key_that_no_gradient_reaches_has_none",
            f"{SPLITKV}::test_one_length_may_stand_for_all",
        ),
    ),
    Bug(
        30,
        "cache of kernels with too small a key",
        "FlashAttention-4, flashinfer, torch",
        ("#2402", "#2745", "flashinfer#4270", "pytorch#191576"),
        "Softcap, broadcast layouts, alignment, strides or dtype are not in the key: another call's kernel runs.",
        (
            "test_torch_takes_a_gradient_that_lies_otherwise_than_the_one_before",
            "test_the_same_sizes_with_something_else_are_computed_anew",
            "test_inputs_that_are_not_aligned_follow_those_that_are",
        ),
    ),
    Bug(
        31,
        "log-sum-exp of some heads not written; a bound of 0 taken for none",
        "cuDNN",
        ("cudnn-frontend#1083", "cudnn-frontend#988"),
        "At sq = 1 it is written for the first head of each group; a window of 0 keys to the right is not causal.",
        (
            "test_a_single_query_of_every_head_of_a_group_is_trained",
            "test_a_window_without_keys_behind_the_diagonal_is_causal",
            f"{FUZZED}::test_the_log_sum_exp_is_that_of_the_scores",
        ),
    ),
    Bug(
        32,
        "padded head dims of packed groups",
        "FlashAttention-4",
        ("commit b976df29",),
        "Where the heads of a group are rows of one tile, the predicate of a padded head dim is another row's.",
        ("test_padded_head_dims_of_few_queries_of_a_group",),
    ),
    Bug(
        33,
        "decoding that is not prefill",
        "FlashAttention-4",
        ("#2595", "commit 55f8a5e7"),
        "Two ways to make an exponential disagree; with packed groups a window's number of keys is too large.",
        ("test_decoding_token_by_token_is_prefill",),
    ),
)
