"""What is deployed: one file per job, wiring stages in order."""
