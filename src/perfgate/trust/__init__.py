"""How far a verdict can be trusted: what was found out about perfgate itself, and what others' rules make of the same.

    ``perfgate ab`` on a GPU -> its journal -> `collect` -> `data`: one line a run
      -> `resample`: the same samples through `rivals`; `suites`: runs drawn from the spreads -> `page`: docs/trust.md

`clocks` has the page's tables of spreads by two clocks, `starts` what starts of machines differ by, `gates` what a
baseline of one start says of another, `table` writes a table, `chance` has the probabilities, `command` is
``perfgate calibrate``.
"""
