// What an analyst's or engine's own client does, with ClickHouse's client for Node.js. Prints one JSON object.
import { createClient } from '@clickhouse/client'
import { Readable } from 'node:stream'

const [url, reader_password] = process.argv.slice(2)
const client = createClient({ url, compression: { request: true, response: true } })
const found = {}
const failure = async (call) => { try { await call(); return null } catch (error) { return [error.code, error.type] } }

found.ping = (await client.ping()).success
await client.command({ query: 'CREATE OR REPLACE TABLE from_node (id UInt64, name String) ENGINE = MergeTree ORDER BY id' })
const inserted = await client.insert({
  table: 'from_node',
  values: Readable.from(Array.from({ length: 1000 }, (_, id) => ({ id: String(id), name: `n${id}` })), { objectMode: true }),
  format: 'JSONEachRow',
})
found.written = inserted.summary.written_rows
const rows = await client.query({
  query: 'SELECT id, name FROM from_node WHERE id IN {ids: Array(UInt64)} AND name != {other: String} ORDER BY id',
  query_params: { ids: [1, 2, 3], other: "n3'\t" },
  query_id: 'of-node',
  clickhouse_settings: { output_format_json_quote_64bit_integers: 1 },
  format: 'JSONEachRow',
})
found.query_id = rows.query_id
found.rows = await rows.json()
found.count = (await (await client.query({ query: 'SELECT count() AS n FROM from_node' })).json()).data
let streamed = 0
const stream = (await client.query({ query: 'SELECT number FROM numbers(500000)', format: 'JSONCompactEachRow' })).stream()
for await (const block of stream) streamed += block.length
found.streamed = streamed
found.unknown = await failure(() => client.query({ query: 'SELECT * FROM nothing_here' }))
found.broken_off = (await failure(async () => {
  const result = await client.query({ query: 'SELECT throwIf(number = 3000000) FROM numbers(4000000)', format: 'JSONEachRow' })
  for await (const block of result.stream()) void block
})) !== null
const session = createClient({ url, session_id: 'node' })
await session.command({ query: 'CREATE TEMPORARY TABLE mine (a UInt8)' })
await session.insert({ table: 'mine', values: [{ a: 7 }], format: 'JSONEachRow' })
found.temporary = await (await session.query({ query: 'SELECT a FROM mine', format: 'JSONEachRow' })).json()
const reader_url = Object.assign(new URL(url), { username: 'analyst', password: reader_password })
const reader = createClient({ url: reader_url })
found.read = await (await reader.query({ query: 'SELECT max(id) AS id FROM from_node', format: 'JSONEachRow' })).json()
found.refused = await failure(() => reader.insert({ table: 'from_node', values: [{ id: '5', name: '' }], format: 'JSONEachRow' }))
await Promise.all([client.close(), session.close(), reader.close()])
console.log(JSON.stringify(found))
