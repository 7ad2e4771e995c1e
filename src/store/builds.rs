//! Builds: written, found, listed.

use std::collections::BTreeMap;

use image_builder_actors::model::identity::BuildIdentity;
use image_builder_actors::ports::build_store::{
    Acceptance, BuildState, Change, Cursor, Filter, Page, Recorded, RequestedBuild, StoreError,
    StoredBuild, Tally, UserTally, batch_name, build_key, nanos,
};
use sqlx::any::AnyRow;
use sqlx::{AnyConnection, Row};
use time::OffsetDateTime;

use super::{Dialect, Store, logs, unavailable, unreadable};

const COLUMNS: &str = "build_id, user_id, request, application_id, connector, repo, requested_at, \
    queued, state, commit_id, updated_at, ended_at, attempts, outcome, log_bytes, log_held";

/// A build's row.
pub(super) struct Stored {
    pub build: StoredBuild,
    /// Whether it is known to be in a queue, or to have been.
    pub is_queued: bool,
    /// How many bytes its compressed log holds.
    pub log_held: u64,
}

pub(super) async fn accept(
    store: &Store,
    requested: &RequestedBuild,
) -> Result<Acceptance, StoreError> {
    let key = build_key(&requested.build);
    let mut tx = store.write().await?;
    insert(&mut tx, &key, requested, requested.requested_at, false).await?;
    let known = locked(store, &mut tx, &key).await?;
    let mut known = known.ok_or_else(|| unreadable("a row that was just written is gone"))?;
    if !known.is_queued && requested.replaces(&known.build.requested) {
        let build = StoredBuild::of(requested.clone(), requested.requested_at);
        known = Stored { build, is_queued: false, log_held: 0 };
        update(&mut tx, &key, &known).await?;
    }
    tx.commit().await.map_err(unavailable)?;
    Ok(match known.build.requested.request == requested.request {
        false => Acceptance::OtherRequest,
        true if known.is_queued => Acceptance::Known,
        true => Acceptance::New { accepted_at: known.build.requested.requested_at },
    })
}

pub(super) async fn record(store: &Store, changes: &[Recorded]) -> Result<(), StoreError> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut tx = store.write().await?;
    let is_new = sqlx::query(
        "INSERT INTO batches (name, recorded_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
    )
    .bind(batch_name(changes))
    .bind(nanos(OffsetDateTime::now_utc()))
    .execute(&mut *tx)
    .await
    .map_err(unavailable)?;
    if is_new.rows_affected() == 0 {
        return Ok(());
    }
    // Everybody takes the rows in the same order, so that no two wait for each other.
    let mut of_builds = BTreeMap::<String, Vec<&Recorded>>::new();
    for change in changes {
        of_builds.entry(build_key(&change.build)).or_default().push(change);
    }
    for (key, changes) in of_builds {
        apply(store, &mut tx, &key, &changes).await?;
    }
    if store.dialect == Dialect::Postgres {
        super::changes::announce(&mut tx).await.map_err(unavailable)?;
    }
    tx.commit().await.map_err(unavailable)
}

/// Applies the changes of one build.
async fn apply(
    store: &Store,
    tx: &mut AnyConnection,
    key: &str,
    changes: &[&Recorded],
) -> Result<(), StoreError> {
    let mut known = locked(store, tx, key).await?;
    let mut output = String::new();
    for Recorded { at, change, .. } in changes {
        if let Change::Requested(requested) = change {
            let is_other = |known: &Stored| {
                !known.is_queued && known.build.requested.request != requested.request
            };
            if known.is_none() {
                insert(tx, key, requested, *at, true).await?;
                known = locked(store, tx, key).await?;
            }
            if known.as_ref().is_some_and(is_other) {
                let build = StoredBuild::of(requested.clone(), *at);
                known = Some(Stored { build, is_queued: true, log_held: 0 });
            }
        }
        let Some(known) = &mut known else { continue };
        known.is_queued |= matches!(change, Change::Requested(_));
        known.build.apply(*at, change);
        if let Change::Output(text) = change {
            output.push_str(text);
        }
    }
    let Some(mut known) = known else { return Ok(()) };
    let length = known.build.log_bytes;
    known.log_held = logs::append(tx, key, length, known.log_held, output.as_bytes()).await?;
    known.build.log_bytes += output.len() as u64;
    update(tx, key, &known).await
}

