"""Which module makes the logits that a model returns, and what its weight is.

Decided by replacing what modules give, and compared with what the model returns, batch by batch.
"""
