//! `image-builder completions` and `image-builder man`: what is made of the command line's own description,
//! for those who install the program.

use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::print;
use crate::exit::Exit;

/// The program's name in a shell.
const NAME: &str = "image-builder";

/// Print the completions of a shell.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Write the manual: one page for the program, and one for each of its commands.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// The directory for the pages, such as /usr/local/share/man/man1; without it the first page is printed
    directory: Option<PathBuf>,
}

pub fn run(arguments: &Arguments, mut program: Command) -> Exit {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut program, NAME, &mut text);
    print(&String::from_utf8_lossy(&text))
}

pub fn man(arguments: &ManArguments, program: Command) -> Exit {
    let Some(directory) = &arguments.directory else {
        let mut text = Vec::new();
        return match clap_mangen::Man::new(program.name(NAME)).render(&mut text) {
            Ok(()) => print(&String::from_utf8_lossy(&text)),
            Err(error) => unwritten(&error),
        };
    };
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| clap_mangen::generate_to(program.name(NAME), directory));
    match written {
        Ok(()) => Exit::Ok,
        Err(error) => unwritten(&error),
    }
}

fn unwritten(error: &io::Error) -> Exit {
    eprintln!("image-builder: cannot write: {error}");
    Exit::Failed
}
