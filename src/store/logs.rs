//! Logs: appended and read, in compressed chunks. A chunk that has little in it is written anew with what comes:
//! a build that says little at a time is compressed well nevertheless.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::build_store::{LogPart, StoreError, build_key};
use sqlx::{AnyConnection, Row};

use super::{Store, unavailable, unreadable};

/// A chunk holds this many bytes at the most, before they are compressed.
const CHUNK: usize = 64 * 1024;
/// A last chunk of fewer bytes is written anew with what comes.
const SMALL: i64 = 16 * 1024;

/// Appends to a build's log of so many bytes, which hold so many when they are compressed; answers how many they
/// hold then.
pub(super) async fn append(
    tx: &mut AnyConnection,
    key: &str,
    length: u64,
    mut held: u64,
    text: &[u8],
) -> Result<u64, StoreError> {
    if text.is_empty() {
        return Ok(held);
    }
    let mut start = length;
    let last = sqlx::query(
        "SELECT start, length, data FROM chunks WHERE key = $1 ORDER BY start DESC LIMIT 1",
    );
    let last = last.bind(key).fetch_optional(&mut *tx).await.map_err(unavailable)?;
    let mut bytes = Vec::new();
    if let Some(row) = last
        && row.try_get::<i64, _>("length").map_err(unreadable)? < SMALL
    {
        let data: Vec<u8> = row.try_get("data").map_err(unreadable)?;
        start = row.try_get::<i64, _>("start").map_err(unreadable)?.unsigned_abs();
        held = held.saturating_sub(data.len() as u64);
        bytes = expanded(&data)?;
    }
    bytes.extend_from_slice(text);
    for chunk in bytes.chunks(CHUNK) {
        let data = compressed(chunk);
        held += data.len() as u64;
        sqlx::query(
            "INSERT INTO chunks (key, start, length, data) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (key, start) DO UPDATE SET length = excluded.length, data = excluded.data",
        )
        .bind(key)
        .bind(start as i64)
        .bind(chunk.len() as i64)
        .bind(data)
        .execute(&mut *tx)
        .await
        .map_err(unavailable)?;
        start += chunk.len() as u64;
    }
    Ok(held)
}

pub(super) async fn read(
    store: &Store,
    build: &BuildIdentity,
    offset: u64,
    most: usize,
) -> Result<Option<LogPart>, StoreError> {
    let (pool, key) = (store.there().await?, build_key(build));
    let known = sqlx::query("SELECT log_bytes FROM builds WHERE key = $1 AND queued = 1");
    let known = known.bind(&key).fetch_optional(pool).await.map_err(unavailable)?;
    let Some(known) = known else { return Ok(None) };
    let total = known.try_get::<i64, _>("log_bytes").map_err(unreadable)?.unsigned_abs();
    let end = offset.saturating_add(most as u64).min(total);
    let mut bytes = Vec::new();
    if offset >= end {
        return Ok(Some(LogPart { bytes, total }));
    }
    // A chunk may be longer by now than the log was a moment ago: only what was there is taken.
    let chunks = sqlx::query(
        "SELECT start, data FROM chunks \
         WHERE key = $1 AND start + length > $2 AND start < $3 ORDER BY start",
    );
    let chunks = chunks.bind(&key).bind(offset as i64).bind(end as i64).fetch_all(pool).await;
    for row in chunks.map_err(unavailable)? {
        let start = row.try_get::<i64, _>("start").map_err(unreadable)?.unsigned_abs();
        let data: Vec<u8> = row.try_get("data").map_err(unreadable)?;
        let chunk = expanded(&data)?;
        let within = |at: u64| {
            let at = usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX);
            at.min(chunk.len())
        };
        bytes.extend_from_slice(&chunk[within(offset)..within(end)]);
    }
    Ok(Some(LogPart { bytes, total }))
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

fn expanded(data: &[u8]) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    DeflateDecoder::new(data).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}
