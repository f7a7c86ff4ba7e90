"""How far a verdict can be trusted: what was found out about perfgate itself, and what others' rules make of the same.

    runs on a GPU -> `data`: one line a run -> `resample`: the same samples through `rivals` -> `page`: docs/trust.md

`chance` has the probabilities, `command` is ``perfgate calibrate``.
"""
