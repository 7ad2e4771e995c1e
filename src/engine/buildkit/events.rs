//! What the engine tells while it builds.

use std::collections::HashMap;
use std::time::Duration;

use bollard_buildkit_proto::google::protobuf::Timestamp;
use bollard_buildkit_proto::moby::buildkit::v1::{StatusResponse, Vertex, VertexLog};
use image_builder_actors::model::build_log::{BuildEvent, BuildLog, StepRef};

use super::cache::{self, is_about_cache};
use super::faults::{FailedStep, is_cancelled};
use super::misses::Misses;
use crate::engine::faults::scrub;

/// A line of output that is longer is cut here, in bytes. Longer than what the progress shows, so
/// that a secret is still whole when it is looked for.
const LINE_BYTES: usize = 64 * 1024;

/// The step in which the engine reads the Dockerfile.
const DEFINITION: &str = "[internal] load build definition";

/// The step in which it makes an image of what all others made.
const STORING: &str = "exporting to image";

/// How the engine calls a step's standard output.
const STDOUT: i64 = 1;

/// What a line counts beside its text, in bytes: about what a log writes around it.
const AROUND_LINE: u64 = 128;

/// Follows one build: turns the engine's news into progress, and keeps how it ended.
pub(super) struct Follower<'a> {
    progress: &'a BuildLog,
    steps: HashMap<String, Step>,
    /// Steps that have begun.
    begun: u32,
    output: Output<'a>,
    /// Digest and error of the step that failed first by itself.
    failed: Option<(String, String)>,
    misses: Misses,
}

#[derive(Default)]
struct Step {
    name: String,
    /// Counted from 1; 0 = it has not begun.
    number: u32,
    finished: bool,
    /// What was written and is not a whole line yet, for each of the step's streams.
    partial: HashMap<i64, Vec<u8>>,
}

impl<'a> Follower<'a> {
    /// `output_bytes` is what the build may write to the log, in bytes.
    pub(super) fn new(progress: &'a BuildLog, output_bytes: u64, misses: Misses) -> Self {
        Self {
            progress,
            steps: HashMap::new(),
            begun: 0,
            output: Output { progress, left: output_bytes, limit: output_bytes, over: false },
            failed: None,
            misses,
        }
    }

    /// Takes the next news of the build.
    pub(super) fn status(&mut self, status: StatusResponse) {
        status.vertexes.iter().for_each(|vertex| self.misses.announced(vertex));
        for vertex in &status.vertexes {
            self.started(vertex);
            // Several steps can begin and end within one answer: each is told of as a whole.
            if status.logs.iter().all(|log| log.vertex != vertex.digest) {
                self.finished(vertex);
            }
        }
        for log in status.logs {
            self.log(log);
        }
        for vertex in &status.vertexes {
            self.finished(vertex);
        }
    }

    /// The step that failed: the one of this digest, where the engine names one.
    pub(super) fn failed(&self, digest: Option<&str>) -> Option<FailedStep> {
        let (told, error) = self.failed.as_ref().map_or((None, ""), |(d, e)| (Some(d.as_str()), e));
        let digest = digest.filter(|digest| self.steps.contains_key(*digest)).or(told)?;
        let error = if told == Some(digest) { error.to_owned() } else { String::new() };
        let step = self.steps.get(digest)?;
        Some(FailedStep { name: step.name.clone(), error })
    }

    /// The build has failed, at the step of this digest where the engine names one: what that step wrote last is
    /// what its user has to see.
    pub(super) fn has_failed(&mut self, digest: Option<&str>) {
        let told = self.failed.as_ref().map(|(digest, _)| digest.as_str());
        let known = digest.filter(|digest| self.steps.contains_key(*digest)).or(told);
        let Some(step) = known.map(str::to_owned).and_then(|digest| self.steps.get_mut(&digest))
        else {
            return;
        };
        step.write_rest(&mut self.output);
        self.progress.failed_at(step.reference(STDOUT));
    }

    /// Whether the engine has read the Dockerfile and begun none of its steps: what goes wrong then is the
    /// Dockerfile itself.
    pub(super) fn reads_dockerfile(&self) -> bool {
        let read = |step: &Step| step.finished && step.name.starts_with(DEFINITION);
        self.steps.values().any(read) && self.steps.values().all(|step| is_internal(&step.name))
    }

