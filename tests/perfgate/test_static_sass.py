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


def unset(*lines: str) -> tuple[str, ...]:
    steps = [step(*line.partition(" ")[::2]) for line in lines]
    return sass.Function(8, 0, 0, tuple(steps)).unset()


def test_a_register_that_nothing_has_written_is_told() -> None:
    # what ptxas 12.8 made of a place that is read in two ways
    assert unset("UIADD3 UR18, UP0, UR18, 0x20, URZ", "UIADD3.X UR19, UR19, -0x3ffffff0, URZ, UP0, !UPT") == (
        "UR18", "UR19",
    )  # fmt: skip
    assert unset("UMOV UR18, 0x400", "UIADD3 UR18, UP0, UR18, 0x20, URZ") == ()
    assert unset("IADD3 R1, R2, UR4, RZ", "R2UR UR4, R1") == ("UR4",)


def test_an_address_that_is_written_to_is_read() -> None:
    assert unset("STS.U8 [R3+UR9+0x10], R4", "UTMALDG.4D [UR8], [UR4]") == ("UR4", "UR8", "UR9")
    assert unset("STG.E desc[UR4][R2.64], R5") == ("UR4", "UR5")


def test_wide_registers_are_more_than_one() -> None:
    assert unset("ULDC.64 UR4, c[0x0][0x208]", "LDG.E R2, desc[UR4][R2.64]", "UIADD3.64 UR6, UR4, 0x2, URZ") == ()
    assert unset("UMOV UR4, 0x1", "LDG.E R2, desc[UR4][R2.64]") == ("UR5",)
    assert unset("UMOV UR4, 0x1", "UIADD3.64 UR6, UR4, 0x2, URZ") == ("UR5",)
    assert unset("UIMAD.WIDE.U32 UR4, UR8, 0x2, URZ", "UMOV UR6, UR5") == ("UR8",)
    assert unset("LDCU.128 UR4, c[0x0][0x10]", "UMOV UR8, UR7") == ()
    assert unset("UMOV UR6, 0x8", "ULDC.64 UR4, c[0x0][UR6+0x10]") == ()


def test_a_result_may_stand_behind_a_predicate_and_half_a_descriptor_be_unused() -> None:
    assert unset("R2UR.OR P1, UR4, R5", "ELECT P0, UR7, PT", "UMOV UR5, UR7", "UMOV UR5, UR4") == ()
    assert unset("ULOP3.LUT UP0, UR4, UR5, 0x7, URZ, 0xc0, !UPT", "UMOV UR6, UR4") == ("UR5",)
    assert unset("HGMMA.64x16x16.F32.BF16 R56, R64, gdesc[UR4].tnspB, R56") == ()
    assert unset("UISETP.GT.AND UP0, UPT, UR9, 0x2, UPT") == ("UR9",)


@pytest.mark.parametrize("listing", ["", "Function : k\n", "cuobjdump fatal: no such file"])
def test_what_is_no_listing_is_refused(listing: str) -> None:
    with pytest.raises(ValueError, match="expected what `cuobjdump -sass -res-usage` prints"):
        sass.parse(listing)
