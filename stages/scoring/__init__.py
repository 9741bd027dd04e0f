"""What a model's outputs are worth: every row scored alone (here), then summed up or compared in pairs.

`summary` and `comparison` need numpy, so whoever only scores rows does not import them.
"""

from stages.scoring.rows import RowScore, same_value, score_row

__all__ = ["RowScore", "same_value", "score_row"]
