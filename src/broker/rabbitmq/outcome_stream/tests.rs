//! The ledger on a log in memory: what a log can do to it.

use super::*;

/// A log that all workers of a test share.
#[derive(Clone)]
struct LogInMemory(Arc<watch::Sender<Lines>>);

#[derive(Default)]
struct Lines {
    lines: Vec<Vec<u8>>,
    /// Counts the losses of the readers' connections.
    losses: u64,
    follow_fault: Option<BrokerError>,
}

impl LogInMemory {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(Lines::default())))
    }

    /// From now on nobody can read it, and who does loses it.
    fn lose(&self, follow_fault: Option<BrokerError>) {
        self.0.send_modify(|log| {
            log.losses += 1;
            log.follow_fault = follow_fault;
        });
    }
}

impl Log for LogInMemory {
    fn append(&self, line: Vec<u8>) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.0.send_modify(|log| log.lines.push(line));
            Ok(())
        })
    }

    fn follow(&self) -> BoxFuture<'_, Result<mpsc::Receiver<Vec<u8>>, BrokerError>> {
        Box::pin(async move {
            let mut log = self.0.subscribe();
            let losses = log.borrow().losses;
            if let Some(error) = &log.borrow().follow_fault {
                return Err(error.clone());
            }
            let (lines_in, lines) = mpsc::channel(16);
            tokio::spawn(async move {
                for read in 0.. {
                    let more =
                        log.wait_for(|log| log.losses != losses || log.lines.len() > read).await;
                    let line = more.ok().filter(|log| log.losses == losses);
                    let Some(line) = line.map(|log| log.lines[read].clone()) else { return };
                    if lines_in.send(line).await.is_err() {
                        return;
                    }
                }
            });
            Ok(lines)
        })
    }
}

fn worker(log: &LogInMemory, longest_wait: Duration) -> StreamLedger {
    StreamLedger::start(Arc::new(log.clone()), longest_wait)
}

fn copy() -> OutcomeCopy {
    OutcomeCopy::first("request".to_owned(), None)
}

fn away() -> BrokerError {
    BrokerError::Unavailable("the test wants it so".to_owned())
}

#[tokio::test]
async fn a_claim_that_is_not_read_back_is_given_up() {
    let log = LogInMemory::new();
    let (worker, copy) = (worker(&log, Duration::from_secs(1)), copy());
    // Nobody can follow the log any more, and it can still be written.
    worker.claim(&copy).await.expect("written and read");
    log.lose(Some(away()));
    assert!(worker.claim(&copy).await.is_err());
}

#[tokio::test]
async fn a_log_that_is_refused_for_a_while_is_read_when_it_is_there() {
    let log = LogInMemory::new();
    log.lose(Some(BrokerError::Refused("the test wants it so".to_owned())));
    let (worker, copy) = (worker(&log, Duration::from_secs(3)), copy());
    assert!(worker.claim(&copy).await.is_err());
    log.lose(None);
    assert_eq!(worker.claim(&copy).await, Ok(Verdict::Notify));
}

#[tokio::test]
async fn a_log_that_was_lost_is_read_from_its_beginning() {
    let log = LogInMemory::new();
    let (worker, copy) = (worker(&log, LONGEST_WAIT), copy());
    assert_eq!(worker.claim(&copy).await, Ok(Verdict::Notify));
    log.lose(None);
    let other = OutcomeCopy::first("request".to_owned(), None);
    assert_eq!(worker.claim(&other).await, Ok(Verdict::Drop));
}

#[tokio::test]
async fn lines_that_nobody_can_read_are_left_out() {
    let log = LogInMemory::new();
    for line in [b"".as_slice(), b"{", b"{\"step\":\"unheard of\"}", b"\xff"] {
        log.append(line.to_vec()).await.expect("it takes everything");
    }
    assert_eq!(worker(&log, LONGEST_WAIT).claim(&copy()).await, Ok(Verdict::Notify));
}
