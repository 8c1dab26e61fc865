"""The journal (jbd2): where its blocks are (area), how they look (format), replay (recovery, fast_commit).

`format` is pure. `recovery` and `fast_commit` read only; `mount_recovery` is what opening a volume calls.
"""
