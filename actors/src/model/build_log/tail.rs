//! The last lines of a build, for its failure notice.
//!
//! Steps run beside each other, and one that goes on says more than the one that failed. So each stream of each step
//! that runs has last lines of its own, and when it is known which step failed, its come first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{BuildEvent, BuildLog, BuildLogListener, StepRef};

/// So many streams of steps that run have last lines of their own; those that were silent for longest have none.
const MOST_STREAMS: usize = 64;

/// Keeps the last lines.
#[derive(Debug, Default)]
pub(super) struct Tail(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Lines that came, of whatever step.
    count: u64,
    all: Lines,
    /// Of the steps that have not ended well, by the step's number and the stream.
    streams: BTreeMap<(u32, i64), Lines>,
    failed: Option<u32>,
}

/// The last lines of something, each with its place among all, within the bounds of a failure notice.
#[derive(Debug, Default)]
struct Lines {
    lines: VecDeque<(u64, String)>,
    bytes: usize,
}

impl Lines {
    fn push(&mut self, place: u64, line: String) {
        self.bytes += line.len();
        self.lines.push_back((place, line));
        while self.lines.len() > BuildLog::TAIL_LINES || self.bytes > BuildLog::TAIL_BYTES {
            let Some((_, gone)) = self.lines.pop_front() else { break };
            self.bytes -= gone.len();
        }
    }

    fn last(&self) -> u64 {
        self.lines.back().map_or(0, |(place, _)| *place)
    }
}

impl Tail {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line of output.
    pub(super) fn output(&self, step: Option<StepRef>, line: String) {
        self.lock().add(step, line);
    }

    pub(super) fn failed_at(&self, step: StepRef) {
        self.lock().failed = Some(step.number);
    }

    pub(super) fn lines(&self) -> Vec<String> {
        self.lock().lines()
    }

    fn heard(&self, step: Option<StepRef>, event: &BuildEvent) {
        match event {
            BuildEvent::Output(line) => self.lock().add(step, line.clone()),
            BuildEvent::StepStarted { name } => self.lock().begun(step, name),
            BuildEvent::StepFinished { .. } => {
                let mut state = self.lock();
                step.into_iter().for_each(|step| state.forget(step.number));
            }
            BuildEvent::Note(_) => {}
        }
    }
}

impl State {
    fn add(&mut self, step: Option<StepRef>, line: String) {
        self.count += 1;
        if let Some(step) = step {
            let of_stream = self.streams.entry((step.number, step.stream)).or_default();
            of_stream.push(self.count, line.clone());
            self.keep_few_streams();
        }
        self.all.push(self.count, line);
    }

    fn begun(&mut self, step: Option<StepRef>, name: &str) {
        // Numbers begin anew where an engine is asked again.
        step.into_iter().for_each(|step| self.forget(step.number));
        self.count += 1;
        self.all.push(self.count, format!("=> {name}"));
    }

    /// What a step wrote counts no more than what others did.
    fn forget(&mut self, step: u32) {
        self.streams.retain(|(number, _), _| *number != step);
    }

    fn keep_few_streams(&mut self) {
        if self.streams.len() <= MOST_STREAMS {
            return;
        }
        let silent = self.streams.iter().min_by_key(|(_, lines)| lines.last());
        if let Some(stream) = silent.map(|(stream, _)| *stream) {
            self.streams.remove(&stream);
        }
    }

    fn lines(&self) -> Vec<String> {
        let streams: Vec<&Lines> = self
            .streams
            .iter()
            .filter(|((number, _), _)| Some(*number) == self.failed)
            .map(|(_, lines)| lines)
            .collect();
        let mut notice = Notice::default();
        // Each stream has its share, then whichever has more to say; what is left is for all.
        for lines in &streams {
            notice.take(lines, streams.len());
        }
        streams.iter().for_each(|lines| notice.take(lines, 1));
        notice.take(&self.all, 1);
        notice.lines.into_values().cloned().collect()
    }
}

/// What a failure notice shows, in the order in which it came.
#[derive(Default)]
struct Notice<'a> {
    lines: BTreeMap<u64, &'a String>,
    bytes: usize,
}

