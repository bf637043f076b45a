"""`meterline metrics`: what ClickHouse holds and Flink says as numbers for Prometheus, and the alerts on them."""
