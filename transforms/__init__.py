"""How records flow: one composite transform per stage."""
