//! `image-builder doctor`: looks at all that the worker needs, and says what to mend.

pub(super) mod at_start;
mod checks;
mod inside;
mod reach;

use std::future::ready;
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use serde::Serialize;
use serde_json::json;

use reach::Reach;

use super::stop::Stop;
use super::{environment, print, temporary_folder, wait_for};
use crate::config::{Config, ConfigErrors, DoctorConfig};
use crate::exit::{Exit, StartError};
use crate::wiring::tools::Tools;

/// Longest time for a check.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest time for a build.
const BUILD_PATIENCE: Duration = Duration::from_secs(90);

/// Look at all that the worker needs, and say what to mend.
///
/// Looked at are the settings, DATA_DIR, the disks, the clock, the engine, the registry (a few bytes are pushed
/// to image-builder/doctor), the broker, the history, the forge and the managers, and what a step of a build sees of the
/// network, by a tiny build of an image that the engine has. Nothing is sent to a manager.
///
/// Each line begins with OK, WARN, FAIL or SKIP, and says what to do where something is to be done.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0    all that is needed is there
  64   usage
  69   something is not: its line begins with FAIL
  78   config/.env cannot be read; other bad settings are a line FAIL
  130  stopped by Ctrl-C
  143  stopped by SIGTERM

Examples:
  image-builder doctor
  image-builder doctor --image node:18-slim
  image-builder doctor --json | jq '.checks[] | select(.status != \"ok\")'")]
pub struct Arguments {
    /// The image that the tiny build starts from; without it debian:bookworm-slim or another one that the
    /// engine has
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Print the findings as JSON
    #[arg(long)]
    json: bool,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    status: Status,
    detail: String,
    /// What to do about it.
    remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    Warn,
    Fail,
    /// It was not looked at, for a reason.
    Skip,
}

impl Finding {
    fn new(check: &'static str, status: Status, detail: impl Into<String>) -> Self {
        Self { check, status, detail: detail.into(), remedy: None }
    }

    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, detail)
    }

    fn skip(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Skip, detail)
    }

    fn warn(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { remedy, ..Self::new(check, Status::Warn, detail) }
    }

    fn fail(check: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { remedy, ..Self::new(check, Status::Fail, detail) }
    }

    fn line(&self, colours: bool) -> String {
        let (word, colour) = match self.status {
            Status::Ok => ("OK", "32"),
            Status::Warn => ("WARN", "33"),
            Status::Fail => ("FAIL", "31"),
            Status::Skip => ("SKIP", "2"),
        };
        let word = format!("{word:4}");
        let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word };
        let detail = self.detail.trim_end_matches('.');
        let remedy = self.remedy.as_ref().map_or(String::new(), |remedy| format!(". {remedy}"));
        format!("{word}  {:11}  {detail}{remedy}\n", self.check)
    }
}

/// A check under way.
type Check<'a> = Pin<Box<dyn Future<Output = Vec<Finding>> + 'a>>;

/// # Errors
///
/// None: bad settings are a finding.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let environment = environment()?;
    let whole = environment.config();
    let settings = checks::settings(&whole);
    let looked = match environment.doctor() {
        Ok(config) => Tools::assemble(config.tools.clone(), false).and_then(|tools| {
            let doctor = Doctor { arguments, whole: whole.ok(), config, tools: Arc::new(tools) };
            wait_for(doctor.look(settings))
        }),
        // There is nothing to look at by them.
        Err(_) => Ok(told(arguments, settings)),
    };
    Ok(looked.unwrap_or_else(|error| error.told()))
}

struct Doctor<'a> {
    arguments: &'a Arguments,
    /// `None` = some setting is bad, and perhaps none of those that are looked at one by one.
    whole: Option<Config>,
    config: DoctorConfig,
    tools: Arc<Tools>,
}

