"""Listings of SASS: recorded ones, shortened to the instructions that matter, and what is read off them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perfgate.static import sass

LISTINGS = Path(__file__).parent / "listings"


def text(name: str) -> str:
    return (LISTINGS / f"{name}.sass").read_text()


def only(listing: str) -> sass.Function:
    (function,) = sass.parse(listing).values()
    return function


def test_resources_are_read() -> None:
    function = only(text("hopper_backward"))
    assert (function.registers, function.stack, function.shared) == (250, 0, 1024)


def test_instructions_are_counted_by_kind() -> None:
    listing = text("hopper_forward")
    counts = only(listing).counts()
    for kind, pattern in {
        "HGMMA": r"\bHGMMA\.",
        "MUFU.EX2": r"\bMUFU\.EX2\b",
        "BAR": r"\bBAR\.",
        "UTMALDG": r"\bUTMALDG\.",
        "WARPGROUP.DEPBAR": r"\bWARPGROUP\.DEPBAR",
    }.items():
        assert counts[kind] == len(re.findall(pattern, listing)) > 0
    assert "LDL" not in counts


@pytest.mark.parametrize(
    ("name", "matrix", "number", "exponentials"),
    [
        ("hopper_forward", "HGMMA", 24, 68),
        ("hopper_backward", "HGMMA", 24, 32),
        ("ampere_forward", "HMMA", 128, 36),
        ("blackwell_forward", "UTCHMMA", 12, 33),
    ],
)
def test_the_main_loop_is_the_inner_one(name: str, matrix: str, number: int, exponentials: int) -> None:
    loop = sass.count(only(text(name)).main_loop())
    assert (loop[matrix], loop["MUFU.EX2"]) == (number, exponentials)


def test_the_slow_path_of_a_wait_is_no_loop() -> None:
    function = only(text("hopper_backward"))
    last_exit = max(i.address for i in function.instructions if i.opcode == "EXIT")
    behind = [i for i in function.instructions if i.opcode == "BRA" and i.address > last_exit and not i.guard]
    assert behind  # else this listing shows nothing
    assert all(end not in {i.address for i in behind} for _, end in function._loops())


def test_the_order_of_a_loop_is_told() -> None:
    order = sass.order(only(text("hopper_forward")).main_loop())
    assert order == (
        "SYNCS.PHASECHK*1 HGMMA*16 WARPGROUP.DEPBAR*1 BAR*1 MUFU.EX2*36 SYNCS.PHASECHK*1 MUFU.EX2*32 HGMMA*8 "
        "BAR*1 UTMALDG*1 BAR*1 UTMALDG*1"
    )


def test_exponentials_between_a_product_and_its_wait_are_covered() -> None:
    assert sass.covered(only(text("hopper_backward")).main_loop()) == 32
    assert sass.covered(only(text("hopper_forward")).main_loop()) == 0


def step(opcode: str, operands: str = "") -> sass.Instruction:
    return sass.Instruction(0, "", opcode, operands)


PRODUCT = step("HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR8], R24, gsb0")
EXP = step("MUFU.EX2", "R1, R1")


def waits_for_all_but(groups: int) -> sass.Instruction:
    return step("WARPGROUP.DEPBAR.LE", f"gsb0, {groups:#x}")


def test_a_wait_in_front_of_the_exponentials_uncovers_them() -> None:
    assert sass.covered([PRODUCT, EXP, EXP, waits_for_all_but(0)]) == 2
    assert sass.covered([PRODUCT, waits_for_all_but(0), EXP, EXP]) == 0


def test_products_of_fp8_are_waited_for_like_others() -> None:
    product = step("QGMMA.64x64x32.F32.E4M3.E4M3", "R24, gdesc[UR8], R24, gsb0")
    assert sass.covered([product, EXP, waits_for_all_but(0), EXP]) == 1
    assert sass.covered([product, product, waits_for_all_but(1), EXP, waits_for_all_but(0)]) == 1


def test_a_wait_that_leaves_a_product_in_flight_still_covers() -> None:
    assert sass.covered([PRODUCT, PRODUCT, waits_for_all_but(1), EXP, waits_for_all_but(0)]) == 1


def test_a_product_of_the_turn_before_covers() -> None:
    assert sass.covered([EXP, waits_for_all_but(0), PRODUCT]) == 1


def test_a_blackwell_wait_is_for_the_oldest_group() -> None:
    product, commit, wait = step("UTCHMMA"), step("UTCBAR"), step("SYNCS.PHASECHK.TRANS64.TRYWAIT")
    two = [product, commit, product, commit]
    assert sass.covered([*two, wait, EXP, wait]) == 1
    assert sass.covered([*two, wait, wait, EXP]) == 0


def test_a_loop_of_exponentials_alone_is_a_main_loop() -> None:
    listing = """
 Function k:
  REG:8 STACK:0 SHARED:0 LOCAL:0
        Function : k
        /*0010*/  MUFU.EX2 R1, R1 ;
        /*0020*/  @P0 BRA 0x10 ;
        /*0030*/  EXIT ;
"""
    assert sass.order(only(listing).main_loop()) == "MUFU.EX2*1"


@pytest.mark.parametrize("listing", ["", "Function : k\n", "cuobjdump fatal: no such file"])
def test_what_is_no_listing_is_refused(listing: str) -> None:
    with pytest.raises(ValueError, match="expected what `cuobjdump -sass -res-usage` prints"):
        sass.parse(listing)
