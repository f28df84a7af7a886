"""Cleaning: raw text to text worth training on, one described step after the other.

    document ─ repair ─ normalise ─ controls ─ whitespace ─ private ─ language ─ rules ─ evaluation sets ─┐
    document ─ ...                                                                                        ├─ duplicates ─ split ─ tokens
    document ─ ...                                                                                        ┘
               changes its text                                 drops it, by a rule with a value          looks at all together

Each document leaves a record of what was changed, and of the first rule that it broke (records.py).
"""
