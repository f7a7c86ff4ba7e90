"""The long fuzz: thousands of problems through every variant, what was wrong, and how far off each is beside naive."""
