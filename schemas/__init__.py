"""What data looks like: records, the catalog, Arrow schemas and ClickHouse tables."""
