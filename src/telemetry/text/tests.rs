use std::time::Duration;

use image_builder_actors::model::build_log::{BuildEvent, BuildLog};
use image_builder_actors::model::fault::{Reason, StageName};
use image_builder_actors::model::secret::Redactor;
use image_builder_actors::telemetry::health::{ActorName, ActorState, Health};
use time::macros::datetime;

use super::super::lines::Form;
use super::super::lines::tests::lines;
use super::super::terminal::Terminal;
use super::*;

const ID: &str = "7b0c86d2-5f2e-4f0e-9c6b-3b1d5d5b5a01";

/// The lines that `work` writes, without the time of day.
fn written(terminal: Terminal, work: impl FnOnce()) -> Vec<String> {
    let lines = lines(Form::Text(TextLines::new(terminal)), "debug", work);
    let untimed = |line: String| match line.split_once(' ') {
        Some((time, rest)) if time.len() == 8 && time.contains(':') => rest.to_owned(),
        _ => line,
    };
    lines.into_iter().map(untimed).collect()
}

fn on_a_terminal(columns: usize, work: impl FnOnce()) -> Vec<String> {
    written(Terminal::plain(Some(columns)), work)
}

fn job() -> BuildLog {
    let mut log = BuildLog::new(ID, Redactor::default()).of_application("payments-service");
    log.enter(StageName::Builder, 2);
    log
}

