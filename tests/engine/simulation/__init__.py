"""An engine whose model is a checksum and whose KV cache is a dictionary: every law of batching without arithmetic.

The simulated executor writes who computed what (adapter version, salt, position, token) into the slot the plan gives a
row, and it reads back through the sequence's blocks all that the row sees. A block shared with the wrong
adapter, reused too early or forgotten shows at once, and the token drawn is a function of (adapter, tokens) alone, so
any change of batch must not change it.
"""