    fn started(&mut self, vertex: &Vertex) {
        let step = self.steps.entry(vertex.digest.clone()).or_default();
        step.name.clone_from(&vertex.name);
        if vertex.started.is_some() && step.number == 0 {
            self.begun += 1;
            step.number = self.begun;
            let event = BuildEvent::StepStarted { name: step.name.clone() };
            self.progress.tell_of_step(step.reference(STDOUT), event);
            self.misses.begun(vertex).into_iter().for_each(|miss| self.progress.note(miss));
            if step.name.starts_with(STORING) {
                self.progress.storing();
            }
        }
    }

    /// What is known of the build cache now.
    pub(super) fn into_misses(self) -> Misses {
        self.misses
    }

    fn finished(&mut self, vertex: &Vertex) {
        let Some(step) = self.steps.get_mut(&vertex.digest) else { return };
        if is_about_cache(&vertex.name) && !vertex.error.is_empty() && !step.finished {
            step.finished = true;
            let warning = cache::warning(&vertex.name, &scrub(&vertex.error));
            warning.into_iter().for_each(|warning| self.progress.note(warning));
            return;
        }
        if !vertex.error.is_empty() && self.failed.is_none() && is_cause(vertex) {
            self.failed = Some((vertex.digest.clone(), vertex.error.clone()));
        }
        if vertex.completed.is_none() || step.finished {
            return;
        }
        step.finished = true;
        step.write_rest(&mut self.output);
        let reference = step.reference(STDOUT);
        if vertex.error.is_empty() {
            let (name, cached, took) = (step.name.clone(), vertex.cached, duration(vertex));
            let event = BuildEvent::StepFinished { name, cached, took };
            self.progress.tell_of_step(reference, event);
        }
    }

    fn log(&mut self, log: VertexLog) {
        let step = self.steps.entry(log.vertex).or_default();
        let reference = step.reference(log.stream);
        let partial = step.partial.entry(log.stream).or_default();
        let mut rest = log.msg.as_slice();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            extend(partial, &rest[..end]);
            self.output.line(reference, partial);
            partial.clear();
            rest = &rest[end + 1..];
        }
        extend(partial, rest);
    }
}

impl Step {
    fn reference(&self, stream: i64) -> StepRef {
        StepRef { number: self.number, internal: is_internal(&self.name), stream }
    }

    /// Passes on what is no whole line, and will be none.
    fn write_rest(&mut self, output: &mut Output<'_>) {
        let rests: Vec<_> = self.partial.drain().filter(|(_, rest)| !rest.is_empty()).collect();
        for (stream, rest) in rests {
            output.line(self.reference(stream), &rest);
        }
    }
}

/// Whether what a step failed with is its own: steps beside the one that failed are cancelled, and the
/// engine asks for a credential before it is known whether one is needed.
fn is_cause(vertex: &Vertex) -> bool {
    let is_beside = vertex.name.starts_with("[auth] ") || is_about_cache(&vertex.name);
    !is_beside && !is_cancelled(&vertex.error)
}

/// How long the engine worked on a step.
fn duration(vertex: &Vertex) -> Duration {
    let moment = |at: &Timestamp| i128::from(at.seconds) * 1_000_000_000 + i128::from(at.nanos);
    let (Some(started), Some(completed)) = (&vertex.started, &vertex.completed) else {
        return Duration::ZERO;
    };
    let nanos = moment(completed) - moment(started);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}

/// Whether a step is the engine's housekeeping, and none of the Dockerfile.
fn is_internal(name: &str) -> bool {
    is_about_cache(name)
        || ["[internal] ", "[auth] ", "docker-image://"].iter().any(|start| name.starts_with(start))
}

/// Adds to a line. What a carriage return is followed by is written over what stood before it.
fn extend(line: &mut Vec<u8>, more: &[u8]) {
    let text = more.len() - more.iter().rev().take_while(|byte| **byte == b'\r').count();
    let begins = more[..text].iter().rposition(|byte| *byte == b'\r').map(|at| at + 1);
    if begins.is_some() || (text > 0 && line.last() == Some(&b'\r')) {
        line.clear();
    }
    let (text, returns) = (&more[begins.unwrap_or(0)..text], text < more.len());
    let room = LINE_BYTES.saturating_sub(line.len());
    line.extend_from_slice(&text[..text.len().min(room)]);
    if returns && line.last() != Some(&b'\r') {
        line.push(b'\r');
    }
}

