"""From what charges come to, to what is billed: one file for each step, in the order that `bill.STEPS` has."""
