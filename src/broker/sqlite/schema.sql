-- What is in the queue's file. Times are milliseconds since 1970.

-- Whoever deletes a queue deletes what is in it, and nothing more goes in.
CREATE TABLE queues (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- A message's id is its place in its queue.
CREATE TABLE messages (
    id INTEGER PRIMARY KEY,
    queue INTEGER NOT NULL REFERENCES queues (id) ON DELETE CASCADE,
    -- Who has it in hand, and as which delivery; null: it waits.
    lease INTEGER,
    tag INTEGER,
    redeliveries INTEGER NOT NULL DEFAULT 0,
    given_up INTEGER NOT NULL DEFAULT 0,
    -- When it is put in its queue, and how long it was to wait for that; null: it is there.
    due INTEGER,
    delay INTEGER,
    -- Its place in the backlog; null: it is in another queue.
    user TEXT,
    returned INTEGER NOT NULL DEFAULT 0,
    -- In seconds.
    sent_at INTEGER,
    message_id TEXT,
    traceparent TEXT,
    envelope TEXT,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX ready ON messages (queue) WHERE lease IS NULL AND due IS NULL AND user IS NULL;
CREATE INDEX backlog ON messages (user, returned DESC) WHERE lease IS NULL AND user IS NOT NULL;
CREATE INDEX delayed ON messages (due) WHERE due IS NOT NULL;
CREATE INDEX in_hand ON messages (lease, tag) WHERE lease IS NOT NULL;

-- Whoever has messages in hand. No id is ever used again.
CREATE TABLE leases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    until INTEGER NOT NULL
) STRICT;

-- Whose turn it is: how many requests of a user wait, when one was last taken (counted in turns; 0: never), and
-- with which request the user came.
CREATE TABLE turns (
    user TEXT PRIMARY KEY,
    waiting INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    since INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX turns_next ON turns (turn, since) WHERE waiting > 0;
CREATE INDEX turns_over ON turns (turn) WHERE waiting = 0;

CREATE TRIGGER request_came AFTER INSERT ON messages
WHEN NEW.user IS NOT NULL AND NEW.lease IS NULL BEGIN
    INSERT INTO turns VALUES (NEW.user, 1, 0, NEW.id)
    ON CONFLICT DO UPDATE SET waiting = waiting + 1;
END;
CREATE TRIGGER request_taken AFTER UPDATE OF lease, user ON messages
WHEN OLD.user IS NOT NULL AND OLD.lease IS NULL BEGIN
    UPDATE turns SET waiting = waiting - 1 WHERE user = OLD.user;
END;
CREATE TRIGGER request_returned AFTER UPDATE OF lease, user ON messages
WHEN NEW.user IS NOT NULL AND NEW.lease IS NULL BEGIN
    INSERT INTO turns VALUES (NEW.user, 1, 0, NEW.id)
    ON CONFLICT DO UPDATE SET waiting = waiting + 1;
END;
CREATE TRIGGER request_gone AFTER DELETE ON messages
WHEN OLD.user IS NOT NULL AND OLD.lease IS NULL BEGIN
    UPDATE turns SET waiting = waiting - 1 WHERE user = OLD.user;
END;

CREATE TABLE cancellations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;

CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kept_until INTEGER NOT NULL,
    message_id TEXT,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX dead_letters_end ON dead_letters (kept_until);

-- The outcome ledger: what is known of each request, as JSON.
CREATE TABLE claims (
    request TEXT PRIMARY KEY,
    written_at INTEGER NOT NULL,
    known TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX claims_age ON claims (written_at);
