"""An embedded ClickHouse offered on ClickHouse's HTTP interface: `meterline clickhouse serve`."""
