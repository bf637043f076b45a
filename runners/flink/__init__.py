"""Meterline on Flink: a cluster on this machine, jobs on it or on a cluster elsewhere."""