/// Passes lines of output on until their limit is reached.
struct Output<'a> {
    progress: &'a BuildLog,
    left: u64,
    limit: u64,
    /// Whether the limit was reached; the log says so then.
    over: bool,
}

impl Output<'_> {
    fn line(&mut self, step: StepRef, line: &[u8]) {
        if self.over {
            self.progress.keep_for_tail(step, &visible(line));
            return;
        }
        let cost = line.len() as u64 + AROUND_LINE;
        if cost > self.left {
            self.over = true;
            let over =
                format!("[the build wrote more than {} bytes: the rest is dropped]", self.limit);
            self.progress.tell_of_step(step, BuildEvent::Output(over));
            self.progress.keep_for_tail(step, &visible(line));
            return;
        }
        self.left -= cost;
        self.progress.tell_of_step(step, BuildEvent::Output(visible(line)));
    }
}

/// What a terminal would show of a line: a carriage return starts it anew.
fn visible(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    text.rsplit('\r').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use image_builder_actors::model::build_log::BuildLogListener;
    use image_builder_actors::model::secret::{Redactor, Secret};

    fn vertex(name: &str) -> Vertex {
        Vertex { digest: "d".to_owned(), name: name.to_owned(), ..Vertex::default() }
    }

    fn log(stream: i64, text: &[u8]) -> StatusResponse {
        let log = VertexLog { vertex: "d".to_owned(), stream, msg: text.to_vec(), timestamp: None };
        StatusResponse { logs: vec![log], ..StatusResponse::default() }
    }

    /// Keeps the lines of output.
    #[derive(Debug, Default)]
    struct Heard(Mutex<Vec<String>>);

    impl BuildLogListener for Heard {
        fn hear(&self, event: &BuildEvent) {
            let BuildEvent::Output(line) = event else { return };
            self.0.lock().expect("no test panics with it").push(line.clone());
        }
    }

    fn followed(limit: u64, parts: &[(i64, &[u8])]) -> Vec<String> {
        follow(&BuildLog::new("b", Redactor::new([Secret::new("s3cr3t")])), limit, parts)
    }

    fn follow(progress: &BuildLog, limit: u64, parts: &[(i64, &[u8])]) -> Vec<String> {
        let mut follower = Follower::new(progress, limit, Misses::default());
        for (stream, part) in parts {
            follower.status(log(*stream, part));
        }
        let end = Vertex { completed: Some(Timestamp::default()), ..vertex("RUN x") };
        follower.status(StatusResponse { vertexes: vec![end], ..StatusResponse::default() });
        progress.tail()
    }

    #[test]
    fn output_is_logged_in_whole_lines_whatever_pieces_it_comes_in() {
        let parts: [(i64, &[u8]); 5] =
            [(1, b"on"), (2, b"err"), (1, b"e\ntwo\r\n10%\r20%\n"), (2, b"or\n"), (1, b"end")];
        assert_eq!(followed(1000, &parts), ["one", "two", "20%", "error", "end"]);
    }

    #[test]
    fn output_past_the_limit_is_dropped_and_one_line_says_so() {
        let limit = 2 * (AROUND_LINE + 3);
        let lines = |parts: &[(i64, &[u8])]| {
            let heard = Arc::new(Heard::default());
            let progress = BuildLog::new("b", Redactor::default()).with_listener(heard.clone());
            let tail = follow(&progress, limit, parts);
            (heard.0.lock().expect("no test panics with it").clone(), tail)
        };
        let (heard, tail) = lines(&[(1, b"123\n456\n789\nabc\n")]);
        assert_eq!(heard[..2], ["123", "456"]);
        assert_eq!(heard.len(), 3, "{heard:?}");
        assert!(heard[2].contains(&format!("{limit} bytes")), "{heard:?}");
        // What is written last is what matters if the step fails.
        assert_eq!(tail[3..], ["789", "abc"]);
        // Of nothing but line feeds there are not more either.
        assert_eq!(lines(&[(1, &[b'\n'; 1000])]).0.len(), 3);
    }

    #[test]
    fn a_line_that_is_written_over_ends_as_it_was_written_last() {
        let progress = b"downloading 1 of 2\r".repeat(10_000);
        let parts: [(i64, &[u8]); 5] =
            [(2, &progress), (2, b"\r"), (2, b"failed"), (2, b" indeed\r"), (2, b"\nend\r\r\n")];
        assert_eq!(followed(1_000, &parts), ["failed indeed", "end"]);
        let whole = [&progress[..], b"error"].concat();
        assert_eq!(followed(1_000, &[(2, &whole)]), ["error"]);
        let long = [&b"x".repeat(LINE_BYTES + 1)[..], b"\r"].concat();
        assert_eq!(followed(1_000, &[(2, &long), (2, b"error")]), ["error"]);
    }

    #[test]
    fn what_the_step_that_failed_wrote_is_told_whatever_ran_beside_it() {
        let progress = BuildLog::new("b", Redactor::default());
        let mut follower = Follower::new(&progress, u64::MAX, Misses::default());
        let of = |digest: &str, msg: &[u8]| {
            let (vertex, msg) = (digest.to_owned(), msg.to_vec());
            let log = VertexLog { vertex, stream: 2, msg, timestamp: None };
            StatusResponse { logs: vec![log], ..StatusResponse::default() }
        };
        let begin = |digest: &str| {
            let (digest, started) = (digest.to_owned(), Some(Timestamp::default()));
            let vertex = Vertex { digest, started, ..vertex("RUN x") };
            StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() }
        };
        ["bad", "loud"].into_iter().for_each(|digest| follower.status(begin(digest)));
        follower.status(of("bad", b"the cause\nits last words"));
        follower.status(of("loud", &b"noise\n".repeat(10_000)));
        follower.has_failed(Some("bad"));
        let tail = progress.tail();
        for line in ["the cause", "its last words", "noise"] {
            assert!(tail.iter().any(|said| said == line), "{line}");
        }
    }

    #[test]
    fn an_endless_line_is_not_kept_and_its_secret_not_cut_in_two() {
        let progress = BuildLog::new("b", Redactor::new([Secret::new("s3cr3t")]));
        let mut follower = Follower::new(&progress, u64::MAX, Misses::default());
        let mut start = vec![b'a'; BuildLog::LINE_BYTES - 3];
        start.extend_from_slice(b"s3cr3t");
        follower.status(log(1, &start));
        for _ in 0..1000 {
            follower.status(log(1, &[b'a'; 10_000]));
        }
        assert_eq!(follower.steps["d"].partial[&1].len(), LINE_BYTES);
        follower.status(log(1, b"\n"));
        let tail = progress.tail().join("\n");
        assert!(!tail.contains("s3c"), "{}", &tail[tail.len() - 50..]);
    }

    #[test]
    fn the_first_step_that_failed_by_itself_is_the_cause_unless_the_engine_names_another() {
        let progress = BuildLog::new("b", Redactor::default());
        let mut follower = Follower::new(&progress, 1000, Misses::default());
        for (digest, name, error) in [
            ("0", "[auth] library/x:pull token for x", "no"),
            ("1", "[2/2] RUN a", "executor failed running [/bin/sh -c a]: context canceled"),
            ("2", "[2/2] COPY b", "\"/context canceled\" not found: not found"),
            ("3", "[2/2] RUN c", ""),
        ] {
            let (digest, error) = (digest.to_owned(), error.to_owned());
            let failed = Vertex { digest, error, ..vertex(name) };
            follower.status(StatusResponse { vertexes: vec![failed], ..StatusResponse::default() });
        }
        let failed = |digest| follower.failed(digest).map(|step| (step.name, step.error));
        let error = "\"/context canceled\" not found: not found".to_owned();
        let copy = ("[2/2] COPY b".to_owned(), error);
        assert_eq!(failed(None), Some(copy.clone()));
        assert_eq!(failed(Some("unheard of")), Some(copy));
        assert_eq!(failed(Some("3")), Some(("[2/2] RUN c".to_owned(), String::new())));
    }

    #[test]
    fn the_dockerfile_is_what_went_wrong_between_its_reading_and_its_first_step() {
        let progress = BuildLog::new("b", Redactor::default());
        let mut follower = Follower::new(&progress, 1000, Misses::default());
        let mut after = |digest: &str, name: &str| {
            let completed = Some(Timestamp::default());
            let vertex = Vertex { digest: digest.to_owned(), completed, ..vertex(name) };
            follower.status(StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() });
            follower.reads_dockerfile()
        };
        assert!(!after("0", "[internal] load .dockerignore"));
        assert!(after("1", "[internal] load build definition from Dockerfile"));
        assert!(after("2", "[internal] load metadata for docker.io/library/x:1"));
        assert!(!after("3", "[1/2] FROM docker.io/library/x:1"));
    }
}