/// Makes a row, unless there is one.
async fn insert(
    tx: &mut AnyConnection,
    key: &str,
    requested: &RequestedBuild,
    at: OffsetDateTime,
    is_queued: bool,
) -> Result<(), StoreError> {
    let RequestedBuild { build, request, application_id, connector, repo, requested_at } =
        requested;
    sqlx::query(
        "INSERT INTO builds (key, build_id, user_id, request, application_id, connector, repo, \
         requested_at, queued, state, updated_at, attempts, log_bytes, log_held) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, '[]', 0, 0) \
         ON CONFLICT (key) DO NOTHING",
    )
    .bind(key)
    .bind(text(&build.build_id))
    .bind(build.user_id.as_deref().map(text))
    .bind(text(request))
    .bind(application_id.as_deref().map(text))
    .bind(connector.as_deref().map(text))
    .bind(repo.as_deref().map(text))
    .bind(nanos(*requested_at))
    .bind(i64::from(is_queued))
    .bind(BuildState::Queued.as_str())
    .bind(nanos(at))
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

async fn update(tx: &mut AnyConnection, key: &str, stored: &Stored) -> Result<(), StoreError> {
    let StoredBuild {
        requested,
        state,
        commit,
        updated_at,
        ended_at,
        attempts,
        outcome,
        log_bytes,
    } = &stored.build;
    let attempts = serde_json::to_string(attempts).map_err(unreadable)?;
    sqlx::query(
        "UPDATE builds SET request = $2, application_id = $3, connector = $4, repo = $5, \
         requested_at = $6, queued = $7, state = $8, commit_id = $9, updated_at = $10, \
         ended_at = $11, attempts = $12, outcome = $13, log_bytes = $14, log_held = $15 \
         WHERE key = $1",
    )
    .bind(key)
    .bind(text(&requested.request))
    .bind(requested.application_id.as_deref().map(text))
    .bind(requested.connector.as_deref().map(text))
    .bind(requested.repo.as_deref().map(text))
    .bind(nanos(requested.requested_at))
    .bind(i64::from(stored.is_queued))
    .bind(state.as_str())
    .bind(commit.as_deref().map(text))
    .bind(nanos(*updated_at))
    .bind(ended_at.map(nanos))
    .bind(text(&attempts))
    .bind(outcome.as_deref().map(text))
    .bind(*log_bytes as i64)
    .bind(stored.log_held as i64)
    .execute(tx)
    .await
    .map_err(unavailable)?;
    Ok(())
}

/// A build's row, which nobody else writes until the transaction ends.
async fn locked(
    store: &Store,
    tx: &mut AnyConnection,
    key: &str,
) -> Result<Option<Stored>, StoreError> {
    let query = format!("SELECT {COLUMNS} FROM builds WHERE key = $1{}", store.dialect.locked());
    let row = sqlx::query(&query).bind(key).fetch_optional(tx).await.map_err(unavailable)?;
    row.as_ref().map(stored).transpose()
}

pub(super) async fn of_id(store: &Store, build_id: &str) -> Result<Vec<StoredBuild>, StoreError> {
    let query =
        format!("SELECT {COLUMNS} FROM builds WHERE build_id = $1 AND queued = 1 ORDER BY key");
    let rows = sqlx::query(&query).bind(text(build_id)).fetch_all(store.there().await?).await;
    rows.map_err(unavailable)?.iter().map(|row| Ok(stored(row)?.build)).collect()
}

pub(super) async fn list(
    store: &Store,
    filter: &Filter,
    cursor: Option<&str>,
    most: usize,
) -> Result<Page, StoreError> {
    let after = cursor.map(str::parse::<Cursor>).transpose()?;
    let Filter { state, user_id, application_id, repo, commit, build_id, search } = filter;
    let mut query = format!("SELECT {COLUMNS} FROM builds WHERE queued = 1");
    let mut values = Vec::new();
    let state = state.map(|state| state.as_str().to_owned());
    let equal = [
        ("state", &state),
        ("user_id", user_id),
        ("application_id", application_id),
        ("repo", repo),
        ("build_id", build_id),
    ];
    for (column, value) in equal {
        if let Some(value) = value {
            values.push(text(value));
            query.push_str(&format!(" AND {column} = ${}", values.len()));
        }
    }
    if let Some(commit) = commit {
        values.push(text(commit));
        let (length, at) = (commit.chars().count(), values.len());
        query.push_str(&format!(" AND substr(commit_id, 1, {length}) = ${at}"));
    }
    if let Some(search) = search {
        values.push(text(search));
        let (length, at) = (search.chars().count(), values.len());
        query.push_str(&format!(
            " AND (user_id = ${at} OR application_id = ${at} OR repo = ${at} \
             OR substr(build_id, 1, {length}) = ${at} OR substr(commit_id, 1, {length}) = ${at})"
        ));
    }
    if let Some(Cursor { requested_at, key }) = &after {
        values.push(key.clone());
        let at = values.len();
        query.push_str(&format!(" AND (requested_at, key) < ({requested_at}, ${at})"));
    }
    // One more than is shown: it tells whether there is a next page.
    let limit = most.saturating_add(1).min(i64::MAX as usize);
    query.push_str(&format!(" ORDER BY requested_at DESC, key DESC LIMIT {limit}"));
    let mut statement = sqlx::query(&query);
    for value in values {
        statement = statement.bind(value);
    }
    let rows = statement.fetch_all(store.there().await?).await.map_err(unavailable)?;
    let builds = rows.iter().take(most).map(|row| Ok(stored(row)?.build));
    let builds = builds.collect::<Result<Vec<_>, StoreError>>()?;
    let next = builds.last().filter(|_| rows.len() > most);
    let next = next.map(|last| Cursor::of(&last.requested).to_string());
    Ok(Page { builds, next })
}

pub(super) async fn tally(store: &Store) -> Result<Tally, StoreError> {
    let pool = store.there().await?;
    // An index answers it alone: a build that something was done for was in a queue.
    let states = "SELECT state, COUNT(*) AS builds FROM builds WHERE state <> 'queued' GROUP BY state \
         UNION ALL SELECT 'queued', COUNT(*) FROM builds WHERE state = 'queued' AND queued = 1";
    let states = sqlx::query(states).fetch_all(pool).await.map_err(unavailable)?;
    let users = format!(
        "SELECT user_id, SUM(CASE WHEN state IN ('queued', 'waiting') THEN 1 ELSE 0 END) AS waiting, \
         COUNT(*) AS builds FROM builds WHERE queued = 1 \
         AND state IN ('queued', 'fetching', 'building', 'pushing', 'waiting') \
         GROUP BY user_id ORDER BY builds DESC, user_id LIMIT {}",
        Tally::MOST_USERS
    );
    let users = sqlx::query(&users).fetch_all(pool).await.map_err(unavailable)?;
    let count = |row: &AnyRow, column: &str| -> Result<u64, sqlx::Error> {
        Ok(row.try_get::<i64, _>(column)?.unsigned_abs())
    };
    let in_state = |row: &AnyRow| -> Result<_, StoreError> {
        let name: String = row.try_get("state").map_err(unreadable)?;
        let state = BuildState::from_name(&name);
        let state = state.ok_or_else(|| unreadable(format!("a state `{name}`")))?;
        Ok((state, count(row, "builds").map_err(unreadable)?))
    };
    let of_user = |row: &AnyRow| -> Result<_, sqlx::Error> {
        let (waiting, all) = (count(row, "waiting")?, count(row, "builds")?);
        Ok(UserTally {
            user_id: row.try_get("user_id")?,
            waiting,
            in_hand: all.saturating_sub(waiting),
        })
    };
    let states = states.iter().map(in_state).collect::<Result<Vec<_>, _>>()?;
    Ok(Tally {
        states: states.into_iter().filter(|(_, count)| *count > 0).collect(),
        users: users.iter().map(of_user).collect::<Result<_, _>>().map_err(unreadable)?,
    })
}

/// A row, read.
fn stored(row: &AnyRow) -> Result<Stored, StoreError> {
    let read = || -> Result<_, sqlx::Error> {
        let requested = RequestedBuild {
            build: BuildIdentity {
                build_id: row.try_get("build_id")?,
                user_id: row.try_get("user_id")?,
            },
            request: row.try_get("request")?,
            application_id: row.try_get("application_id")?,
            connector: row.try_get("connector")?,
            repo: row.try_get("repo")?,
            requested_at: time(row.try_get("requested_at")?),
        };
        let state: String = row.try_get("state")?;
        let attempts: String = row.try_get("attempts")?;
        let log_held = row.try_get::<i64, _>("log_held")?.unsigned_abs();
        let build = StoredBuild {
            requested,
            state: BuildState::Queued,
            commit: row.try_get("commit_id")?,
            updated_at: time(row.try_get("updated_at")?),
            ended_at: row.try_get::<Option<i64>, _>("ended_at")?.map(time),
            attempts: Vec::new(),
            outcome: row.try_get("outcome")?,
            log_bytes: row.try_get::<i64, _>("log_bytes")?.unsigned_abs(),
        };
        let is_queued = row.try_get::<i64, _>("queued")? != 0;
        Ok((Stored { build, is_queued, log_held }, state, attempts))
    };
    let (mut stored, state, attempts) = read().map_err(unreadable)?;
    stored.build.state =
        BuildState::from_name(&state).ok_or_else(|| unreadable(format!("a state `{state}`")))?;
    stored.build.attempts = serde_json::from_str(&attempts).map_err(unreadable)?;
    Ok(stored)
}

/// A text that both databases can hold: PostgreSQL knows no NUL.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn time(nanos: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(nanos.into())
        .expect("64 bits of nanoseconds reach from 1677 to 2262")
}
