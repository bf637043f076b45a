"""Pub/Sub from this machine: publishing, watching, and the emulator."""
