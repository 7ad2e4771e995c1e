use super::live::frame;
use super::screen::{Line, Screen, Size, Tone};
use super::*;

const BUILD: Size = Size { columns: 60, rows: 24 };

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn started(step: u32, name: &str) -> (Option<Key>, BuildEvent) {
    (Some(Key::Step(step)), BuildEvent::StepStarted { name: name.to_owned() })
}

fn finished(step: u32, name: &str, cached: bool, took: u64) -> (Option<Key>, BuildEvent) {
    let (name, took) = (name.to_owned(), at(took));
    (Some(Key::Step(step)), BuildEvent::StepFinished { name, cached, took })
}

fn output(step: u32, line: &str) -> (Option<Key>, BuildEvent) {
    (Some(Key::Step(step)), BuildEvent::Output(line.to_owned()))
}

fn note(text: &str) -> (Option<Key>, BuildEvent) {
    (None, BuildEvent::Note(text.to_owned()))
}

/// A build whose second and third steps run at the same time. The events are 100 ms apart.
fn events() -> Vec<(Option<Key>, BuildEvent)> {
    vec![
        note("building by the Dockerfile `Dockerfile`"),
        started(1, "[a 1/2] FROM debian"),
        finished(1, "[a 1/2] FROM debian", true, 0),
        started(2, "[a 2/2] RUN make"),
        output(2, "cc -c main.c"),
        started(3, "[b 2/3] RUN wget"),
        output(3, "50%"),
        output(2, "ld main.o"),
    ]
}

/// All events, shown in turn; then the end, if there is one.
fn shown<S: Show>(
    to: &mut S,
    events: &[(Option<Key>, BuildEvent)],
    ended: Option<&Ended>,
) -> Steps {
    let mut steps = Steps::default();
    let mut now = Duration::ZERO;
    for (key, event) in events {
        let step = steps.take(now, *key, event);
        to.event(now, step, event, &steps);
        now += at(100);
    }
    if let Some(ended) = ended {
        let failed = steps.end(now, ended);
        to.end(now, ended, failed, &steps);
    }
    steps
}

