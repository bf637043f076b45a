"""What billing means: pure functions on records; no Beam, no clock, no input or output."""