impl<'a> Notice<'a> {
    /// Takes the last of these lines that there is room for, and no more than one of so many parts of it all.
    fn take(&mut self, from: &'a Lines, parts: usize) {
        let (most_lines, most_bytes) = match parts {
            1 => (BuildLog::TAIL_LINES, BuildLog::TAIL_BYTES),
            parts => (
                self.lines.len() + BuildLog::TAIL_LINES / parts,
                self.bytes + BuildLog::TAIL_BYTES / parts,
            ),
        };
        for (place, line) in from.lines.iter().rev() {
            if self.lines.contains_key(place) {
                continue;
            }
            if self.lines.len() >= most_lines || self.bytes + line.len() > most_bytes {
                break;
            }
            self.bytes += line.len();
            self.lines.insert(*place, line);
        }
    }
}

impl BuildLogListener for Tail {
    fn hear(&self, event: &BuildEvent) {
        self.heard(None, event);
    }

    fn hear_of_step(&self, step: StepRef, event: &BuildEvent) {
        match (step.internal, event) {
            (false, _) | (_, BuildEvent::Output(_)) => self.heard(Some(step), event),
            (true, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn of(number: u32, stream: i64) -> StepRef {
        StepRef { number, internal: false, stream }
    }

    fn write(tail: &Tail, step: StepRef, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            BuildLogListener::hear_of_step(tail, step, &BuildEvent::Output(line));
        }
    }

    fn numbered(what: &str, count: usize) -> impl Iterator<Item = String> {
        (1..=count).map(move |number| format!("{what} {number}"))
    }

    fn is_bounded(lines: &[String]) -> bool {
        let bytes: usize = lines.iter().map(String::len).sum();
        lines.len() <= BuildLog::TAIL_LINES && bytes <= BuildLog::TAIL_BYTES
    }

    #[test]
    fn what_the_failed_step_said_stays_however_much_others_say() {
        let tail = Tail::default();
        write(&tail, of(1, 1), numbered("before", 3));
        write(&tail, of(2, 2), ["the cause".to_owned()]);
        write(&tail, of(1, 1), numbered("noise", 10_000));
        assert!(!tail.lines().contains(&"the cause".to_owned()), "nobody has said which it was");
        tail.failed_at(of(2, 1));
        let lines = tail.lines();
        assert_eq!((lines[0].as_str(), lines.len()), ("the cause", BuildLog::TAIL_LINES));
        assert_eq!(lines.last().map(String::as_str), Some("noise 10000"));
    }

    #[test]
    fn neither_stream_of_the_failed_step_drives_out_the_other() {
        let tail = Tail::default();
        write(&tail, of(1, 2), ["the cause".to_owned()]);
        write(&tail, of(1, 1), std::iter::repeat_n("x".repeat(1_000), 400));
        write(&tail, of(1, 1), ["the end".to_owned()]);
        tail.failed_at(of(1, 1));
        let lines = tail.lines();
        assert!(is_bounded(&lines));
        assert_eq!(lines[0], "the cause");
        assert_eq!(lines.last().map(String::as_str), Some("the end"));
        assert!(lines.len() > 10, "what one stream leaves is the other's: {}", lines.len());
    }

    #[test]
    fn a_step_that_ended_well_or_begins_anew_keeps_nothing_of_its_own() {
        let tail = Tail::default();
        let hear = |event: BuildEvent| BuildLogListener::hear_of_step(&tail, of(1, 1), &event);
        let name = || "RUN x".to_owned();
        write(&tail, of(1, 1), ["first".to_owned()]);
        hear(BuildEvent::StepStarted { name: name() });
        assert_eq!(tail.lock().streams.len(), 0);
        write(&tail, of(1, 1), ["second".to_owned()]);
        hear(BuildEvent::StepFinished { name: name(), cached: false, took: Duration::ZERO });
        assert_eq!(tail.lock().streams.len(), 0);
        assert_eq!(tail.lines(), ["first", "=> RUN x", "second"]);
        for number in 0..1_000 {
            write(&tail, of(number, 1), ["x".to_owned()]);
        }
        assert_eq!(tail.lock().streams.len(), MOST_STREAMS);
    }
}
