"""Price models, one file for each: the parts of `C(q)`, the price of a cumulative quantity q."""
