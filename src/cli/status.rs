//! `image-builder status`: what is known of builds.

use std::fmt::Write as _;

use clap::Args;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::api::client::{Client, Failure, build_path};
use super::api::outcome;
use super::api::screen::{Colours, table};
use super::{environment, print, wait_for};
use crate::config::ConfigErrors;
use crate::exit::Exit;
use crate::net::address::encoded;
use crate::text::{ascii, distance, plain, relative, shorten};

/// Show a build, or the newest builds.
///
/// The service is the one at IMAGE_BUILDER_URL, else the one at HTTP_ADDR on this machine; API_TOKEN is sent where it
/// is set.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Exit codes:
  0   shown; with --exit-status: the image is in the registry
  1   there is no such build; with --exit-status: it failed by its own fault, or was cancelled
  64  usage
  69  the service is not available; with --exit-status: a service that the build takes failed
  75  temporary failure: try it again; with --exit-status: the build has not ended
  78  bad settings, or the service does not take the token

Examples:
  image-builder status
  image-builder status --state failed --user alice
  image-builder status 5b0d7a1c-27ec-4f0f-a1f9-2f8b1f3f1c55 --exit-status

`image-builder config --example` lists the settings, and docs/settings.md explains them.")]
pub struct Arguments {
    /// The build's id
    id: Option<String>,
    /// End as the build did
    #[arg(long, requires = "id")]
    exit_status: bool,
    /// Only builds of this user; beside an id, the build of this user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only builds that are so far: queued, fetching, building, pushing, waiting, ready, failed or cancelled
    #[arg(long, value_name = "STATE", conflicts_with = "id")]
    state: Option<String>,
    /// Only builds of this application
    #[arg(long, value_name = "APPLICATION", conflicts_with = "id")]
    app: Option<String>,
    /// Only builds of this repository
    #[arg(long, value_name = "OWNER/NAME", conflicts_with = "id")]
    repo: Option<String>,
    /// At most so many builds
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20, conflicts_with = "id",
          value_parser = clap::value_parser!(u8).range(1..=200))]
    limit: u8,
    /// Print one line of JSON for each build
    #[arg(long)]
    json: bool,
}

/// # Errors
///
/// Bad settings.
pub fn run(arguments: &Arguments) -> Result<Exit, ConfigErrors> {
    let config = environment()?.api()?;
    Ok(wait_for(async {
        let client = Client::new(&config);
        let done = match &arguments.id {
            Some(id) => show(&client, id, arguments).await,
            None => list(&client, arguments).await,
        };
        done.unwrap_or_else(|failure| failure.told())
    }))
}

async fn show(client: &Client, id: &str, arguments: &Arguments) -> Result<Exit, Failure> {
    let build: Value = client.get(&build_path(id, "", arguments.user.as_deref())).await?;
    let printed = match arguments.json {
        true => print(&format!("{}\n", ascii(&build))),
        false => print(&whole(&build, Colours::of_stdout())),
    };
    Ok(if arguments.exit_status { outcome::exit(&build) } else { printed })
}

async fn list(client: &Client, arguments: &Arguments) -> Result<Exit, Failure> {
    let filters = [
        ("state", &arguments.state),
        ("user", &arguments.user),
        ("application", &arguments.app),
        ("repo", &arguments.repo),
    ];
    let mut path = format!("/builds?limit={}", arguments.limit);
    for (name, value) in filters {
        if let Some(value) = value {
            let _ = write!(path, "&{name}={}", encoded(value));
        }
    }
    let page: Value = client.get(&path).await?;
    let builds = page["builds"].as_array().map(Vec::as_slice).unwrap_or_default();
    if arguments.json {
        return Ok(print(
            &builds.iter().map(|build| format!("{}\n", ascii(build))).collect::<String>(),
        ));
    }
    if builds.is_empty() {
        eprintln!("no builds");
        return Ok(Exit::Ok);
    }
    Ok(print(&lines(builds, Colours::of_stdout(), OffsetDateTime::now_utc())))
}

/// A text of a build, for a terminal.
fn text(build: &Value, name: &str) -> String {
    build[name].as_str().map_or_else(|| "-".to_owned(), plain)
}

fn moment(value: &Value) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(value.as_str()?, &Rfc3339).ok()
}

