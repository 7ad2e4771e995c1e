//! `image-builder build` on a terminal: its live progress, and Ctrl-C.

use std::io::{BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::worker::BINARY;
use crate::support::{unique, until};
use crate::{docker, dockerfile, folder, program, settings};

/// The program on a terminal of its own.
struct Terminal {
    script: Child,
    screen: BufReader<std::process::ChildStdout>,
    seen: String,
}

impl Terminal {
    fn run(arguments: &str, folder: &Path) -> Self {
        let program = program(&[], folder, &settings());
        let mut script = Command::new("script");
        script
            .args([
                "-qefc",
                &format!("stty cols 70 rows 24; exec {BINARY} {arguments}"),
                "/dev/null",
            ])
            .current_dir(folder)
            .env_clear()
            .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut script = script.spawn().expect("there is a program that makes terminals");
        let screen = BufReader::new(script.stdout.take().expect("it is a pipe"));
        Self { script, screen, seen: String::new() }
    }

    /// Reads until this is on the screen.
    fn see(&mut self, text: &str) {
        let mut bytes = [0; 4096];
        while !self.seen.contains(text) {
            let read = self.screen.read(&mut bytes).unwrap_or(0);
            assert!(read > 0, "`{text}` is not seen: {}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }

    fn type_in(&mut self, text: &[u8]) {
        let keyboard = self.script.stdin.as_mut().expect("it is a pipe");
        keyboard.write_all(text).and_then(|()| keyboard.flush()).expect("typed");
    }

    /// Reads to the end: all that was on the screen, and the exit code.
    fn end(mut self) -> (String, i32) {
        let mut rest = Vec::new();
        // A terminal that is closed is an error to its reader, after all that it had.
        let _ = self.screen.read_to_end(&mut rest);
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        let code = self.script.wait().expect("it ends").code();
        (self.seen, code.unwrap_or(-1))
    }
}

#[test]
fn a_terminal_shows_steps_and_the_running_ones_last_lines_and_gets_its_cursor_back() {
    let mark = unique("live");
    let step = format!("RUN for n in 1 2 3 4; do echo line $n of {mark}; sleep 0.3; done");
    let folder = folder(&[("Dockerfile", &dockerfile(&step))]);
    let mut terminal = Terminal::run("build .", folder.path());
    terminal.see(&format!(" => => # line 3 of {mark}"));
    let (seen, code) = terminal.end();
    assert_eq!(code, 0, "{seen}");
    let last = seen.rsplit("[+] Building").next().unwrap_or_default();
    assert!(last.contains("FINISHED"), "{last}");
    assert!(!last.contains(" => => # "), "what is done is one line: {last}");
    assert!(seen.contains("\u{1b}[?25l"), "the cursor is hidden meanwhile");
    assert!(last.contains("\u{1b}[?25h"), "and shown in the end: {last}");
    assert!(last.contains("image   sha256:"), "{last}");
}

#[test]
fn a_failure_on_a_terminal_shows_all_that_its_step_wrote() {
    let step = "RUN seq 100 120; exit 7";
    let folder = folder(&[("Dockerfile", &dockerfile(step))]);
    let (seen, code) = Terminal::run("build . --no-cache", folder.path()).end();
    assert_eq!(code, 1, "{seen}");
    let (_, end) = seen.rsplit_once("FAILED").expect("the last frame says so");
    assert!(end.contains("ERROR [2/2] RUN seq 100 120; exit 7"), "{end}");
    let (_, output) = end.split_once("------").expect("a rule");
    assert!((100..=120).all(|n| output.contains(&format!(" {n}\r\n"))), "{output}");
    assert!(output.contains("failed with exit code 7"), "{output}");
}

#[test]
fn ctrl_c_stops_the_build_on_the_engine() {
    // The number is on the command line of the step's process alone.
    let seconds = 100_000 + std::process::id();
    let folder =
        folder(&[("Dockerfile", &dockerfile(&format!("RUN echo begun; sleep {seconds}")))]);
    let mut terminal = Terminal::run("build .", folder.path());
    terminal.see(" => => # begun");
    assert!(sleeps(seconds), "the step runs on this machine");
    terminal.type_in(b"\x03");
    let (seen, code) = terminal.end();
    assert_eq!(code, 130, "{seen}");
    let last = seen.rsplit("[+] Building").next().unwrap_or_default();
    assert!(last.contains("STOPPED") && last.contains("CANCELED"), "{last}");
    assert!(last.contains("\u{1b}[?25h"), "{last}");
    until("no process of the build is left", || (!sleeps(seconds)).then_some(()));
    assert_eq!(docker(&["ps", "-q", "--filter", "status=created"]), "");
}

/// Whether a process sleeps that long, whoever's it is.
fn sleeps(seconds: u32) -> bool {
    let seconds = seconds.to_string();
    let processes = std::fs::read_dir("/proc").expect("Linux has it").flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines.into_iter().any(|line| {
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        arguments.first() == Some(&&b"sleep"[..]) && arguments.get(1) == Some(&seconds.as_bytes())
    })
}
