"""Dataflow: where jobs go, their submission, and a Flex Template."""
