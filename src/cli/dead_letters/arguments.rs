//! The command line of `image-builder dead`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::dead_letters::letter::{FaultName, Found, Wanted};

/// What `--help` of each command ends with.
macro_rules! help {
    ($($example:literal),+ $(,)?) => {
        concat!(
            "Exit codes:\n",
            "  0   done\n",
            "  1   no such letter, or some were left\n",
            "  64  usage\n",
            "  69  the service, the broker or a queue is not available\n",
            "  75  another command is at work\n",
            "  78  bad settings\n",
            "\nExamples:\n",
            $("  ", $example, "\n",)+
            "\n`image-builder config --example` lists the settings, and docs/settings.md explains them.",
        )
    };
}

/// Look at builds that were given up, try them again, or forget them.
///
/// A copy of each is kept in DEAD_QUEUE for DEAD_QUEUE_TTL, with what happened at each attempt and without
/// any credential. These commands ask the service at IMAGE_BUILDER_URL, else the one at HTTP_ADDR on this
/// machine, with API_TOKEN where that is set. Where none is set and none answers there, they go straight to the broker:
/// to RABBITMQ_URI and the queues' names, from the environment or config/.env like the worker's own settings, or to the
/// embedded queue in DATA_DIR.
/// Only one of them is at work at a time; a second one waits for some seconds. A command that is killed loses
/// nothing.
#[derive(Debug, Subcommand)]
#[command(arg_required_else_help = true, after_long_help = help!(
    "image-builder dead list --fault service",
    "image-builder dead show 7f3a",
))]
pub enum Command {
    /// List the dead letters, one line each, newest last
    #[command(after_long_help = help!(
        "image-builder dead list --user u1 --fault registry_refused",
        "image-builder dead list --json | jq -r .buildID",
    ))]
    List(List),
    /// Show one dead letter: what was asked for, what happened at each attempt, and the end of the build's log
    #[command(after_long_help = help!("image-builder dead show 7f3a"))]
    Show {
        /// The build's id, or the beginning of it
        #[arg(value_parser = id)]
        id: String,
        /// Only the build of this user
        #[arg(long, value_name = "USER")]
        user: Option<String>,
        /// Print the letter as it is, as one line of JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask for builds again
    ///
    /// For each letter a new request is put on the build queue, with an id of its own and the old one in
    /// `redriveOf`; then the letter is removed. What the letter lacks because it was a credential has to be
    /// given again: the forge's token, build secrets, and variables that look like credentials. `dead show`
    /// says what that is. Nothing of it is taken from the command line itself, where every user of the
    /// machine could read it.
    #[command(after_long_help = help!(
        "image-builder dead redrive 7f3a --token-stdin < token",
        "image-builder dead redrive --all --fault registry_refused --dry-run",
    ))]
    Redrive(Redrive),
    /// Remove dead letters for good
    #[command(after_long_help = help!(
        "image-builder dead drop 7f3a",
        "image-builder dead drop --fault user --user u1 --dry-run",
    ))]
    #[command(mut_arg("id", |id| id.required_unless_present_any(["fault", "user"])))]
    Drop(Choice),
}

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    pub(super) filter: Filter,
    /// Print each letter as it is, as one line of JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub struct Redrive {
    #[command(flatten)]
    pub(super) choice: Choice,
    #[command(flatten)]
    pub(super) credentials: Credentials,
}

/// Which letters are worked on: those of one build, or all that the filters take.
#[derive(Debug, Args)]
pub struct Choice {
    /// The build's id, or the beginning of it
    #[arg(
        value_parser = id,
        required_unless_present = "all",
        conflicts_with_all = ["all", "fault"],
    )]
    pub(super) id: Option<String>,
    /// Every letter, or every one that --fault and --user take
    ///
    /// What `redrive` lacks something for, and is not given, is skipped.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    pub(super) filter: Filter,
    /// Only say what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one line of JSON for each build
    #[arg(long)]
    pub(super) json: bool,
}

/// Which letters are meant.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only builds that were given up for this reason (such as `registry_refused`), or by the fault of
    /// the `user` or of a `service`; may be given more than once
    #[arg(long, value_name = "REASON|user|service", value_parser = str::parse::<FaultName>)]
    fault: Vec<FaultName>,
    /// Only builds of this user: of an id that several users chose, that of this one
    #[arg(long, value_name = "USER")]
    pub(super) user: Option<String>,
}

impl Choice {
    /// Which one build is meant, if one is.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        Some(Wanted { id: self.id.clone()?, user: self.filter.user.clone() })
    }
}

impl Filter {
    pub(super) fn is_empty(&self) -> bool {
        self.fault.is_empty() && self.user.is_none()
    }

    /// Whether a letter is meant. What is no letter is meant only where all are.
    pub(super) fn takes(&self, found: &Found) -> bool {
        let Some(letter) = &found.letter else { return self.is_empty() };
        let of_fault =
            self.fault.is_empty() || self.fault.iter().any(|name| name.names(letter.reason));
        of_fault && self.user.as_deref().is_none_or(|user| found.user() == Some(user))
    }
}

fn id(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("it is empty") } else { Ok(text.to_owned()) }
}

/// Where what was taken out of a letter is given again.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct Credentials {
    /// Read the forge's token from this file
    ///
    /// The variables IMAGE_BUILDER_TOKEN and IMAGE_BUILDER_TOKEN_FILE do the same. With --all it is given
    /// to each build that had a token, whoever's it was: combine it with --user.
    #[arg(long, value_name = "FILE", conflicts_with = "token_stdin")]
    pub(super) token_file: Option<PathBuf>,
    /// Read the forge's token from the standard input
    #[arg(long)]
    pub(super) token_stdin: bool,
    /// Read the build secret ID from FILE, a line end at its end aside; may be given more than once
    #[arg(long = "secret", value_name = "ID=FILE", value_parser = named_file)]
    pub(super) secrets: Vec<(String, PathBuf)>,
    /// Read variables whose values were taken out from a file of NAME=VALUE lines
    ///
    /// Values are taken as they stand, without quotes; empty lines and lines that begin with # are
    /// skipped, and so are names that the letter does not lack.
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Option<PathBuf>,
    /// Read build arguments whose values were taken out from a file of NAME=VALUE lines
    #[arg(long, value_name = "FILE")]
    pub(super) build_arg_file: Option<PathBuf>,
    /// Go on without what is missing and not given
    #[arg(long)]
    pub(super) without_credentials: bool,
}

fn named_file(text: &str) -> Result<(String, PathBuf), &'static str> {
    match text.split_once('=') {
        Some((id, file)) if !id.is_empty() && !file.is_empty() => {
            Ok((id.to_owned(), PathBuf::from(file)))
        }
        _ => Err("it is not ID=FILE"),
    }
}