fn line(id: &str, message: &str, fields: &[(&'static str, Value)]) -> String {
    let mut all = Fields::default();
    all.set("build_id", id.into());
    for (name, value) in fields {
        all.set(*name, value.clone());
    }
    let entry = Entry {
        at: datetime!(2026-03-04 05:06:07.89 UTC),
        level: Level::INFO,
        target: "test".to_owned(),
        message: message.to_owned(),
        fields: all,
    };
    TextLines::new(Terminal::plain(None)).line("", entry).expect("it is shown")
}

#[test]
fn a_builds_lines_are_short_and_aligned_and_say_whom_they_are_about() {
    let step = |name: &str| name.to_owned();
    let commit = "2d6079ac7b1d5a2919c4a5aa6e7a1058e39740d6";
    let lines = on_a_terminal(110, || {
        let job = job();
        job.span().in_scope(|| {
            tracing::info!(
                user_id = "u-1042",
                application_id = "payments-service",
                repo = "acme/payments",
                revision = "branch `main`",
                redeliveries = 0u64,
                "job accepted"
            );
            tracing::info!(commit, version = "main", seconds = 0.148, "source fetched");
        });
        job.note("sending the build context to the engine");
        job.tell(BuildEvent::StepStarted { name: step("[1/2] COPY . .") });
        let took = Duration::from_millis(20);
        job.tell(BuildEvent::StepFinished { name: step("[1/2] COPY . ."), cached: true, took });
        job.tell(BuildEvent::Output("compiling\tmain.c".to_owned()));
        let name = format!("[2/2] RUN {}", "make && ".repeat(20));
        job.tell(BuildEvent::StepFinished {
            name,
            cached: false,
            took: Duration::from_millis(4321),
        });
        job.span().in_scope(|| {
            tracing::info!(seconds = 75.4, "image built");
            tracing::info!(
                reference = format!("registry:5000/u-1042/payments:{commit}"),
                digest = "sha256:72a434b853e95b087d77b973e68dd274188bd6e11388a0fbfc673453d21c7b1c",
                reused = false,
                seconds = 150.2,
                "image is ready"
            );
        });
    });
    assert_eq!(
        lines,
        [
            "INFO  7b0c86d2 payments-se… accepted acme/payments, branch `main` for u-1042, try 2",
            "INFO  7b0c86d2 payments-se… fetched main at 2d6079ac7b1d… in 0.1 s",
            "INFO  7b0c86d2 payments-se… sending the build context to the engine",
            "INFO  7b0c86d2 payments-se… [1/2] COPY . .  cached",
            "INFO  7b0c86d2 payments-se… | compiling  main.c",
            "INFO  7b0c86d2 payments-se… [2/2] RUN make && make && make && make && make && make && make &&…  4.3 s",
            "INFO  7b0c86d2 payments-se… built in 75 s",
            "INFO  7b0c86d2 payments-se… ready in 3 min: registry:5000/u-1042/payments@sha256:72a434b853e9…",
        ]
    );
    assert!(lines.iter().all(|line| line.width() + "05:06:07 ".len() <= 110), "{lines:#?}");
}

#[test]
fn a_failure_reads_as_a_sentence_and_an_error_of_the_system_has_no_number() {
    let lines = on_a_terminal(120, || {
        job().span().in_scope(|| {
            let reason = "build_failed";
            tracing::warn!(
                reason,
                step = "[2/2] RUN make",
                "Step `RUN make` failed with exit code 2."
            );
            tracing::info!(delay_seconds = 10.0, attempts = 1u64, "to be tried again");
            tracing::warn!(
                attempts = 2u64,
                user_id = "u",
                reason,
                "given up: Step `RUN make` failed."
            );
        });
        let detail = "the registry is not ready: Connection refused";
        tracing::warn!(need = "registry", detail, "registry is not ready");
        tracing::warn!(
            error = "Connection refused (os error 111)",
            limit_seconds = 60.0,
            "cannot prune"
        );
        tracing::error!(
            actor = "builder",
            cause = "panic: at the disco",
            "an actor died: it is restarted"
        );
    });
    assert_eq!(
        lines,
        [
            "WARN  7b0c86d2 payments-se… Step `RUN make` failed with exit code 2. (build_failed)",
            "INFO  7b0c86d2 payments-se… tried again in 10 s, after 1 try",
            "WARN  7b0c86d2 payments-se… given up after 2 tries: Step `RUN make` failed. (build_failed)",
            "WARN  worker                registry is not ready: Connection refused",
            "WARN  worker                cannot prune: Connection refused  limit=60 s",
            "ERROR builder               an actor died: it is restarted  cause=\"panic: at the disco\"",
        ]
    );
}

#[test]
fn what_is_longer_than_the_terminal_goes_on_below_its_beginning() {
    let sentence = "The repository has a submodule whose address leads to a private network.";
    let lines = on_a_terminal(80, || tracing::warn!(path = "vendor/lib", "{sentence}"));
    assert_eq!(
        lines,
        [
            "WARN  worker                The repository has a submodule whose",
            "                                     address leads to a private network.",
            "                                     path=vendor/lib",
        ]
    );
    // A narrow one, and what is no terminal, wraps or searches lines by itself.
    for terminal in [Terminal::plain(Some(50)), Terminal::plain(None)] {
        assert_eq!(written(terminal, || tracing::warn!("{sentence}")).len(), 1);
    }
}

#[test]
fn colours_are_for_terminals_and_tell_levels_and_builds_apart() {
    let work = || {
        job().note("far");
        tracing::warn!("cannot");
    };
    assert!(!on_a_terminal(110, work).concat().contains('\u{1b}'));
    let lines = written(Terminal::coloured(), work);
    assert!(lines[0].contains("\u{1b}[32mINFO \u{1b}[0m"), "{lines:?}");
    assert!(lines[1].contains("\u{1b}[33mWARN \u{1b}[0m"), "{lines:?}");
}

#[test]
fn nothing_in_a_line_moves_the_cursor_hides_or_turns_it_around() {
    let lines = on_a_terminal(200, || {
        tracing::error!(
            field = "\u{1b}[2J\n",
            "a\r\u{1b}[1Am\nb \u{202e}evil\u{2066} \u{200b}é👩\u{200d}💻"
        );
        job().tell(BuildEvent::Output("\u{200f}done\u{2028}".to_owned()));
    });
    assert_eq!(
        lines,
        [
            "ERROR worker                a\\r\\u{1b}[1Am / b \\u{202e}evil\\u{2066} \\u{200b}é👩\u{200d}💻  \
             field=\"\\u001b[2J\\n\"",
            "INFO  7b0c86d2 payments-se… | \\u{200f}done",
        ]
    );
}

#[test]
fn a_short_id_tells_builds_apart_whatever_their_ids_look_like() {
    let short = |id: &str| line(id, "x", &[])[15..].split(' ').next().map(str::to_owned);
    for (id, expected) in [
        (ID, "7b0c86d2"),
        ("7", "7"),
        ("order-18", "order-18"),
        ("order-000123", "ord…0123"),
        // Their beginning is the time.
        ("01890a5d-ac96-774b-bcce-b302099a8057", "018…8057"),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "01A…5FAV"),
    ] {
        assert_eq!(short(id).as_deref(), Some(expected), "{id}");
    }
    let wide = line("日本語日本語日本語", "x", &[("application_id", "日本語日本語日本語".into())]);
    assert!(wide.width() == INDENT + 1, "{wide}");
}

#[test]
fn an_idle_worker_is_one_line_until_something_changes() {
    let actors: Vec<_> = ActorName::ALL.iter().map(|name| Health::new(*name)).collect();
    let builder = actors[2].clone();
    let round = || actors.iter().for_each(|actor| actor.log());
    let lines = on_a_terminal(110, || {
        actors.iter().for_each(|actor| actor.enter(ActorState::Running));
        round();
        round();
        let (job, waits) = (builder.in_hand(), builder.waiting());
        round();
        drop((job, waits));
        builder.failed(Reason::BuildFailed);
        actors[3].in_hand().done();
        round();
        round();
        builder.enter(ActorState::Restarting);
        builder.enter(ActorState::Running);
        actors.iter().for_each(|actor| actor.enter(ActorState::Stopped));
    });
    assert_eq!(
        lines,
        [
            "INFO  worker                idle",
            "INFO  worker                in hand: builder 1 (+1)",
            "INFO  worker                idle; so far 1 ready, 1 failed try",
            "INFO  builder               at work again",
        ]
    );
}

#[test]
fn an_actor_that_says_nothing_keeps_no_worker_from_its_line() {
    let actors: Vec<_> = ActorName::ALL.iter().map(|name| Health::new(*name)).collect();
    actors.iter().for_each(|actor| actor.enter(ActorState::Running));
    let lines = on_a_terminal(110, || {
        for _ in 0..3 {
            actors[1..].iter().for_each(|actor| actor.log());
        }
    });
    assert_eq!(lines, ["INFO  worker                idle"]);
}
