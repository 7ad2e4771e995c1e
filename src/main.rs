//! The command line: which command is meant. What each does is in its own module of `cli`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use image_builder::cli::{
    self, build, build_network, cancel, completions, config, dead_letters, doctor, health, logs,
    plan, queue, read_log, serve, status, submit,
};
use image_builder::exit::Exit;
use image_builder::{planner, source};

/// Builds container images from Git repositories: takes build requests over HTTP or from a RabbitMQ queue,
/// clones, builds on a container engine, pushes to a registry, and tells the platform. `build`, `plan` and
/// `doctor` need no queue: they do one thing for the person who calls them.
#[derive(Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_long_help = "\
Exit codes:
  0   done
  1   not done, or not all of it
  64  usage
  69  something needed is not available
  75  temporary failure: try it again
  78  bad settings, one line each
  130 stopped by Ctrl-C
  143 `build`, `plan` and `doctor`: stopped by SIGTERM

Examples:
  image-builder serve
  image-builder build . --tag shop:dev

`image-builder config --example` lists the settings, and docs/settings.md explains them. Each command's --help
has its own exit codes and examples."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::Arguments),
    Build(Box<build::Arguments>),
    Plan(Box<plan::Arguments>),
    Submit(submit::Arguments),
    Status(status::Arguments),
    Logs(logs::Arguments),
    Cancel(cancel::Arguments),
    Doctor(doctor::Arguments),
    BuildNetwork(build_network::Arguments),
    Config(config::Arguments),
    Health(health::Arguments),
    Queue(queue::Arguments),
    ReadLog(read_log::Arguments),
    #[command(subcommand)]
    Dead(dead_letters::Command),
    #[command(hide = true)]
    Completions(completions::Arguments),
    #[command(hide = true)]
    Man(completions::ManArguments),
}

fn main() -> ExitCode {
    // Not a subcommand: nothing of it is for people.
    if let Some(code) = planner::child::run().or_else(source::run_child) {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(help) => {
            // Clap knows which stream a text belongs to; only its exit code is not ours.
            let _ = help.print();
            return if help.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    cli::ended(match arguments.command {
        Command::Serve(_) => serve::run(),
        Command::Build(arguments) => build::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Submit(arguments) => submit::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Cancel(arguments) => cancel::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::BuildNetwork(arguments) => build_network::run(&arguments),
        Command::Config(arguments) => config::run(&arguments),
        Command::Health(arguments) => health::run(&arguments),
        Command::Queue(arguments) => queue::run(&arguments),
        Command::ReadLog(_) => Ok(read_log::run()),
        Command::Dead(command) => cli::dead(command),
        Command::Completions(arguments) => Ok(completions::run(&arguments, Arguments::command())),
        Command::Man(arguments) => Ok(completions::man(&arguments, Arguments::command())),
    })
}
