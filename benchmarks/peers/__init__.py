"""The library beside other ways to the same answers: ``python -m benchmarks.peers``.

A module per peer says how a user of it builds and asks; `CONTENDERS` is the list. `queries` has the questions with
their limits and checks, `race` the turns, `store` the file, `__main__` the plan and its options.
"""
