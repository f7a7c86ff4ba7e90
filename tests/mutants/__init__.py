"""Planted bugs: what tests the tests. `python -m tests.mutants` (`nox -s mutants`) says which law finds which.

`mutant` is what one is, the modules of a family have them, `checks` has the laws that they are put to, `trial` is the
process that does it, and `page` writes down what was found.
"""