impl Doctor<'_> {
    /// Looks at all at once, and tells it in order.
    async fn look(&self, settings: Vec<Finding>) -> Result<Exit, StartError> {
        let mut stop = Stop::listen()?;
        let place = temporary_folder()?;
        let mut findings = settings;
        if !self.arguments.json {
            self.show(&findings);
        }
        let (config, tools) = (&self.config, &self.tools);
        let mut checks: FuturesOrdered<Check<'_>> = FuturesOrdered::new();
        let mut add = |names: &'static str, limit, check: Check<'static>| {
            checks.push_back(Box::pin(in_time(names, limit, check)));
        };
        add("data", PATIENCE, Box::pin(checks::data_dir(config.data_dir.clone())));
        add("disk", PATIENCE, Box::pin(checks::disk(config.clone(), tools.clone())));
        add("clock", PATIENCE, Box::pin(checks::clock(config.tools.clone())));
        add("engine", PATIENCE, Box::pin(checks::engine(config.clone(), tools.clone())));
        add("registry", PATIENCE, Box::pin(checks::registry(tools.clone())));
        add("broker", PATIENCE, Box::pin(checks::broker(self.whole.clone())));
        add("history", PATIENCE, Box::pin(checks::history(self.whole.clone())));
        add("forge", PATIENCE, Box::pin(checks::forge(config.tools.forge.clone())));
        add("managers", PATIENCE, Box::pin(checks::managers(config.notify.clone())));
        let image = self.arguments.image.clone();
        let forge = config.tools.forge.url.clone();
        let reach = Reach::of(&config.tools, self.whole.as_ref()).await;
        let folder = place.path().to_owned();
        if config.tools.fleet.is_some() {
            let skipped =
                "not looked at: images are built by BUILDKIT_HOST, and this asks a Docker Engine";
            let skipped = [inside::PUSH, inside::BUILD].map(|name| Finding::skip(name, skipped));
            add(inside::BUILD, PATIENCE, Box::pin(ready(skipped.into())));
        } else {
            let push = inside::push(tools.clone(), folder.clone());
            add(inside::PUSH, BUILD_PATIENCE, Box::pin(push));
            let build = inside::look(tools.clone(), image, forge, reach, folder);
            add(inside::BUILD, BUILD_PATIENCE, Box::pin(build));
        }
        loop {
            tokio::select! {
                found = checks.next() => match found {
                    Some(found) => {
                        if !self.arguments.json {
                            self.show(&found);
                        }
                        findings.extend(found);
                    }
                    None => break,
                },
                exit = stop.asked() => {
                    drop(checks);
                    return Ok(exit);
                }
            }
        }
        if self.arguments.json {
            return Ok(told(self.arguments, findings));
        }
        Ok(exit_of(&findings))
    }

    fn show(&self, findings: &[Finding]) {
        print(&lines(findings));
    }
}

fn lines(findings: &[Finding]) -> String {
    let colours = std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    findings.iter().map(|finding| finding.line(colours)).collect()
}

fn exit_of(findings: &[Finding]) -> Exit {
    let bad = findings.iter().any(|finding| finding.status == Status::Fail);
    if bad { Exit::Unavailable } else { Exit::Ok }
}

/// Tells all findings at once.
fn told(arguments: &Arguments, findings: Vec<Finding>) -> Exit {
    let exit = exit_of(&findings);
    let text = if arguments.json {
        format!("{}\n", json!({"ok": exit == Exit::Ok, "checks": findings}))
    } else {
        lines(&findings)
    };
    print(&text);
    exit
}

/// A check, but not for longer than it may take.
async fn in_time(name: &'static str, limit: Duration, check: Check<'_>) -> Vec<Finding> {
    tokio::time::timeout(limit, check).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", limit.as_secs());
        vec![Finding::fail(name, detail, "Look whether something on the way drops connections")]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_it_is_and_what_to_do() {
        let ok = Finding::ok("engine", "24.0.7");
        let bad = Finding::fail("registry", "It is out of reach.", "Start it");
        assert_eq!(ok.line(false), "OK    engine       24.0.7\n");
        assert_eq!(bad.line(false), "FAIL  registry     It is out of reach. Start it\n");
        assert!(bad.line(true).starts_with("\x1b[31mFAIL\x1b[0m  registry"));
        assert_eq!(exit_of(std::slice::from_ref(&ok)), Exit::Ok);
        assert_eq!(exit_of(&[ok, bad]), Exit::Unavailable);
    }

    #[tokio::test]
    async fn a_check_that_hangs_is_given_up() {
        let hangs: Check<'_> = Box::pin(std::future::pending());
        let found = in_time("forge", Duration::ZERO, hangs).await;
        assert_eq!(found[0].status, Status::Fail);
        assert!(found[0].detail.contains("no answer within 0 s"), "{found:?}");
    }
}