fn plain_text(events: &[(Option<Key>, BuildEvent)], ended: Option<&Ended>) -> String {
    let mut written = Vec::new();
    shown(&mut Plain::new(&mut written), events, ended);
    String::from_utf8(written).expect("text")
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

#[test]
fn plain_lines_tell_which_step_they_belong_to() {
    let mut events = events();
    events.push(finished(2, "[a 2/2] RUN make", false, 420));
    assert_eq!(
        plain_text(&events, Some(&Ended::Done)),
        "\
building by the Dockerfile `Dockerfile`
#1 [a 1/2] FROM debian
#1 CACHED

#2 [a 2/2] RUN make
#2 0.10 cc -c main.c

#3 [b 2/3] RUN wget
#3 0.10 50%

#2 [a 2/2] RUN make
#2 0.40 ld main.o
#2 DONE 0.4s
"
    );
}

#[test]
fn a_failure_shows_the_last_lines_of_its_step_and_what_it_cut_short() {
    let ended = Ended::Failed(Some("[a 2/2] RUN make".to_owned()));
    let text = plain_text(&events(), Some(&ended));
    let end = "\
#2 ERROR 0.5s
#3 CANCELED 0.3s
------
 > [a 2/2] RUN make:
0.10 cc -c main.c
0.40 ld main.o
------
";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn of_a_failed_step_that_wrote_much_the_log_has_the_end_once_more() {
    let mut events = vec![started(1, "RUN seq 100")];
    events.extend((1..=100).map(|n| output(1, &format!("number {n}"))));
    let text = plain_text(&events, Some(&Ended::Failed(None)));
    let (_, end) = text.split_once("------").expect("a rule");
    assert!(end.contains("[80 earlier lines]"), "{end}");
    assert!(!end.contains("number 80\n") && end.contains("number 81\n"), "{end}");
}

#[test]
fn a_frame_has_the_running_steps_with_their_last_lines() {
    let mut silent = Quiet;
    let steps = shown(&mut silent, &events(), None);
    assert_eq!(
        texts(&frame(at(800), None, &steps, BUILD)),
        [
            "[+] Building 0.8s (1/3)",
            " -- building by the Dockerfile `Dockerfile`",
            " => CACHED [a 1/2] FROM debian                          0.0s",
            " => [a 2/2] RUN make                                    0.5s",
            " => => # cc -c main.c",
            " => => # ld main.o",
            " => [b 2/3] RUN wget                                    0.3s",
            " => => # 50%",
        ]
    );
}

#[test]
fn what_is_over_is_one_line() {
    let mut silent = Quiet;
    let mut steps = shown(&mut silent, &events(), None);
    let ended = Ended::Failed(Some("[b 2/3] RUN wget".to_owned()));
    steps.end(at(900), &ended);
    assert_eq!(
        texts(&frame(at(900), Some(&ended), &steps, BUILD)),
        [
            "[+] Building 0.9s (3/3) FAILED",
            " -- building by the Dockerfile `Dockerfile`",
            " => CACHED [a 1/2] FROM debian                          0.0s",
            " => CANCELED [a 2/2] RUN make                           0.6s",
            " => ERROR [b 2/3] RUN wget                              0.4s",
        ]
    );
}

#[test]
fn a_running_step_shows_six_lines() {
    let mut events = vec![started(1, "RUN seq 100")];
    events.extend((1..=100).map(|n| output(1, &format!("number {n}"))));
    let mut silent = Quiet;
    let steps = shown(&mut silent, &events, None);
    let lines = frame(at(0), None, &steps, BUILD);
    assert_eq!(lines.len(), 2 + 6);
    assert_eq!(lines[2].text, " => => # number 95");
}

#[test]
fn no_line_is_wider_than_the_terminal_and_no_frame_higher() {
    use unicode_width::UnicodeWidthStr;
    let mut silent = Quiet;
    let mut events = events();
    events.push(started(4, &"日本語 ".repeat(50)));
    events.push(output(4, &"wide\tline \u{1b}[31m".repeat(20)));
    events.extend((5..30).flat_map(|n| {
        let name = format!("[{n}/30] COPY");
        [started(n, &name), finished(n, &name, false, 1)]
    }));
    let steps = shown(&mut silent, &events, None);
    for columns in [1, 20, 33, 80, 200] {
        for rows in [2, 5, 24, 100] {
            let lines = frame(at(800), None, &steps, Size { columns, rows });
            let widest = lines.iter().map(|line| line.text.width()).max();
            assert!(widest <= Some(columns.max(20)), "{columns}: {widest:?}");
            assert!(lines.len() <= rows, "{rows}: {}", lines.len());
            assert!(lines.iter().all(|line| !line.text.contains('\u{1b}')));
            assert!(lines[0].text.starts_with("[+] Building"), "the heading stays");
        }
    }
    // What is over goes first.
    let lines = frame(at(800), None, &steps, Size { columns: 80, rows: 8 });
    assert!(lines.iter().any(|line| line.text.contains("RUN make")), "{lines:?}");
    assert!(lines.iter().all(|line| !line.text.contains("COPY")), "{lines:?}");
}

#[test]
fn what_is_noted_while_a_part_of_the_work_runs_belongs_to_it() {
    let push = Some(Key::Part(0));
    let name = || "pushing localhost:5000/a/b:c".to_owned();
    let events = [
        (push, BuildEvent::StepStarted { name: name() }),
        note("1 of 2 layers are in the registry"),
        (push, BuildEvent::StepFinished { name: name(), cached: false, took: at(700) }),
    ];
    assert_eq!(
        plain_text(&events, Some(&Ended::Done)),
        "\
#1 pushing localhost:5000/a/b:c
#1 0.10 1 of 2 layers are in the registry
#1 DONE 0.7s
"
    );
}

#[test]
fn a_frame_is_drawn_over_the_last_one_in_one_write_and_the_cursor_comes_back() {
    #[derive(Default)]
    struct Writes(Vec<String>);
    impl Write for &mut Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.push(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut writes = Writes::default();
    let line = |text: &str| Line { tone: Tone::Running, text: text.to_owned() };
    let mut screen = Screen::to(&mut writes);
    screen.draw(&[line("one"), line("two two two")], BUILD);
    screen.draw(&[line("three")], Size { columns: 5, ..BUILD });
    drop(screen);
    assert_eq!(
        writes.0,
        [
            "\x1b[?25l\rone\x1b[K\r\ntwo two two\x1b[K\r\n\x1b[J",
            // The second line takes three rows now.
            "\x1b[4A\rthree\x1b[K\r\n\x1b[J",
            "\x1b[?25h",
        ]
    );
}

#[test]
fn programs_get_one_object_a_line() {
    let mut written = Vec::new();
    let ended = Ended::Failed(Some("[a 2/2] RUN make".to_owned()));
    shown(&mut JsonLines::new(&mut written), &events(), Some(&ended));
    let lines: Vec<serde_json::Value> = String::from_utf8_lossy(&written)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |kind: &str| lines.iter().filter(|line| line["type"] == kind).collect::<Vec<_>>();
    assert_eq!(lines.len(), events().len() + 3);
    assert_eq!(of("output")[0]["text"], "cc -c main.c");
    assert_eq!(of("output")[0]["step"], 2);
    assert_eq!(of("finished")[0]["cached"], true);
    assert_eq!((&of("failed")[0]["step"], &of("cancelled")[0]["step"]), (&2.into(), &3.into()));
    assert_eq!(
        (&of("ended")[0]["outcome"], &of("ended")[0]["failedStep"]),
        (&"failed".into(), &2.into())
    );
}