/// Builds, one a line.
fn lines(builds: &[Value], colours: Colours, now: OffsetDateTime) -> String {
    let heading = ["ID", "STATE", "USER", "APPLICATION", "COMMIT", "ASKED", "TOOK", "WHAT"];
    let line = |build: &Value| {
        let asked = moment(&build["requestedAt"]);
        let ended = moment(&build["endedAt"]);
        let what = match build["state"].as_str() {
            Some("failed") => text(&build["data"], "reason"),
            _ => text(build, "repo"),
        };
        [
            text(build, "buildID"),
            text(build, "state"),
            shorten(&text(build, "userID"), 24),
            shorten(&text(build, "applicationID"), 32),
            text(build, "commit").chars().take(10).collect(),
            asked.map_or_else(|| "-".to_owned(), |asked| format!("{} ago", distance(now - asked))),
            asked.map_or_else(|| "-".to_owned(), |asked| distance(ended.unwrap_or(now) - asked)),
            shorten(&what, 60),
        ]
    };
    let cells: Vec<_> =
        std::iter::once(heading.map(str::to_owned)).chain(builds.iter().map(line)).collect();
    table(&cells, |number, column, cell| match (number, column) {
        (1.., 1) => colours.state(cell.trim_end(), cell),
        _ => cell.to_owned(),
    })
}

/// One build in full.
fn whole(build: &Value, colours: Colours) -> String {
    let mut out = String::new();
    let mut field = |title: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "{title:<12} {value}");
        }
    };
    let text_of = |build: &Value, name: &str| build[name].as_str().map(plain);
    let at = |name: &str| moment(&build[name]).map(relative);
    let state = text(build, "state");
    field("build", text_of(build, "buildID"));
    field("state", Some(colours.state(&state, &state)));
    field("user", text_of(build, "userID"));
    field("application", text_of(build, "applicationID"));
    field("repository", text_of(build, "repo"));
    field("commit", text_of(build, "commit"));
    field("requested", at("requestedAt"));
    field("ended", at("endedAt"));
    let data = &build["data"];
    field("image", outcome::image(build));
    field("reason", text_of(data, "reason"));
    field("message", text_of(data, "message"));
    let none = Vec::new();
    let attempts = build["attempts"].as_array().unwrap_or(&none);
    if !attempts.is_empty() {
        out.push_str("\nattempts\n");
    }
    for attempt in attempts {
        let stages = attempt["stages"].as_array().unwrap_or(&none);
        let stages: Vec<_> = stages.iter().map(|stage| text(stage, "stage")).collect();
        let begun = moment(&attempt["begunAt"]).map_or_else(|| "-".to_owned(), relative);
        let (number, worker) = (&attempt["number"], text(attempt, "worker"));
        let _ = writeln!(out, "  {number}. {begun} on {worker}: {}", stages.join(" > "));
        let fault = &attempt["fault"];
        if fault.is_object() {
            let _ = writeln!(out, "     {}: {}", text(fault, "reason"), text(fault, "message"));
            if let Some(step) = text_of(fault, "step") {
                let _ = writeln!(out, "     at step {step}");
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn builds_are_listed_a_line_each_with_nothing_that_a_terminal_acts_upon() {
        let now = OffsetDateTime::parse("2026-01-02T04:00:00Z", &Rfc3339).expect("a moment");
        let builds = [
            json!({"buildID": "b-1", "state": "ready", "userID": "u\u{1b}", "applicationID": "shop",
                "repo": "o/n", "commit": "7e94453020bf0123", "requestedAt": "2026-01-02T03:00:00Z",
                "endedAt": "2026-01-02T03:00:42Z"}),
            json!({"buildID": "b-10", "state": "failed", "data": {"reason": "build_failed"}}),
        ];
        assert_eq!(
            lines(&builds, Colours::default(), now),
            "\
ID    STATE   USER     APPLICATION  COMMIT      ASKED   TOOK  WHAT
b-1   ready   u\\u{1b}  shop         7e94453020  1h ago  42s   o/n
b-10  failed  -        -            -           -       -     build_failed
"
        );
    }

    #[test]
    fn a_build_is_shown_in_full() {
        let fault = json!({"reason": "engine_failed", "message": "No.", "step": "RUN make"});
        let build = json!({
            "buildID": "b", "state": "failed", "userID": "u", "repo": "o/n",
            "attempts": [{"number": 1, "worker": "w", "begunAt": "2026-01-02T03:00:00Z",
                "stages": [{"stage": "connector"}, {"stage": "builder"}], "fault": fault}],
            "data": {"reason": "engine_failed", "message": "No."},
        });
        let text = whole(&build, Colours::default());
        for part in [
            "build        b\n",
            "reason       engine_failed\n",
            "connector > builder\n",
            "at step RUN make",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
