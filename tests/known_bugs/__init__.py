"""Bugs that attention libraries shipped: the list, what became of each where it was looked for, and the page."""
