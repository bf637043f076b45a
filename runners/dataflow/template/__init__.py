"""A Flex Template: the stream on Dataflow, started by whoever has neither Python nor Meterline."""
